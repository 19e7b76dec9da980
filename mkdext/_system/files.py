"""Files that are either written as a whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdext._system.locks import held, taken

_UNFINISHED = ".unfinished"
_LONGEST_NAME = 255  # bytes
_ON_WINDOWS = os.name == "nt"
_SETTLED = 2.0  # seconds after which a new file has been locked by whoever made it


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` once it is written and on the disk.

    Each call writes to a file of its own: of several writers the last to finish stays, whole.

    Raises:
        OSError: The file cannot be written; it is named.
        ValueError: There is something else than a regular file at `path`.
    """
    check_replaceable(path)
    path = Path(os.path.realpath(path))  # A link stays, and what it points to is replaced.
    _clear_up(path.parent)
    # Short, because a name may have 255 bytes already.
    unfinished = path.with_name(f".{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        with _locked_file(unfinished) as descriptor:
            yield unfinished
            os.fsync(descriptor)
            if not _ON_WINDOWS:
                unfinished.replace(path)
        if _ON_WINDOWS:  # where no open file can be renamed
            unfinished.replace(path)
    except OSError as error:
        if error.filename in (None, str(unfinished)):
            error.filename = str(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Check that a file can take the place of what is at `path`.

    Raises:
        ValueError: There is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ValueError(f"{path} is {what}; name a file that can be replaced")


def fitting(name: str, suffix: str) -> str:
    """A file name that begins with a name of a user's, and is no longer than file systems allow.

    Example:
        >>> fitting("crops_Set5", ".png")
        'crops_Set5.png'
    """
    if len(os.fsencode(name + suffix)) <= _LONGEST_NAME:
        return name + suffix
    mark = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    while len(os.fsencode(name + mark + suffix)) > _LONGEST_NAME:
        name = name[:-1]
    return name + mark + suffix


@contextlib.contextmanager
def _locked_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        taken(descriptor)  # Some file systems know no locks.
        yield descriptor
    finally:
        os.close(descriptor)


def _clear_up(folder: Path) -> None:
    """Remove, once, what writers to a folder have left that were killed: nobody holds its lock."""
    if folder in _cleared:
        return
    _cleared.add(folder)
    for left in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            with left.open("rb") as file:
                is_old = time.time() - os.fstat(file.fileno()).st_mtime > _SETTLED
                is_left = is_old and taken(file.fileno())
            if is_left:
                left.unlink()


_cleared: set[Path] = set()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically; characters that it cannot hold become `?`."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8", "replace"))


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically, as `as_json` makes it."""
    write_text(path, as_json(content, indent) + "\n")


def as_json(content: Any, indent: int | None = None) -> str:
    """Plain values as JSON, in which numbers that are not finite become `null`.

    Example:
        >>> as_json({"psnr_y": math.inf})
        '{"psnr_y": null}'
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same names, at least one, as a CSV file atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextlib.contextmanager
def locked(folder: Path, flag: str, work: str) -> Iterator[None]:
    """Make a folder and keep out others who lock it.

    Args:
        folder: It need not be there yet.
        flag: What names it, as in "`out`".
        work: What locks it, as in "training".

    Raises:
        ValueError: The folder cannot be written, or is locked.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            is_held = stack.enter_context(held(folder / ".lock"))
        except OSError as error:
            raise ValueError(f"{flag} {folder} cannot be written: {error.strerror}") from None
        if not is_held:
            raise ValueError(f"{flag} {folder} is in use by another {work}")
        yield


def check_writable(folder: Path) -> None:
    """Check that files can be written to the folder that `out` names, without writing anything.

    Args:
        folder: It need not be there yet.

    Raises:
        ValueError: They cannot.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"`out` {folder} cannot be written: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"`out` {folder} cannot be written: no permission in {existing}")


def check_apart(out: Path, photographs: Path) -> None:
    """Check that what `out` names does not lie in a folder of photographs.

    Raises:
        ValueError: It does: the pictures written there would count as photographs ever after.
    """
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(photographs)):
        raise ValueError(
            f"`out` {out} lies in {photographs}, among whose photographs its pictures would count; "
            "give another `out`"
        )
