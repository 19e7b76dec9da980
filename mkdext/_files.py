"""Files that are either written as a whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` once it is written and on the disk."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same names, at least one, as a CSV file atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(text.getvalue().encode())


@contextlib.contextmanager
def locked(folder: Path, flag: str, work: str) -> Iterator[None]:
    """Make a folder and keep out others who lock it.

    Args:
        folder: It need not be there yet.
        flag: What names it, as in "--out".
        work: What locks it, as in "training".

    Raises:
        ValueError: The folder cannot be written, or is locked.
    """
    import fcntl  # not everywhere, and the rest of this file is

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"{flag} {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            # The system lets go of the lock however the process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{flag} {folder} is in use by another {work}") from None
        yield


def check_writable(folder: Path) -> None:
    """Check that files can be written to the folder that `--out` names, without writing anything.

    Args:
        folder: It need not be there yet.

    Raises:
        ValueError: They cannot.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"--out {folder} cannot be written: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--out {folder} cannot be written: no permission in {existing}")


def check_apart(out: Path, photographs: Path) -> None:
    """Check that what `--out` names does not lie in a folder of photographs.

    Raises:
        ValueError: It does: the pictures written there would count as photographs ever after.
    """
    if out.resolve().is_relative_to(photographs.resolve()):
        raise ValueError(
            f"--out {out} lies in {photographs}, among whose photographs its pictures would count; "
            "give another --out"
        )
