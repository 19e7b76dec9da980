"""A function in a process of its own: its answer, or how the process ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkdext._system.alone import Failed, one_line, run_alone

FUNCTIONS = r"""
import os, signal, sys, time

def double(number, tell):
    print("noise")
    os.write(1, b"noise")
    tell("doubling")
    return {"result": 2 * number}

def crash(tell):
    os.kill(os.getpid(), signal.SIGSEGV)

def abort(tell):
    os.write(2, b"terminate called\n  what():  \x1b[31mbad_alloc\x1b[0m\n")
    os.abort()

def killed(tell):
    os.kill(os.getpid(), signal.SIGKILL)

def leave(tell):
    sys.exit(3)

def leave_at_once(tell):
    os.write(2, b"good bye\n")
    os._exit(3)

def refuse(tell):
    raise ValueError("no such thing")

def full(tell):
    raise OSError(28, "No space left on device", "/disk/file")

def fail(tell):
    raise RuntimeError("\x1b[96mStep 1\x1b[0m failed. Ask\nfor help")

def hang(tell):
    tell(str(os.getpid()))
    while True:
        pass
"""


@pytest.fixture(autouse=True)
def _functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_answer_comes_back_and_what_is_printed_does_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    told: list[str] = []
    assert run_alone("functions:double", {"number": 4}, told.append) == {"result": 8}
    assert told == ["doubling"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("crash", "its process crashed (SIGSEGV)"),
        ("abort", "its process crashed (SIGABRT: what(): bad_alloc)"),
        ("killed", "its process was killed (SIGKILL), as happens when memory runs out"),
        ("leave", "SystemExit: 3"),
        ("leave_at_once", "its process ended with status 3 (good bye)"),
        ("fail", "RuntimeError: Step 1 failed"),
    ],
)
def test_however_it_ends_there_is_one_sentence(function: str, message: str) -> None:
    with pytest.raises(Failed) as failure:
        run_alone(f"functions:{function}", {})
    assert str(failure.value).startswith(message)
    assert len(str(failure.value).splitlines()) == 1


def test_bad_input_and_errors_of_the_system_are_raised_as_what_they_are() -> None:
    with pytest.raises(ValueError, match=r"^no such thing$"):
        run_alone("functions:refuse", {})
    with pytest.raises(OSError, match="No space left on device: '/disk/file'") as failure:
        run_alone("functions:full", {})
    assert failure.value.errno == 28


def test_what_hangs_is_stopped() -> None:
    pid: list[str] = []
    with pytest.raises(Failed, match="it did not finish within 1 seconds and was stopped"):
        run_alone("functions:hang", {}, pid.append, limit=1)
    assert not is_running(int(pid[0]))


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from mkdext._system.alone import run_alone\n"
        "run_alone('functions:hang', {}, lambda pid: print(pid, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.wait()
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("it went on")


def test_long_texts_are_cut() -> None:
    assert one_line("x" * 1000) == "x" * 237 + "..."


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
