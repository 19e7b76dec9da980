"""A training, from its options to its summary."""

from __future__ import annotations

import contextlib
import math
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import nn

from mkdext import __version__
from mkdext._system.joining import device_of, joined
from mkdext._system.memory import PeakMemory
from mkdext._system.one_at_a_time import one_at_a_time
from mkdext._system.plugins import error_in_words
from mkdext._system.processes import processes
from mkdext._system.saved_state import SavedState
from mkdext._system.signals import StopSignals
from mkdext._system.terminal import Terminal
from mkdext.data import ImagePairs
from mkdext.models.convolutions import convolutions_on, stock_if
from mkdext.models.handling import evaluation_mode, unwrapped
from mkdext.training.assembly import Training
from mkdext.training.batch_norm import normalised_together
from mkdext.training.checks import check_teachers, rehearse
from mkdext.training.data_free_options import Options, Resolved
from mkdext.training.options import ResolvedTraining
from mkdext.training.options_file import config_of, origin
from mkdext.training.photographs import ValidationSet, held_out_sets, made_sets, validation_sets
from mkdext.training.run.directory import RunDirectory, TrainingStopped, flat
from mkdext.training.run.going_on import Done, Run, checked_run
from mkdext.training.run.live import Readings, TrainingProgress, reading_bar, tensorboard
from mkdext.training.run.page import save_page_of_now
from mkdext.training.run.report import (
    Summary,
    conclude,
    finished,
    save_samples,
    scores_in_words,
    tell_changes,
)
from mkdext.training.setup import open_photographs, prepare
from mkdext.training.sources import Source
from mkdext.training.stages import Stage
from mkdext.training.step import Batch, LifelessError, NonFiniteError, TrainingFailed
from mkdext.training.teacher_cache import digest_of
from mkdext.training.validation import measure, names_of

_SHARED_WITHIN = 10.0  # seconds that a shared file system may take to show a new file
_STILL = 20  # steps without a gradient, after which a student will have none

Callback = Callable[[int, Mapping[str, float], nn.Module], bool | None]
"""Sees the number of steps done, the last known values by name, and the student after each of its
steps; true ends the training there."""


@one_at_a_time
def train(
    options: Options,
    console: Console | None = None,
    resume: bool = False,
    callback: Callback | None = None,
) -> Summary:
    """Train a student, or continue a training that was interrupted.

    On a CPU a resumed training ends with the same weights, bit for bit, as one never stopped.
    Without data no photograph is opened but those to measure student and teacher on. Started in
    several processes by `torchrun`, all train one student, which up to rounding is that of one
    process; the first writes and shows.

    Args:
        options: What to do: `TrainOptions`, or `DataFreeOptions` to train without photographs.
        console: Where progress is shown; default: the standard output.
        resume: Continue the run in `options.out`, even a finished one; some options may differ from
            here on, such as `iterations` or `lr`. What that means for the learning rate:
            `mkdext.training.run.going_on`.
        callback: Called after each step of the student; it may end the training.

    Returns:
        What `summary.json` in the run directory holds: `method`, `scale`, `seed`, `iterations`,
        `seconds`, `parameters`, `convolutions` ("winograd" or "stock"), and `validation`: `psnr_y`
        and `ssim_y` by set and by way of enlarging (`bicubic`, `student`, `teacher`). Without data
        also `source` and `stages`, a list of first step and parts of the student each; with several
        scales the names of sets end with the scale. A teacher that the method has trained is called
        `privileged_teacher`, for it sees high resolution, and `privileged_teacher` holds its
        `iterations`, `seconds`, `parameters`.

    Raises:
        ValueError: Options, files or folders are not usable, or another training is at work in this
            process; nothing was done.
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is kept.
        CollapseError: A generator makes constant images; likewise.
        TrainingStopped: Ctrl-C, SIGTERM or SIGHUP; the checkpoint of the last step is written.
        LostProcess: One of several processes ended or does not answer.
    """
    with joined():
        terminal = shown_by_first(console)
        run = checked_run(options, resume)
        divide(run)
        summary = finished(run, terminal)
        if summary:
            return summary
        run.require_files()
        with stock_if(run.convolutions() == "stock"):
            return carry_out(prepare(run.options), run, terminal, callback=callback)


