"""What a user sees of a training while it runs: the numbers of steps, a bar, TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from mkdext._system.processes import processes
from mkdext._system.streams import printable
from mkdext._system.terminal import Terminal, Words, progress_bar, track

_AHEAD = 2  # steps that a GPU's numbers are read after it was given them
_PLAIN_SECONDS = 30.0


class Readings:
    """What the steps so far have come to.

    On a CPU the numbers of a step are there at once. From a GPU they are copied while it goes on,
    and read when they have arrived, two steps later at most.

    Attributes:
        values: The last number read of every name.
        failed: The step whose numbers were refused, if some were.
    """

    def __init__(
        self, values: Mapping[str, float], check: Callable[[Mapping[str, float]], None]
    ) -> None:
        """Begin with the values of a training that goes on.

        Args:
            values: They serve until there are newer ones.
            check: Called with the numbers of each step; raises if they are not to be accepted.
        """
        self.values = dict(values)
        self.failed: int | None = None
        self._check = check
        self._coming: deque[tuple[int, list[str], Arrival]] = deque()

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take the values of a step, scalars on one device.

        `check` may raise, for this step or one before.
        """
        together = torch.stack(list(values.values()))
        self._coming.append((step, list(values), Arrival.of(together)))
        while len(self._coming) > _AHEAD or (self._coming and self._coming[0][2].is_there()):
            self._read()

    def wait(self) -> None:
        """Read all that was added; `check` may raise."""
        while self._coming:
            self._read()

    def _read(self) -> None:
        self.failed, names, arrival = self._coming.popleft()
        numbers = dict(zip(names, arrival.numbers(), strict=True))
        self._check(numbers)
        self.failed = None
        self.values |= numbers


class Arrival(NamedTuple):
    """Numbers on their way from the device."""

    host: Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, numbers: Tensor) -> Arrival:
        """Send numbers `[N]` on their way."""
        if not numbers.is_cuda:
            return cls(numbers, None)
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        return cls(host, torch.cuda.current_stream(numbers.device).record_event())

    def is_there(self) -> bool:
        """Whether `numbers` would not wait.

        Several processes read them at the same step, so that all see the same errors.
        """
        if self.copied is None or processes().size > 1:
            return self.copied is None
        return bool(self.copied.query())  # type: ignore[no-untyped-call]

    def numbers(self) -> list[float]:
        """Wait for them."""
        if self.copied:
            self.copied.synchronize()
        numbers: list[float] = self.host.tolist()
        return numbers


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


def reading_bar(console: Terminal) -> Callable[[str], Callable[[Iterable[Path]], Iterable[Path]]]:
    """Given a title, a wrapper that shows how far an iteration over files has come."""

    def titled(title: str) -> Callable[[Iterable[Path]], Iterable[Path]]:
        return lambda files: track(list(files), f"reading {title}", console)

    return titled


Write = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def tensorboard(folder: Path, first: int) -> Iterator[Write]:
    """A function that adds one record of metrics to event files in `folder`.

    Events after step `first`, from a run that was interrupted, count no more. Where the package
    `tensorboard` is missing the function does nothing, and where another process writes them.
    """
    if importlib.util.find_spec("tensorboard") is None or not processes().is_first:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=first + 1) as writer:

        def write(record: Mapping[str, Any]) -> None:
            for name, value in _flat(record):
                writer.add_scalar(printable(name), value, record["step"])

        yield write


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif name != "step" and isinstance(value, int | float):
            yield prefix + name, value
