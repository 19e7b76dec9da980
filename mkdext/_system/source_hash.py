"""The fingerprint that ties a compiled ``_C`` or ``_C_cuda`` to the sources it was made from.

The build writes it into the binary and the loader compares it. Only the standard library is used:
setup.py and CMake run this file before anything is installed.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

_SUFFIXES = {".cpp", ".cu", ".h", ".txt"}


def source_files(csrc: Path, device: str = "cpu") -> list[Path]:
    """List every file that a library is made from, sorted: ``csrc/*`` and those of the device.

    Args:
        csrc: The folder of the sources.
        device: ``"cpu"`` for ``_C``, ``"cuda"`` for ``_C_cuda``.
    """
    folders = (csrc, csrc / device)
    return sorted(
        path for folder in folders for path in folder.glob("*") if path.suffix in _SUFFIXES
    )


def source_hash(csrc: Path, device: str = "cpu") -> str:
    """Hash the names and contents of ``source_files(csrc, device)``: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in source_files(csrc, device):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    print(source_hash(Path(sys.argv[1]), *sys.argv[2:]))
