"""The steps of a training, one after the other: metrics, validations, checkpoints, stops."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mkdext._system.memory import PeakMemory
from mkdext._system.terminal import Terminal
from mkdext.models.user_code import in_words
from mkdext.training.options import ResolvedShared
from mkdext.training.options_file import config_of
from mkdext.training.progress import TrainingProgress
from mkdext.training.readings import Readings
from mkdext.training.run.going_on import require_same_run
from mkdext.training.run_directory import RunDirectory, flat
from mkdext.training.saved_state import SavedState
from mkdext.training.signals import StopSignals, TrainingStopped
from mkdext.training.steps import NonFiniteError, TrainingFailed
from mkdext.training.tensorboard import tensorboard


class Done(NamedTuple):
    """How far a training has come."""

    step: int
    """Steps done."""
    seconds: float
    """Time spent on them."""
    values: dict[str, float]
    """The last value of everything that is logged."""

    @classmethod
    def of(cls, state: SavedState, options: ResolvedShared, iterations: int) -> Done:
        """What a checkpoint tells that `Loop.state` began.

        Raises:
            ValueError: It is not that of a training with these options and so many steps.
        """
        require_same_run(state, options)
        step, seconds = state.number("step", 1), state.entry("seconds", float)
        if step > iterations:
            raise ValueError(
                f"{state.where} is of step {step}, beyond the {iterations} steps asked for; ask "
                f"for {step} or more"
            )
        if not 0 <= seconds < math.inf:
            raise state.unfit(f"does not fit ('seconds' is {seconds})")
        return cls(step, seconds, state.numbers("values"))


class Loop(ABC):
    """A training. A subclass says what a step is, and what is kept of it."""

    title: ClassVar[str] = "training"
    """What the progress is called."""
    whose: ClassVar[str] = ""
    """Whose steps they are, where it is not the student's."""
    shown: ClassVar[tuple[str, ...]]
    """Values that the progress shows, where there are such."""

    def __init__(
        self,
        options: ResolvedShared,
        iterations: int,
        run: RunDirectory,
        done: Done,
        console: Terminal,
    ) -> None:
        """Take what every training has.

        Args:
            options: How often what is done.
            iterations: Steps in all.
            run: Where to write; it is opened.
            done: What was done before.
            console: Where progress is shown.
        """
        self.options = options
        self.iterations = iterations
        self.before = done
        self.console = Terminal.of(console)
        self.run_directory = run
        self.history = run.history
        """What the options were before."""

    @property
    def events(self) -> Path:
        """Folder for TensorBoard."""
        return self.run_directory.root / "tensorboard"

    @property
    @abstractmethod
    def lr(self) -> float:
        """Learning rate of the last step."""

    @abstractmethod
    def compute(self, step: int) -> dict[str, Tensor]:
        """Take a step, from 0, and return its scalars by name.

        Raises:
            TrainingFailed: Going on would lead nowhere.
        """

    def check(self, values: Mapping[str, float]) -> None:
        """Look at the numbers of a step.

        Raises:
            TrainingFailed: Going on would lead nowhere.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name.replace('_', ' ')} is {value}")

    def statistics(self) -> dict[str, float]:
        """What else is logged of the last step."""
        return {}

    def record(self, values: Mapping[str, Any]) -> None:
        """Add to the metrics of the run what has a `step`."""
        self.run_directory.add_metrics(values)

    def state(self, done: Done) -> dict[str, Any]:
        """What every checkpoint holds."""
        return {**done._asdict(), "options": dict(flat(config_of(self.options)))}

    @abstractmethod
    def save(self, done: Done) -> None:
        """Write a checkpoint."""

    def validate(self, step: int) -> dict[str, Any]:
        """Measure after `step` steps and tell of it; what is logged of that, or nothing."""
        return {}

    @abstractmethod
    def explained(self, error: TrainingFailed, step: int) -> str:
        """An error in the step of this number, counted from 1, with what to change."""

    def run(self) -> float:
        """Take all steps that are left.

        Returns:
            Seconds spent on all steps, with those before.

        Raises:
            TrainingFailed: A step did; the last checkpoint is kept.
            TrainingStopped: Ctrl-C, SIGTERM or SIGHUP; the checkpoint of the last step is written.
        """
        options, first, total = self.options, self.before.step, self.iterations
        device = torch.device(options.device)
        memory = PeakMemory(device)
        memory.start()
        readings = Readings(self.before.values, self.check)
        begin = time.monotonic() - self.before.seconds
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            StopSignals() as stop,
            tensorboard(self.events, first) as add_events,
            TrainingProgress(
                self.console, first, total, options.batch_size, self.title
            ) as progress,
        ):

            def record(values: dict[str, Any]) -> None:
                self.record(values)
                add_events(values)

            def validate(step: int) -> None:
                try:
                    measured = self.validate(step)
                except TrainingFailed as error:
                    raise type(error)(self.explained(error, step)) from None
                if measured:
                    record({"step": step, **measured})
                # Whole pictures take more than a step does.
                memory.start()

            def validation_is_due(step: int) -> bool:
                return step % options.validate_every == 0 or step == total

            if first and validation_is_due(first) and not self.run_directory.has_validation(first):
                validate(first)
            for step in range(first, total):
                done = step + 1
                log_is_due = done % options.log_every == 0 or done == total
                # A network of the user's may draw at random, for dropout.
                torch.manual_seed((options.seed + (step << 32)) % 2**63)
                try:
                    values = self.compute(step)
                    stopped = stop.received
                    checkpoint_is_due = (
                        done % options.checkpoint_every == 0 or done == total or stopped
                    )
                    readings.add(step, values)
                    if log_is_due or checkpoint_is_due:
                        readings.wait()
                except SystemExit as error:
                    # Of a network's code; it would end the command as if all was well.
                    raise TrainingFailed(f"step {step + 1}: {in_words(error)}") from error
                except TrainingFailed as error:
                    failed = step if readings.failed is None else readings.failed
                    raise type(error)(self.explained(error, failed + 1)) from None
                latest = readings.values | {"lr": self.lr}
                progress.update(done, {n: latest[n] for n in self.shown if n in latest})
                if log_is_due:
                    speed, peak = round(progress.patches_per_second, 1), memory.bytes()
                    costs = {"patches_per_second": speed, "peak_bytes": peak}
                    record({"step": done, **latest, **costs, **self.statistics()})
                if checkpoint_is_due:
                    self.run_directory.sync_metrics()
                    self.save(Done(done, time.monotonic() - begin, latest))
                if stopped:
                    raise TrainingStopped(
                        stopped, f"step {done}{self.whose}", self.run_directory.root
                    )
                if validation_is_due(done):
                    validate(done)
        return time.monotonic() - begin
