"""Processes that work for this one and never outlive it, however it ends."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_BEGIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = {path!r}
from mkdext._system.lifetime import end_with
end_with({parent})
from mkdext.data.workers import serve
serve()
"""


def in_processes(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], count: int
) -> Generator[_Result, None, None]:
    """What a function makes of jobs, in order, worked on ahead by several processes.

    Args:
        function: Of a module, so that it can be found by its name.
        jobs: Its arguments.
        count: Processes.

    Raises:
        ChildProcessError: One of them was killed.
        Exception: What the function raises.
    """
    with contextlib.ExitStack() as stack:
        free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(count):
            free.put(stack.enter_context(_Worker(function)))

        def ask(job: _Job) -> Any:
            worker = free.get()
            try:
                return worker.ask(job)
            finally:
                free.put(worker)

        pool = stack.enter_context(ThreadPoolExecutor(count))
        waiting: deque[Future[Any]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(ask, job))
                if len(waiting) > 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def serve() -> None:
    """Do jobs until there are no more; what is printed goes to standard error."""
    jobs, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function = pickle.load(jobs)
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(job), None
        except Exception as error:
            answer = None, error
        try:
            pickle.dump(answer, results, protocol=pickle.HIGHEST_PROTOCOL)
            results.flush()
        except BrokenPipeError:  # Whoever asked is no more.
            os._exit(1)


class _Worker:
    """One process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = _BEGIN.format(parent=os.getpid(), path=sys.path)
        with _without_ctrl_c():
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        self._send(function)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, job: object) -> Any:
        """What the function makes of a job."""
        self._send(job)
        assert self._process.stdout is not None
        try:
            result, error = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._killed() from None
        if error is not None:
            raise error
        return result

    def _send(self, content: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(content, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._killed() from None

    def _killed(self) -> ChildProcessError:
        return ChildProcessError("a decoding process was killed; the same command continues")


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Let it wait; processes started meanwhile never get it, their parent tells them to end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
