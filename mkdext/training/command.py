"""How a training command ends: one message, and an exit status."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

import torch

from mkdext.training.signals import TrainingStopped
from mkdext.training.steps import TrainingFailed


def exit_status(name: str, command: Callable[[], None]) -> int:
    """Run a command and tell what stopped it.

    Args:
        name: Of the command, to begin the message with.
        command: What to run.

    Returns:
        2 for what cannot be done as asked, 1 for a training that failed, 128 plus the signal for
        one that was stopped, else 0.
    """

    def failed(error: object, status: int) -> int:
        print(f"{name}: {error}", file=sys.stderr)
        return status

    try:
        command()
    except ValueError as error:
        return failed(error, 2)
    except TrainingFailed as error:
        return failed(error, 1)
    except torch.OutOfMemoryError as error:
        return failed(f"{error}\nlower --batch-size or --patch-size", 1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; make room, then the same command goes on" if full else ""
        return failed(f"{error}{advice}", 1)
    except TrainingStopped as stopped:
        return failed(stopped, 128 + stopped.signal_number)
    except KeyboardInterrupt:
        return failed("interrupted; the same command begins again or goes on", 130)
    return 0
