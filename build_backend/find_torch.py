"""Find the PyTorch of the interpreter that runs the build, without importing it.

Only the standard library is used, so that this file runs before anything is installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MINIMUM_TORCH = (2, 10)
"""The oldest PyTorch whose stable ABI the operators are compiled for (csrc/compile_flags.txt)."""

TORCH_REQUIREMENT = "torch>=" + ".".join(map(str, MINIMUM_TORCH))

_ASK = """
import importlib.util, json, sys
sys.path = [entry for entry in sys.path if entry]
spec = importlib.util.find_spec("torch")
json.dump(spec.origin if spec else None, sys.stdout)
"""


def find_torch() -> Path | None:
    """Locate the directory of the ``torch`` package to build against.

    The torch that the build itself can import comes first (``--no-build-isolation``, or one that
    was fetched for this build), then the one installed beside the interpreter.

    Returns:
        The ``torch`` package directory, or None if there is none of ``MINIMUM_TORCH`` or later.
    """
    for origin in (_visible_origin(), _hidden_origin()):
        if origin is not None and _version(Path(origin).parent) >= MINIMUM_TORCH:
            return Path(origin).parent
    return None


def _visible_origin() -> str | None:
    spec = importlib.util.find_spec("torch")
    return spec.origin if spec else None


def _hidden_origin() -> str | None:
    """Ask a second interpreter, which knows all of its own site-packages.

    pip hides them from a build through PYTHONPATH and PYTHONNOUSERSITE, which ``-E`` ignores. The
    answer is right for virtual environments, ``--system-site-packages``, user sites and the
    directories of Linux distributions alike.
    """
    with tempfile.TemporaryDirectory() as elsewhere:  # a folder named torch here is not the package
        answer = subprocess.run(
            [sys.executable, "-E", "-c", _ASK],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=True,
        )
    origin: str | None = json.loads(answer.stdout)
    return origin


def _version(package: Path) -> tuple[int, int]:
    """Read (major, minor) from ``torch/version.py``; (0, 0) if it does not say."""
    try:
        text = (package / "version.py").read_text(encoding="utf-8")
    except OSError:
        return (0, 0)
    match = re.search(r"^__version__\s*=\s*['\"](\d+)\.(\d+)", text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else (0, 0)


if __name__ == "__main__":
    print(find_torch() or "none")
