"""The fingerprint that ties a compiled ``_C`` to the C++ sources it was made from.

The build writes it into the binary and the loader compares it. Only the standard library is used:
setup.py and CMake run this file before anything is installed.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

_SUFFIXES = {".cpp", ".h", ".txt"}


def source_files(csrc: Path) -> list[Path]:
    """List every file that ``_C`` is made from, sorted: ``csrc/*`` and ``csrc/cpu/*``."""
    folders = (csrc, csrc / "cpu")
    return sorted(
        path for folder in folders for path in folder.glob("*") if path.suffix in _SUFFIXES
    )


def source_hash(csrc: Path) -> str:
    """Hash the names and contents of ``source_files(csrc)``: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in source_files(csrc):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    print(source_hash(Path(sys.argv[1])))
