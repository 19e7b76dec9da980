"""What goes wrong while a kernel runs."""

from __future__ import annotations


class Fault(Exception):
    """A kernel did what no kernel may do.

    Args:
        message: What it did.
        thread: Who did it, of the threads that run together.
    """

    def __init__(self, message: str, thread: int | None = None) -> None:
        super().__init__(message)
        self.thread = thread