def shown_by_first(console: Console | None) -> Terminal:
    """The terminal of a training, which is silent but in the first of several processes."""
    return Terminal.of(console) if processes().is_first else Terminal(quiet=True)


def divide(run: Run[Any]) -> None:
    """Divide the batches of a run among the processes, which must all have begun the same.

    Raises:
        ValueError: They have not, or there are more than rows of a batch, or than GPUs.
    """
    together, options = processes(), run.options
    if together.size == 1:
        return
    device_of(options.device)
    versions = {
        "mkdext": __version__,
        "torch": str(torch.__version__),
        "convolutions": run.convolutions(),
        "is finished": run.directory.read_summary() is not None,
    }
    named = {f"`{name}`": value for name, value in flat(run.config)}
    together.require_same(versions | named)
    together.divide(options.batch_size)


def carry_out(
    training: Training,
    run: Run[Any],
    terminal: Terminal,
    pairs: ImagePairs | None = None,
    callback: Callback | None = None,
) -> Summary:
    """Train as it was prepared, or go on with it.

    Args:
        training: What `prepare` made.
        run: Where to write, and what is different from now on.
        terminal: Where progress is shown.
        pairs: Photographs to train on; none: those that the options name.
        callback: Called after each step of the student.
    """
    made, options, directory = training.made, training.options, run.directory
    sets = validation_sets(options, reading_bar(terminal)) if options.val_dir or not made else {}
    for remark in training.networks.remarks:
        terminal.say(remark)
    is_new = not directory.state.exists()
    if is_new:
        check_teachers(training, sets)
    if made:
        sets |= made_sets(made.options, training.teachers)
    elif isinstance(options, ResolvedTraining) and not sets:
        sets = held_out_sets(options, training.teachers, reading_bar(terminal))
    if is_new:
        rehearse(training, sets, origin(options, 0))
    source = made or open_photographs(training, pairs, terminal)
    seconds: dict[str, float] = {}
    networks = training.by_network.items()
    processes().require_same(
        {"teacher": [digest_of(t) for t in training.networks.teachers.values()]}
    )
    with run.opened():
        require_one_folder(directory)
        states = {name: begun(directory, stages, options) for name, stages in networks}
        _, student_done = states["student"]
        tell_changes(run, training.student_stages, student_done.step, terminal)
        terminal.say(f"convolutions: {convolutions_on(options.device)}")
        directory.keep_metrics_until(student_done.step)
        for name, stages in networks:
            trainer = Trainer(training, stages, source, directory, sets, terminal, callback)
            done = trainer.run(*states[name])
            seconds[name] = done.seconds
        return conclude(training, trainer.stage, directory, sets, done.step, seconds, terminal)


def require_one_folder(directory: RunDirectory) -> None:
    """Check that all processes see the folder that the first one has opened.

    Raises:
        ValueError: One does not.
    """
    together = processes()
    if together.size == 1:
        return
    sign = directory.root / f".seen-{together.all_of(uuid.uuid4().hex)[0]}"
    if together.is_first:
        sign.touch()
    together.agreed(0)
    until = time.monotonic() + _SHARED_WITHIN
    while not sign.exists() and time.monotonic() < until:
        time.sleep(0.1)
    seen = together.all_of((socket.gethostname(), sign.exists()))
    if together.is_first:
        sign.unlink()
    blind = [f"{rank} on {host}" for rank, (host, is_there) in enumerate(seen) if not is_there]
    if blind:
        raise ValueError(
            f"`out` {directory.root} must be one folder for all processes, on a file system that "
            f"they share; process {' and '.join(blind)} does not see what process 0 writes there"
        )


def begun(
    directory: RunDirectory, stages: Sequence[Stage], options: Resolved
) -> tuple[SavedState | None, Done]:
    """What the checkpoint of a network holds, and how far it has come."""
    checkpoint = directory.checkpoint(stages[0].network_name)
    if not checkpoint.state.exists():
        return None, Done()
    state = checkpoint.load()
    return state, Done.of(state, options, stages[-1].schedule.end)


