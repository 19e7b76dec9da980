"""How a command ends: one message, and an exit status."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

import torch

from mkdext._terminal import printable

_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "bad_alloc", "Cannot allocate memory")
"""What PyTorch's errors say where the processor's memory is exhausted."""


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
) -> int:
    """Run a command and tell what stopped it.

    Args:
        name: Of the command, to begin the message with.
        command: What to run; it may return a status.
        interrupted: Message after Ctrl-C.

    Returns:
        2 for what cannot be done as asked, 1 for what failed on the way, 128 plus the signal for
        what was stopped, else what the command returns or 0.
    """

    def failed(error: object, status: int) -> int:
        encoding = sys.stderr.encoding or "utf-8"
        print(printable(f"{name}: {error}", encoding), file=sys.stderr)
        return status

    try:
        return command() or 0
    except ValueError as error:
        return failed(error, 2)
    except CommandFailed as error:
        return failed(error, 1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return failed(f"{error}{'; make room, then give the same command again' * full}", 1)
    except CommandStopped as stopped:
        return failed(stopped, 128 + stopped.signal_number)
    except KeyboardInterrupt:
        return failed(interrupted, 130)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return failed(f"memory is exhausted ({_first_line(error)}); {_memory_advice(error)}", 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, of the processor or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)


def _memory_advice(error: BaseException) -> str:
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    advice = "lower --batch-size, --patch-size or --memory where there is one"
    return f"{advice}, or take --device cpu" if on_gpu else advice


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
