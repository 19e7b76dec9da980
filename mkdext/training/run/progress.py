"""What a user sees while a training runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mkdext._system.terminal import Terminal, Words, progress_bar
from mkdext._system.terminal import track as shown_track

_PLAIN_SECONDS = 30.0

_Pair = TypeVar("_Pair")


class TrainingProgress:
    """A bar with losses, learning rate, speed and time left; plain lines without a terminal.

    Use it as a context manager.
    """

    def __init__(
        self, console: Terminal, first: int, total: int, patches: int, title: str = "training"
    ) -> None:
        """Begin at step `first` of `total`, with `patches` a step."""
        self.console = console
        self._title = title
        self._first = first
        self._total = total
        self._patches = patches
        self._begin = self._said = time.monotonic()
        self._bar = progress_bar(
            console,
            Words(),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            Words("text"),
            TimeElapsedColumn(),
            Words("rest"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._task = self._bar.add_task(title, total=total, completed=first, text="", rest="left")

    def __enter__(self) -> TrainingProgress:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    @property
    def patches_per_second(self) -> float:
        """Mean speed since the beginning."""
        return self._patches_done / (time.monotonic() - self._begin)

    def update(self, done: int, values: Mapping[str, float]) -> None:
        """Show that `done` steps are done, with the values of the last one."""
        self._patches_done = (done - self._first) * self._patches
        text = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
        text += f"  {self.patches_per_second:.0f} patches/s"
        self._bar.update(self._task, completed=done, text=text)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= _PLAIN_SECONDS:
            self._said = now
            left = (now - self._begin) / (done - self._first) * (self._total - done)
            self.say(f"{self._title}: step {done}/{self._total}  {text}  {left:.0f} s left")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.say(text)


def measuring(console: Terminal, pairs: Sequence[_Pair], what: str) -> Iterable[_Pair]:
    """Pictures to measure on, with a bar that shows how far it has come."""
    return shown_track(pairs, f"measuring {what}", console)


def track(console: Terminal) -> Callable[[str], Callable[[Iterable[Path]], Iterable[Path]]]:
    """Given a title, a wrapper that shows how far an iteration over files has come."""

    def titled(title: str) -> Callable[[Iterable[Path]], Iterable[Path]]:
        return lambda files: shown_track(list(files), f"reading {title}", console)

    return titled
