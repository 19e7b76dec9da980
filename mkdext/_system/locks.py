"""Locks that end with their process, however it ends, on every system."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


def taken(descriptor: int) -> bool:
    """Lock an open file for as long as it is open, where files can be locked and still be written.

    Returns:
        Whether no other process has it. On Windows, where none can remove or replace a file that is
        open, nothing is done.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether this process now has the lock that a file stands for; it is not waited for.

    Args:
        path: The file, which is made where it is missing.

    Raises:
        OSError: It cannot be made.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except NotImplementedError:
        raise OSError(errno.ENOLCK, "its file system knows no locks", str(path)) from None
    try:
        yield True
    finally:
        lock.release()
