"""Training cells, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.progress import BarColumn, TaskProgressColumn, TimeElapsedColumn

from mkdext._system.errors import WorkStopped
from mkdext._system.files import write_text
from mkdext._system.processors import physical_cores
from mkdext._system.signals import StopSignals
from mkdext._system.terminal import Terminal, Words, progress_bar
from mkdext.comparison.cells import REFERENCE, Cell
from mkdext.models.convolutions import Convolutions
from mkdext.training.options_file import config_of
from mkdext.training.run.directory import RunDirectory

_POLL_SECONDS = 1.0
_PLAIN_SECONDS = 30.0
_TAIL_BYTES = 8192  # of the metrics, which hold a last line of a few hundred


def run_cells(
    cells: Sequence[Cell],
    convolutions: Convolutions,
    jobs: int,
    out: Path,
    console: Terminal,
    finished: Callable[[], None],
) -> dict[str, str]:
    """Train the cells that are not finished, each as by `python -m mkdext.train`.

    Args:
        cells: What to train, in order.
        convolutions: Which all of them take.
        jobs: Processes at once; the processor's cores are divided among them.
        out: The folder of the comparison, for messages.
        console: Where progress is shown.
        finished: Called whenever a cell came to its end.

    Returns:
        Why a cell failed, for those that did; the others were trained all the same.

    Raises:
        WorkStopped: Ctrl-C, SIGTERM or SIGHUP; all processes have ended.
    """
    threads = _threads(jobs)
    pending = [cell for cell in cells if not cell.finished]
    running: list[_Process] = []
    failures: dict[str, str] = {}
    with StopSignals() as stop, _Progress(cells, jobs, console) as progress:
        try:
            while pending or running:
                while len(running) < jobs and (cell := _startable(pending, running)):
                    pending.remove(cell)
                    running.append(_Process(cell, convolutions, threads))
                time.sleep(_POLL_SECONDS)
                progress.update()
                for process in [p for p in running if p.popen.poll() is not None]:
                    running.remove(process)
                    process.popen.wait()
                    if process.popen.returncode or not process.cell.finished:
                        failures[str(process.cell)] = process.message()
                        progress.say(f"{process.cell} failed: {process.message()}")
                        progress.leave_out(process.cell)
                    else:
                        progress.say(f"{process.cell} is finished")
                        finished()
                if stop.received:
                    raise WorkStopped(
                        stop.received, f"stopped; the same command continues from {out}"
                    )
        finally:
            for process in running:
                process.popen.terminate()
            for process in running:
                process.popen.wait()
    return failures


def _threads(jobs: int) -> int:
    share = max(physical_cores() // jobs, 1)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdecimal() and int(given) else share


class _Process:
    """A cell in training."""

    def __init__(self, cell: Cell, convolutions: Convolutions, threads: int) -> None:
        self.cell = cell
        run = cell.run
        run.root.mkdir(parents=True, exist_ok=True)
        if not run.config.exists():
            config = yaml.safe_dump(config_of(cell.options), sort_keys=False)
            write_text(run.config, config)
        self._log = run.root / "output.log"
        self._log_before = self._log.stat().st_size if self._log.exists() else 0
        command = ["mkdext._cli.cell", str(os.getpid()), str(run.root), convolutions]
        with self._log.open("a", encoding="utf-8") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )

    def message(self) -> str:
        """What a training that failed said last."""
        with self._log.open("rb") as file:
            file.seek(self._log_before)
            said = file.read().decode(errors="replace").strip()
        _, found, message = said.rpartition("mkdext.train: ")
        if found:
            return message
        last = next(
            (line for line in reversed(said.splitlines()) if re.search(r"\w", line)),
            "it said nothing",
        )
        return f"exit status {self.popen.returncode}, {last} ({self._log})"


def _startable(pending: Sequence[Cell], running: Sequence[_Process]) -> Cell | None:
    """The next cell that need not wait for another to fill the teacher's cache that both use."""
    filling = {
        process.cell.options.teacher_cache
        for process in running
        if _uses_cache(process.cell) and _latest(process.cell.run) is None
    }
    for cell in pending:
        if not _uses_cache(cell) or cell.options.teacher_cache not in filling:
            return cell
    return None


