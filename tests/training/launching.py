"""Processes that train together, as `torchrun` would start them, without importing PyTorch anew."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["mkdext.train", "mkdext.datafree"])
_LIMIT = 500  # seconds

_CODE = """
import os, sys
os.environ.update({environment!r})
os.environ.pop("WORLD_SIZE", None) if {alone} else None
out = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(out, 1), os.dup2(out, 2)
sys.argv[:] = {argv!r}
import torch
torch.set_num_threads(1)
{imports}
from mkdext.training import checks, setup
setup.estimate_memory = checks.require_strong_teacher = lambda *given: None
{before}
sys.exit({call})
"""


@dataclasses.dataclass
class Launched:
    """Processes at work."""

    processes: list[Any]
    logs: list[Path]

    def said(self, rank: int = 0) -> str:
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""

    def ended(self) -> list[int]:
        """Their exit statuses, negative for signals."""
        until = time.monotonic() + _LIMIT
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0.1))
        hung = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        assert not hung, f"{hung} hang: {[self.said(rank) for rank in hung]}"
        return [process.exitcode for process in self.processes]

    def wait_for(self, path: Path, text: str) -> None:
        """Wait until a file has a text."""
        until = time.monotonic() + _LIMIT
        while not (path.exists() and text in path.read_text(encoding="utf-8")):
            assert any(process.is_alive() for process in self.processes), self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.02)

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.processes[rank].pid, number)


@contextlib.contextmanager
def launched(
    size: int,
    command: str,
    flags: Sequence[str],
    logs: Path,
    environment: Mapping[str, str] | None = None,
    flags_of: Mapping[int, Sequence[str]] | None = None,
    before: str = "",
) -> Iterator[Launched]:
    """Start a command in several processes, and end them afterwards, whatever happens.

    Args:
        size: How many; 1: as without a launcher.
        command: `train` or `datafree`.
        flags: Its flags.
        logs: Folder for what each says.
        environment: Variables, which may be another `MASTER_PORT`.
        flags_of: More flags of some.
        before: Code to be run in each before the command.
    """
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{rank}.txt" for rank in range(size)]
    code = [
        _CODE.format(
            environment={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                "MKDEXT_PROCESS_TIMEOUT": "60",
                **(environment or {}),
            },
            alone=size == 1,
            log=str(files[rank]),
            argv=[command],
            imports=f"from mkdext import {command}",
            before=before,
            call=f"{command}.main({[*flags, *(flags_of or {}).get(rank, ())]!r})",
        )
        for port in [free_port()]
        for rank in range(size)
    ]
    with _started(code, files) as processes:
        yield processes


@contextlib.contextmanager
def scripted(size: int, script: Path, arguments: Sequence[str], logs: Path) -> Iterator[Launched]:
    """Start a script in several processes, with their rank and number as first arguments."""
    files = [logs / f"{rank}.txt" for rank in range(size)]
    code = [
        _CODE.format(
            environment={"GLOO_SOCKET_IFNAME": "lo"},
            alone=False,
            log=str(files[rank]),
            argv=[str(script), str(rank), str(size), *arguments],
            imports="import runpy",
            before=f"runpy.run_path({str(script)!r}, run_name='__main__')",
            call="0",
        )
        for rank in range(size)
    ]
    with _started(code, files) as processes:
        yield processes


@contextlib.contextmanager
def _started(code: Sequence[str], logs: list[Path]) -> Iterator[Launched]:
    processes = [_FORKS.Process(target=exec, args=(text, {})) for text in code]
    try:
        for process in processes:
            process.start()
        yield Launched(processes, logs)
    finally:
        for process in processes:
            if process.pid and process.is_alive():
                process.kill()
                process.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
