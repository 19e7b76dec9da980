from __future__ import annotations

import errno
import os
import signal

import pytest
import torch

from mkdext._cli.status import exit_status
from mkdext._system.errors import WorkFailed, WorkStopped


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("--lr must be positive"), 2, "name: --lr must be positive\n"),
        (WorkFailed("loss is nan"), 1, "name: loss is nan\n"),
        (OSError(errno.EACCES, "Permission denied", "out"), 1, "Permission denied: 'out'\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            1,
            "No space left on device; make room, then give the same command again\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            1,
            "the GPU's memory is exhausted (CUDA out of memory); lower --size, or take --device",
        ),
        (MemoryError(), 1, "name: memory is exhausted (MemoryError); lower --size\n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "memory is exhausted"),
        (RuntimeError("can't start new thread"), 1, "memory is exhausted"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            1,
            "memory is exhausted",
        ),
        (WorkStopped(signal.SIGTERM, "stopped after step 3"), 143, "name: stopped after step 3"),
        (KeyboardInterrupt(), 130, "name: interrupted; try again\n"),
    ],
)
def test_what_ends_a_command_is_told_in_one_message_and_by_the_exit_status(
    error, status, message, capsys
):
    def run() -> None:
        raise error

    assert exit_status("name", run, "interrupted; try again", "lower --size") == status
    shown = capsys.readouterr().err
    assert shown.startswith("name: ") and message in shown


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_that_ends_by_itself_has_the_status_that_it_returns(returned, status, capsys):
    assert exit_status("name", lambda: returned) == status
    assert capsys.readouterr().err == ""


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exit_status("name", lambda: 1 // 0)
