"""How a command ends: one message, and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from mkdext._cli.wording import in_flags
from mkdext._system.errors import (
    WorkFailed,
    WorkStopped,
    is_of_gpu_memory,
    is_out_of_memory,
    is_told,
    out_of_memory_message,
)
from mkdext._system.streams import printable, replace_unencodable


def exit_status(
    name: str,
    command: Callable[[], int | None],
    interrupted: str = "interrupted; the same command starts again or continues",
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
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if rank != "0":
        name = f"{name}, process {rank} of {size}"

    def failed(error: BaseException, status: int, text: str | None = None) -> int:
        if not is_told(error):
            encoding, said = sys.stderr.encoding or "utf-8", str(error) if text is None else text
            print(printable(f"{name}: {in_flags(said)}", encoding), file=sys.stderr)
        return status

    replace_unencodable()
    try:
        return command() or 0
    except ValueError as error:
        return failed(error, 2)
    except WorkFailed as error:
        return failed(error, 1)
    except OSError as error:
        if is_out_of_memory(error):
            return failed(error, 1, f"{out_of_memory_message(error)}; {memory}")
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return failed(error, 1, f"{error}{'; make room, then give the same command again' * full}")
    except WorkStopped as stopped:
        return failed(stopped, 128 + stopped.signal_number)
    except KeyboardInterrupt as error:
        return failed(error, 130, interrupted)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = is_of_gpu_memory(error)
        advice = f"{memory}, or take --device cpu" if on_gpu else memory
        return failed(error, 1, f"{out_of_memory_message(error)}; {advice}")
