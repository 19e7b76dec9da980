"""A function in a process of its own, which may crash, hang or be killed without harm to ours."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NoReturn

from mkdext._system.lifetime import end_with

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_END_OF_SENTENCE = re.compile(r"[.!]+(?: (?=[A-Z])|$)")
_MOST_CHARACTERS = 240
_KEPT_LINES = 20  # of what the process says
_PATIENCE = 5.0  # seconds for a process to end that has closed its pipe


class Failed(Exception):
    """The function raised, or its process ended without an answer; the message says how."""


def run_alone(
    function: str,
    arguments: Mapping[str, Any],
    told: Callable[[str], object] = lambda text: None,
    limit: float | None = None,
) -> Any:
    """Call a function in a new process, which ends when this one does.

    What it prints does not reach the terminal.

    Args:
        function: `package.module:function`, found where this process would find it. It is called
            with `arguments` and with `tell`, a function of one text.
        arguments: Values that JSON has.
        told: Called in this process with what the function tells.
        limit: Seconds after which the process is killed; none: it is waited for.

    Returns:
        What the function returns, a value that JSON has.

    Raises:
        ValueError: The function raises it.
        OSError: The function raises it.
        Failed: The function raises something else, or the process ends without an answer: by a
            signal, after `limit`, by `exit`.
    """
    job = {"function": function, "arguments": dict(arguments), "parent": os.getpid()}
    last: dict[str, Any] = {}
    with _process() as (process, said), _killed_after(limit, process) as late:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # Its status tells more.
            process.stdin.write(json.dumps(job).encode())
        for line in process.stdout:
            if line.endswith(b"\n"):
                last = json.loads(line)
                if "told" in last:
                    told(last["told"])
        if "told" in last or not last:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
    if "answer" in last:
        return last["answer"]
    if "refused" in last:
        raise ValueError(last["refused"])
    if "system" in last:
        raise OSError(*last["system"])
    if late.is_set():
        raise Failed(f"it did not finish within {limit:.0f} seconds and was stopped")
    raise Failed(last.get("failed") or _death(process.returncode, said))


def one_line(text: str) -> str:
    r"""The first sentence of a text, of one line, without escape sequences and not too long.

    Example:
        >>> one_line("\n\x1b[96mNo\x1b[0m  kernel. Ask for one\nTraceback")
        'No kernel'
    """
    lines = (" ".join(line.split()) for line in _ESCAPE.sub("", text).splitlines())
    line = _END_OF_SENTENCE.split(next(filter(None, lines), ""))[0]
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."


def in_one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    text = one_line(str(error))
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


@contextlib.contextmanager
def _process() -> Iterator[tuple[subprocess.Popen[bytes], deque[bytes]]]:
    """A process that waits for a job, and the last lines of what it says."""
    start = "from mkdext._system.alone import _answer; _answer()"
    code = f"import sys; sys.path[:] = {sys.path!r}; {start}"
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)  # type: ignore[call-overload]
    said: deque[bytes] = deque(maxlen=_KEPT_LINES)
    listener = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    try:
        listener.start()
        yield process, said
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        # Processes of its own may hold the pipe.
        listener.join(_PATIENCE)
        if not listener.is_alive():
            process.stderr.close()


@contextlib.contextmanager
def _killed_after(
    limit: float | None, process: subprocess.Popen[bytes]
) -> Iterator[threading.Event]:
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    clock = threading.Timer(threading.TIMEOUT_MAX if limit is None else limit, kill)
    clock.daemon = True
    clock.start()
    try:
        yield late
    finally:
        clock.cancel()


def _death(status: int, said: deque[bytes]) -> str:
    """How a process ended that gave no answer."""
    lines = (one_line(line.decode(errors="replace")) for line in reversed(said))
    last = next(filter(None, lines), "")
    if status >= 0:
        return f"its process ended with status {status}" + (f" ({last})" if last else "")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if name == "SIGKILL":
        return "its process was killed (SIGKILL), as happens when memory runs out"
    told = f": {last}" if name == "SIGABRT" and last else ""
    return f"its process crashed ({name}{told})"


def _answer() -> NoReturn:
    """What the process does."""
    job = json.loads(sys.stdin.readline())
    end_with(job["parent"])
    with contextlib.suppress(ImportError):  # Windows has no such file.
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A crash leaves no file.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)

    def send(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    message: dict[str, Any]
    try:
        module, _, name = job["function"].partition(":")
        function = getattr(import_module(module), name)
        answer = function(**job["arguments"], tell=lambda text: send({"told": text}))
        message = {"answer": answer}
    except ValueError as error:
        message = {"refused": str(error)}
    except OSError as error:
        filename = None if error.filename is None else str(error.filename)
        message = {"system": [error.errno, error.strerror or str(error), filename]}
    except BaseException as error:  # also SystemExit
        message = {"failed": str(error) if isinstance(error, Failed) else in_one_line(error)}
    send(message)
    os._exit(0)  # Whatever was loaded has no part in the end.
