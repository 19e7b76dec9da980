"""Finding, checking and loading the compiled operators ``mkdext._C``.

An installed package has its ``_C`` beside it. A source tree mostly has not: ``pip install .`` puts
``_C`` into site-packages, but in the root of a clone ``import mkdext`` finds the source tree. There
every other ``mkdext`` folder on ``sys.path`` is looked into as well, and a binary counts only if it
carries the hash of the C++ sources of the tree: one made from other sources is never loaded.

Without a usable binary the operators run on plain PyTorch, and ``available`` says so once.
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

from mkdext._source_hash import source_hash

REQUIRE_VARIABLE = "MKDEXT_REQUIRE_EXT"

_NAME = "mkdext._C"
_PACKAGE = Path(__file__).resolve().parent
_REBUILD = "run `pip install .` in the root of the clone"
_lock = threading.Lock()


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
                _status = _load()
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
        _warn_once(current)
    return False


def module() -> ModuleType:
    """Return ``mkdext._C``.

    Raises:
        ImportError: It is not available; the message tells why and what to do.
    """
    current = status()
    if current.state != "loaded":
        raise ImportError(f"{current.reason}: {current.fix}")
    return sys.modules[_NAME]


def is_required() -> bool:
    """Tell whether the user asked for an error instead of the fallback."""
    return os.environ.get(REQUIRE_VARIABLE, "0") not in {"", "0"}


_warned = False


def _warn_once(current: ExtensionStatus) -> None:
    global _warned
    with _lock:
        if _warned:
            return
        _warned = True
    warnings.warn(
        f"{current.reason}, so the operators run on plain PyTorch, which is slower: {current.fix}",
        ExtensionWarning,
        stacklevel=4,
    )


def _load() -> ExtensionStatus:
    candidates = _candidates()
    if not candidates:
        return ExtensionStatus(
            "missing",
            None,
            "the compiled operators of mkdext are not installed",
            f"install a C++ compiler (g++ or clang++) and {_REBUILD}; "
            f"`{REQUIRE_VARIABLE}=1 pip install .` shows why a build fails",
        )
    matching = [path for path in candidates if _matches_sources(path)]
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

        extension = _import_from(path)
        return ExtensionStatus(
            "loaded", path, "the compiled operators are in use", build=extension.build_info()
        )
    except (ImportError, OSError, RuntimeError) as error:
        summary = str(error).strip().splitlines()[0]
        return ExtensionStatus(
            "broken",
            path,
            f"{path} does not load ({summary})",
            f"check that torch>=2.10 imports, then {_REBUILD}",
        )


def _candidates() -> list[Path]:
    """List the ``_C`` libraries that may be used, the one beside this file first."""
    folders = [_PACKAGE]
    if _csrc() is not None:
        folders += [Path(entry or ".").resolve() / "mkdext" for entry in sys.path]
    paths = (folder / f"_C{suffix}" for folder in folders for suffix in EXTENSION_SUFFIXES)
    return list(dict.fromkeys(path for path in paths if path.is_file()))


def _csrc() -> Path | None:
    """Return the folder of the C++ sources if this is a source tree."""
    folder = _PACKAGE.parent / "csrc"
    return folder if (folder / "registration.cpp").is_file() else None


def _matches_sources(library: Path) -> bool:
    """Compare without loading: operators once registered cannot be replaced in a process."""
    folder = _csrc()
    return folder is None or source_hash(folder).encode() in library.read_bytes()


def _import_from(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None and spec.loader is not None  # the suffix is that of an extension
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    sys.modules[_NAME] = extension
    return extension
