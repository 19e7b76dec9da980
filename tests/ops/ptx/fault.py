"""What goes wrong while a kernel runs."""

from __future__ import annotations


class Fault(Exception):
    """A kernel did what no kernel may do: the message names it, the instruction and the thread."""


class ThreadFault(Exception):
    """The same, before kernel and instruction are known.

    Args:
        message: What a thread did.
        thread: Its number among those that run together.
    """

    def __init__(self, message: str, thread: int) -> None:
        super().__init__(message)
        self.thread = thread


class AccessFault(Exception):
    """The same, before the thread is known.

    Args:
        message: What one of the accesses does that an instruction makes.
        which: Its place among them.
    """

    def __init__(self, message: str, which: int) -> None:
        super().__init__(message)
        self.which = which