def _uses_cache(cell: Cell) -> bool:
    options = cell.options
    with_maps = options.method != REFERENCE and not options.privileged
    return options.teacher_cache is not None and with_maps


class _Latest(NamedTuple):
    """How far a training has come."""

    step: int
    """Steps done."""
    teacher_step: int
    """Steps done of the method's own teacher, while these are not over."""
    seconds_per_step: float
    """As it was since the training last began or went on."""


def _latest(run: RunDirectory) -> _Latest | None:
    if not run.metrics.exists():
        return None
    with run.metrics.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
            teacher_step = record.get("privileged_step", 0)
            return _Latest(record["step"], teacher_step, 1 / record["patches_per_second"])
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # Cut off, or the line of a validation.
    return None


class _Progress:
    """A bar over all steps with the time left; plain lines without a terminal."""

    def __init__(self, cells: Sequence[Cell], jobs: int, console: Terminal) -> None:
        self._cells = list(cells)
        self._jobs = jobs
        self._console = console
        self._said = time.monotonic()
        self._bar = progress_bar(
            console, Words(), BarColumn(), TaskProgressColumn(), Words("text"), TimeElapsedColumn()
        )
        self._task = self._bar.add_task("comparing", total=None, text="")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def leave_out(self, cell: Cell) -> None:
        """Do not wait for a cell that failed."""
        self._cells.remove(cell)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.say(text)

    def update(self) -> None:
        """Look how far the cells have come."""
        done: dict[Cell, int] = {}
        speeds: dict[tuple[str, str], list[float]] = {}
        for cell in self._cells:
            latest = _latest(cell.run)
            done[cell] = _all_steps(cell) if cell.finished else _done(cell, latest)
            if latest:
                seconds = cell.options.batch_size * latest.seconds_per_step
                speeds.setdefault(_kind(cell), []).append(seconds)
        total = sum(_all_steps(cell) for cell in self._cells)
        finished = sum(cell.finished for cell in self._cells)
        text = f"{finished}/{len(self._cells)} trainings, {sum(done.values())}/{total} steps"
        if speeds:
            means = {kind: sum(values) / len(values) for kind, values in speeds.items()}
            text += f", {_in_words(_seconds_left(done, means, self._jobs))} left"
        self._bar.update(self._task, total=total, completed=sum(done.values()), text=text)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= _PLAIN_SECONDS:
            self._said = now
            self.say(text)


def _all_steps(cell: Cell) -> int:
    return cell.teacher_steps + cell.options.iterations


def _done(cell: Cell, latest: _Latest | None) -> int:
    if latest is None:
        return 0
    return cell.teacher_steps + latest.step if latest.step else latest.teacher_step


def _kind(cell: Cell) -> tuple[str, str]:
    """What cells of about the same speed have in common."""
    return cell.options.student, cell.options.method


def _seconds_left(
    done: Mapping[Cell, int], speeds: Mapping[tuple[str, str], float], jobs: int
) -> float:
    """Seconds until the last step of all; cells of unknown speed are like the known ones.

    Args:
        done: Steps done by cell.
        speeds: Seconds a step.
        jobs: Cells that are trained at once.
    """
    typical = sum(speeds.values()) / len(speeds)
    left = [
        (_all_steps(cell) - steps) * speeds.get(_kind(cell), typical)
        for cell, steps in done.items()
    ]
    return max(sum(left) / jobs, *left)


def _in_words(seconds: float) -> str:
    """A duration.

    Example:
        >>> _in_words(3720), _in_words(59)
        ('1 h 02 min', '59 s')
    """
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min" if minutes >= 2 else f"{seconds:.0f} s"
