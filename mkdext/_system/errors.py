"""Errors that are no fault of the caller, and what exhausted memory looks like."""

from __future__ import annotations

import errno
import sys

_NO_MEMORY = (
    "DefaultCPUAllocator",
    "not enough memory",
    "bad_alloc",
    "annot allocate memory",
    "can't start new thread",
)
"""What errors say, PyTorch's and others, where the processor's memory is exhausted."""


class WorkFailed(Exception):
    """What was asked for turned out on the way not to be possible; the message says why."""


class WorkStopped(Exception):
    """A signal asked to stop; the message says what was kept."""

    def __init__(self, signal_number: int, message: str) -> None:
        """Tell what stopped it, and how to go on."""
        super().__init__(message)
        self.signal_number = signal_number


def mark_as_told(error: BaseException) -> None:
    """Note that another process tells the user of an error."""
    error.__dict__["is_told"] = True


def is_told(error: BaseException) -> bool:
    """Whether another process tells the user of an error."""
    return bool(error.__dict__.get("is_told", False))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, of the processor or of a GPU."""
    if isinstance(error, MemoryError) or is_of_gpu_memory(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and any(part in str(error) for part in _NO_MEMORY)


def out_of_memory_message(error: BaseException) -> str:
    """What is exhausted, with the first line of the error."""
    whose = "the GPU's memory" if is_of_gpu_memory(error) else "memory"
    return f"{whose} is exhausted ({first_line(error)})"


def is_of_gpu_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory of a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
