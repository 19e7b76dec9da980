"""Processes that work for this one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from mkdext.data.workers import in_processes

_PARENT = """
import time
from mkdext.data.workers import in_processes
for result in in_processes(time.sleep, [{seconds}] * 6, 2):
    print("done", flush=True)
"""


@pytest.mark.slow
def test_results_come_in_order() -> None:
    jobs = list(range(12))
    found = list(in_processes(abs, [-job for job in jobs], 2))
    assert found == jobs


@pytest.mark.slow
def test_what_the_function_raises_is_raised_here() -> None:
    results = in_processes(int, ["1", "one"], 1)
    assert next(results) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        next(results)


@pytest.mark.slow
def test_a_killed_process_is_told() -> None:
    with pytest.raises(ChildProcessError, match="was killed; the same command continues"):
        list(in_processes(os._exit, [3], 1))


@pytest.mark.slow
def test_processes_end_with_the_loop_that_takes_their_results() -> None:
    results = in_processes(time.sleep, [0.0] * 20, 2)
    next(results)
    assert len(_children(os.getpid())) >= 2
    results.close()
    assert _until(lambda: not _children(os.getpid()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("when", ["while they start", "while they work"])
def test_no_process_outlives_a_parent_that_is_killed(when: str) -> None:
    code = _PARENT.format(seconds=0.01 if when == "while they start" else 60)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert _until(lambda: len(_children(parent.pid)) == 2, 60)
    if when == "while they work":
        time.sleep(1)
    workers = _children(parent.pid)
    parent.kill()
    parent.communicate()
    assert _until(lambda: not any(_is_alive(worker) for worker in workers))


def _children(process: int) -> list[int]:
    try:
        with open(f"/proc/{process}/task/{process}/children", encoding="utf-8") as file:
            return [int(number) for number in file.read().split()]
    except FileNotFoundError:
        return []


def _is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition: Callable[[], bool], seconds: float = 3) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
