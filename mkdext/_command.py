"""How a command ends: one message, and an exit status."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

import torch

from mkdext._streams import printable, replace_unencodable

_NO_MEMORY = (
    "DefaultCPUAllocator",
    "not enough memory",
    "bad_alloc",
    "annot allocate memory",
    "can't start new thread",
)
"""What errors say, PyTorch's and others, where the processor's memory is exhausted."""


class CommandFailed(Exception):
    """What was asked for turned out on the way not to be possible; the message says why."""


class CommandStopped(Exception):
    """A signal asked to stop; the message says what was kept."""

    def __init__(self, signal_number: int, message: str) -> None:
        """Tell what stopped it, and how to go on."""
        super().__init__(message)
        self.signal_number = signal_number


def exit_status(
    name: str,
    command: Callable[[], int | None],
    interrupted: str = "interrupted; the same command begins again or goes on",
    memory: str = "close other programs, or take a machine with more memory",
) -> int:
    """Run a command and tell what stopped it.

    Args:
        name: Of the command, to begin the message with.
        command: What to run; it may return a status.
        interrupted: Message after Ctrl-C.
        memory: What to do where memory is exhausted.

    Returns:
        2 for what cannot be done as asked, 1 for what failed on the way, 128 plus the signal for
        what was stopped, else what the command returns or 0.
    """

    def failed(error: object, status: int) -> int:
        encoding = sys.stderr.encoding or "utf-8"
        print(printable(f"{name}: {error}", encoding), file=sys.stderr)
        return status

    replace_unencodable()
    try:
        return command() or 0
    except ValueError as error:
        return failed(error, 2)
    except CommandFailed as error:
        return failed(error, 1)
    except OSError as error:
        if is_out_of_memory(error):
            return failed(f"{out_of_memory_message(error)}; {memory}", 1)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return failed(f"{error}{'; make room, then give the same command again' * full}", 1)
    except CommandStopped as stopped:
        return failed(stopped, 128 + stopped.signal_number)
    except KeyboardInterrupt:
        return failed(interrupted, 130)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        advice = f"{memory}, or take --device cpu" if on_gpu else memory
        return failed(f"{out_of_memory_message(error)}; {advice}", 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, of the processor or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and any(part in str(error) for part in _NO_MEMORY)


def out_of_memory_message(error: BaseException) -> str:
    """What is exhausted, with the first line of the error."""
    whose = "the GPU's memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{whose} is exhausted ({line})"