class Trainer:
    """Takes the steps of one network: stages, metrics, validations, checkpoints, stops."""

    def __init__(
        self,
        training: Training,
        stages: Sequence[Stage],
        source: Source,
        directory: RunDirectory,
        sets: Mapping[str, ValidationSet],
        terminal: Terminal,
        callback: Callback | None = None,
    ) -> None:
        """Take what is trained on what.

        Args:
            training: All that was prepared.
            stages: Those of the network.
            source: What to learn from.
            directory: Where to write; it is opened.
            sets: What a student is measured on.
            terminal: Where progress is shown.
            callback: Called after each step of a student.
        """
        self.training = training
        self.options = training.options
        self.stages = list(stages)
        self.stage = self.stages[0]
        self.total = self.stages[-1].schedule.end
        self.source = source
        self.directory = directory
        self.history = directory.history
        self.sets = sets if self.stage.is_student else {}
        self.terminal = terminal
        self.callback = callback if self.stage.is_student else None

    def run(self, state: SavedState | None, done: Done) -> Done:
        """Take all steps that are left, stage after stage.

        Args:
            state: What the network's checkpoint holds, if there is one.
            done: How far it has come.

        Raises:
            TrainingFailed: A step did; the last checkpoint is kept.
            TrainingStopped: A signal did; the checkpoint of the last step is written.
        """
        self._restore(state, done)
        device, patches = torch.device(self.options.device), self.options.batch_size
        events = self.directory.events(self.stage.network_name)
        self.memory = PeakMemory(device)
        self.memory.start()
        self.readings = Readings(done.values, self._check)
        self.still = 0  # steps in a row without a gradient
        self.begin = time.monotonic() - done.seconds
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            StopSignals() as stop,
            tensorboard(events, done.step) as self.add_events,
            TrainingProgress(
                self.terminal, done.step, self.total, patches, self.stage.title
            ) as self.progress,
        ):
            if not done.step and self.training.made:
                save_samples(self.training, self.stage.networks, self.directory, self.sets, 0)
            is_due = done.step and self._is_due(self.options.validate_every, done.step)
            # The first process may be writing the metrics that the others would read.
            is_missing = not processes().is_first or not self.directory.has_validation(done.step)
            if self.sets and is_due and processes().all_of(is_missing)[0]:
                self._validate(done.step)
            ends = done.step == self.total
            for stage in self.stages[self.stages.index(self.stage) :]:
                if ends:
                    break
                self._enter(stage)
                batches = self.source.batches(done.step, stage.schedule.end)
                while not ends and done.step < stage.schedule.end:
                    done, ends = self._take(done.step, batches, stop)
            self.stage.end()
        return done._replace(seconds=time.monotonic() - self.begin)

    def _restore(self, state: SavedState | None, done: Done) -> None:
        """Put the network back to its checkpoint; without one it is at its beginning."""
        # A stage begins with its first step: a checkpoint at a border is of the stage before.
        self.stage = next(stage for stage in self.stages if done.step <= stage.schedule.end)
        self.stage.begin(None)
        self.directory.keep_metrics_until(done.step, self.stage.counter)
        if state is not None:
            self.stage.load(state)
            if self.stage.is_student:
                self.source.load(state)
        self._share()
        if state is None:
            return
        if done.step < self.total:
            self.terminal.say(
                f"continuing after step {done.step} of {self.total}{self.stage.whose}"
            )

    def _enter(self, stage: Stage) -> None:
        """Begin a stage after the one before."""
        if stage is self.stage:
            return
        before, self.stage = self.stage, stage
        said = stage.begin(before)
        self._share()
        if said:
            self.source.end_part()
            self.terminal.say(said)

    def _share(self) -> None:
        """Begin a stage with the same numbers in all processes, whatever their processors are."""
        for module in self.stage.modules:
            processes().broadcast([*module.parameters(), *module.buffers()])
        known = [*self.stage.modules, *self.training.teachers.values()]
        self.normalised = normalised_together(known)

    def _take(self, step: int, batches: Iterator[Batch], stop: StopSignals) -> tuple[Done, bool]:
        """Take one step, and do all that is due after it.

        Returns:
            How far it has come, and whether no step follows.
        """
        options, taken = self.options, step + 1
        ends = taken == self.total
        logs = self._is_due(options.log_every, taken)
        saves = self._is_due(options.checkpoint_every, taken)
        # A network of the user's may draw at random, for dropout: of other rows, other numbers.
        own = processes().rank << 20
        torch.manual_seed((options.seed + (step << 32) + own) % 2**63)
        with self._explained(taken):
            batch = next(batches)
            with self.normalised:
                values = self.stage.take(step, batch)
                if self.stage.is_student:
                    values |= self.source.improve(step, self.stage.networks)
            stopped = processes().agreed(stop.received or 0)
            self.readings.add(step, values)
            if logs or saves or stopped:
                self.readings.wait()
        remark = self.stage.remark(ends)
        if remark:
            self.terminal.say(remark)
        latest = self.readings.values | self.stage.pace(step)
        self.progress.update(taken, {n: latest[n] for n in self.stage.shown if n in latest})
        if self.callback:
            asked = self.callback(taken, latest, unwrapped(self.stage.network))
            if processes().agreed(bool(asked)):
                ends = logs = saves = True
                with self._explained(taken):
                    self.readings.wait()
        if logs:
            speed, peak = round(self.progress.patches_per_second, 1), self.memory.bytes()
            costs = {"patches_per_second": speed, "peak_bytes": peak}
            told = processes().averaged_numbers(self.stage.statistics(batch))
            self._record({"step": taken, **latest, **costs, **told})
        done = Done(taken, time.monotonic() - self.begin, latest)
        if saves or stopped:
            self.directory.sync_metrics()
            self._save(done)
        if stopped:
            processes().agreed(0)  # The first one has written.
            after = f"step {taken}{self.stage.whose}"
            raise TrainingStopped(stopped, after, self.directory.root)
        if self.sets and (ends or self._is_due(options.validate_every, taken)):
            self._validate(taken)
        return done, ends

    def _is_due(self, every: int, step: int) -> bool:
        return step % every == 0 or step == self.total

    def _check(self, values: Mapping[str, float]) -> None:
        """Look at the numbers of a step, when they have arrived."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name.replace('_', ' ')} is {value}")
        still = values.get("student_gradient") == 0 < values["reconstruction"]
        self.still = self.still + 1 if still else 0
        if self.still == _STILL:
            raise LifelessError(
                f"the student learns no more: for {_STILL} steps its gradient has been 0, as where "
                "all its ReLUs are shut"
            )
        self.source.check(values)

    def _record(self, values: Mapping[str, Any]) -> None:
        values = self.stage.recorded(values)
        self.directory.add_metrics(values)
        self.add_events(values)

    def _save(self, done: Done) -> None:
        """Write all that `_restore` needs."""
        taken_with = {
            "options": dict(flat(config_of(self.options))),
            "convolutions": convolutions_on(self.options.device),
        }
        state = {**done._asdict(), **taken_with, **self.stage.state_dict()}
        if self.stage.is_student:
            state |= self.source.state_dict()
        made_by = origin(self.options, done.step, self.history)
        checkpoint = self.directory.checkpoint(self.stage.network_name)
        checkpoint.save(state, unwrapped(self.stage.network), made_by)

    def _validate(self, step: int) -> None:
        """Measure the student on every set, keep samples, and tell of it."""
        networks = self.stage.networks
        with self._explained(step), evaluation_mode(self.stage.network):
            scores = {
                name: measure(networks[scale], pairs, scale, names_of(pairs))
                for name, (scale, pairs, _) in self.sets.items()
            }
        self.terminal.say(f"step {step}: {scores_in_words(scores)}")
        save_samples(self.training, networks, self.directory, self.sets, step)
        self._record({"step": step, "validation": scores})
        if step < self.total and processes().is_first:
            save_page_of_now(self.training, self.stage, self.directory, self.sets)
        # Whole pictures take more than a step does.
        self.memory.start()

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Tell of an error in which step, counted from 1, it was, and what to change."""
        try:
            yield
        except SystemExit as error:
            # Of a network's code; it would end the command as if all was well.
            raise TrainingFailed(f"step {step}: {error_in_words(error)}") from error
        except TrainingFailed as error:
            # A GPU's numbers arrive some steps later.
            failed = self.readings.failed
            at = f"step {step if failed is None else failed + 1}{self.stage.whose}"
            is_kept = self.directory.checkpoint(self.stage.network_name).state.exists()
            kept = f"; {self.directory.root} keeps the last checkpoint" * is_kept
            advice = self.stage.advice(error)
            todo = f". {advice}, and give another `out`" if advice else ""
            raise type(error)(f"{at}: {error}{kept}{todo}") from None
