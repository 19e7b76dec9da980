"""Finding, checking and loading the compiled operators: ``mkdext._C``, and ``mkdext._C_cuda``.

An installed package has its ``_C`` beside it. A source tree mostly has not: ``pip install .`` puts
``_C`` into site-packages, but in the root of a clone ``import mkdext`` finds the source tree. There
every other ``mkdext`` folder on ``sys.path`` is looked into as well, and a binary counts only if it
carries the hash of the C++ sources of the tree: one made from other sources is never loaded.

Without a usable binary the operators run on plain PyTorch, and ``available`` says so once.
What differs for ``_C_cuda`` stands in `mkdext._system.cuda`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Literal

from mkdext._system.errors import first_line
from mkdext._system.source_hash import source_hash

REQUIRE_VARIABLE = "MKDEXT_REQUIRE_EXT"

_PACKAGE = Path(__file__).resolve().parent.parent
_REBUILD = "run `pip install .` in the root of the clone"
_lock = threading.Lock()


@dataclass(frozen=True)
class Library:
    """One of the two libraries."""

    name: str
    """The module's, without the package."""
    device: str
    """The folder of its sources in ``csrc``."""
    called: str
    """What messages call it."""
    needs: str
    """What to do first where it is missing."""


OPERATORS = Library(
    "_C",
    "cpu",
    "the compiled operators of mkdext",
    "install a C++ compiler (g++ or clang++)",
)


@dataclass(frozen=True)
class ExtensionStatus:
    """What became of ``mkdext._C``."""

    state: Literal["loaded", "missing", "stale", "broken"]
    """``stale``: made from other C++ sources; ``broken``: the right one, but it does not load."""
    path: Path | None
    """The library file, None if there is none."""
    reason: str
    """One sentence."""
    fix: str = ""
    """What to do about it; empty if nothing need be done."""
    build: Mapping[str, str] = field(default_factory=dict)
    """``_C.build_info()``; empty unless loaded."""


class ExtensionWarning(RuntimeWarning):
    """The compiled operators are not in use."""


def status() -> ExtensionStatus:
    """Load ``mkdext._C`` if that was not tried before, and tell the outcome. Thread-safe."""
    global _status
    if _status is None:
        with _lock:
            if _status is None:
                _status = load(OPERATORS)
    return _status


_status: ExtensionStatus | None = None


def available(warn: bool = True) -> bool:
    """Tell whether the compiled operators can be used; warn, once, if they cannot.

    Args:
        warn: Whether to warn at all.

    Raises:
        ImportError: They cannot and ``MKDEXT_REQUIRE_EXT=1``.
    """
    current = status()
    if current.state == "loaded":
        return True
    if is_required():
        raise ImportError(f"{current.reason}: {current.fix} ({REQUIRE_VARIABLE} is set)")
    if warn:
        warn_once(current)
    return False


def module() -> ModuleType:
    """Return ``mkdext._C``.

    Raises:
        ImportError: It is not available; the message tells why and what to do.
    """
    current = status()
    if current.state != "loaded":
        raise ImportError(f"{current.reason}: {current.fix}")
    return sys.modules[f"mkdext.{OPERATORS.name}"]


def is_required() -> bool:
    """Tell whether the user asked for an error instead of the fallback."""
    return os.environ.get(REQUIRE_VARIABLE, "0") not in {"", "0"}


_warned: set[str] = set()


def warn_once(current: ExtensionStatus) -> None:
    """Tell that a library is not in use, why, and the fix; once in a process for each reason."""
    with _lock:
        if current.reason in _warned:
            return
        _warned.add(current.reason)
    warnings.warn(
        f"{current.reason}, so the operators run on plain PyTorch, which is slower: {current.fix}",
        ExtensionWarning,
        stacklevel=4,
    )


def load(library: Library) -> ExtensionStatus:
    """Find a library, and load it if it is fit, each time it is called."""
    candidates = _candidates(library)
    if not candidates:
        return ExtensionStatus(
            "missing",
            None,
            f"{library.called} are not installed",
            f"{library.needs} and {_REBUILD}; "
            f"`{REQUIRE_VARIABLE}=1 pip install .` shows why a build fails",
        )
    matching = [path for path in candidates if _matches_sources(path, library)]
    if not matching:
        path = candidates[0]
        in_place = path.parent == _PACKAGE
        return ExtensionStatus(
            "stale",
            path,
            f"{path} was compiled from other C++ sources than those in {_csrc()}",
            "run `python setup.py build_ext --inplace` again" if in_place else f"{_REBUILD} again",
        )
    path = matching[0]
    try:
        import torch  # noqa: F401  (its libraries must be in the process before those of _C)

        extension = _import_from(path, f"mkdext.{library.name}")
        return ExtensionStatus(
            "loaded", path, f"{library.called} are in use", build=extension.build_info()
        )
    except (ImportError, OSError, RuntimeError) as error:
        return ExtensionStatus(
            "broken",
            path,
            f"{path} does not load ({first_line(error)})",
            f"check that torch>=2.10 imports, then {_REBUILD}",
        )


def _candidates(library: Library) -> list[Path]:
    """List the files that may be used, the one beside this file first."""
    folders = [_PACKAGE]
    if _csrc() is not None:
        folders += [Path(entry or ".").resolve() / "mkdext" for entry in sys.path]
    names = [library.name + suffix for suffix in EXTENSION_SUFFIXES]
    paths = (folder / name for folder in folders for name in names)
    return list(dict.fromkeys(path for path in paths if path.is_file()))


def _csrc() -> Path | None:
    """Return the folder of the C++ sources if this is a source tree."""
    folder = _PACKAGE.parent / "csrc"
    return folder if (folder / "registration.cpp").is_file() else None


def _matches_sources(path: Path, library: Library) -> bool:
    """Compare without loading: operators once registered cannot be replaced in a process."""
    folder = _csrc()
    return folder is None or source_hash(folder, library.device).encode() in path.read_bytes()


def _import_from(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the suffix is that of an extension
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    sys.modules[name] = extension
    return extension
