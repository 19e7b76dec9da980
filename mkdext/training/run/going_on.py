"""Going on with a run: with the options that it was begun with, or with others from here on.

Every step is a function of the options and of the step alone, and so it is after a change. With
`iterations` of another number the cosine of the learning rate, that of the weight of the
distillation loss and the line of `imitation` are those of that number: at the step from which it
holds the rate jumps to where a training of that length would be. A warm-up, the steps on the
distillation loss alone (`hint_share`) and those of a privileged teacher keep their length in steps.
A run that is extended therefore ends as one of that length from the beginning would, where nothing
falls along a cosine or a line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_args, overload

from mkdext._system.device import checked_device
from mkdext._system.files import check_writable
from mkdext._system.plugins import absolute
from mkdext._system.processes import processes
from mkdext._system.saved_state import SavedState
from mkdext.models.convolutions import Convolutions, convolutions_on
from mkdext.training.data_free_options import DataFreeOptions, Options, ResolvedDataFree
from mkdext.training.options import ResolvedShared, ResolvedTraining, SharedOptions, TrainOptions
from mkdext.training.options_file import OptionsFile, as_flags, config_of
from mkdext.training.run.directory import (
    Changes,
    RunDirectory,
    WatchedRun,
    changes_in_words,
    flat,
)
from mkdext.training.schedule import Phase

_FREE = frozenset(
    {
        *("iterations", "lr", "lr_min", "generator.lr", "device"),
        *("validate_every", "checkpoint_every", "log_every"),
        *("train_dir", "train_low_dir", "val_dir", "bad_images"),
        *("teacher_cache", "teacher_cache_keeps", "teacher_cache_crops", "teacher_compile"),
    }
)
_RATES = frozenset({"iterations", "lr", "lr_min", "generator.lr"})
_MOVABLE = frozenset({"student", "teacher", "teacher_weights", "method", "loss"})

_FIXED = {
    "student": "what was trained are its weights",
    "student_weights": "the student began with them",
    "student_init": "the student has begun",
    "teacher": "the student has learned from it",
    "teacher_weights": "the student has learned from them",
    "scale": "the networks are for it",
    "seed": "weights and patches were drawn from it",
    "method": "the losses so far were its own",
    "batch_size": "the steps so far were of it",
    "patch_size": "the steps so far were of it",
    "warmup": "its steps are at the beginning",
    "hint_share": "the steps on the distillation loss alone keep their number",
    "privileged_iterations": "the student begins where its teacher ends",
    "stages": "the student has grown by them",
    "stock_convolutions": "a run keeps its convolutions",
}
_USED = "the steps so far were taken with it"

_Resolved = TypeVar("_Resolved", ResolvedTraining, ResolvedDataFree)


@dataclasses.dataclass(frozen=True)
class Run(Generic[_Resolved]):
    """A run that can begin or go on."""

    options: _Resolved
    before: _Resolved
    """The options that held so far."""
    changes: Changes
    """What is different from now on."""

    @property
    def directory(self) -> RunDirectory:
        """Where the run is kept, which the first of several processes writes."""
        kind = RunDirectory if processes().is_first else WatchedRun
        return kind(self.options.out)

    @property
    def config(self) -> dict[str, Any]:
        """The options as plain values, which the run is known by."""
        return config_of(self.options)

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Make the folder and keep other trainings out of it."""
        return self.directory.opened(self.config)

    def change(self, step: int) -> str | None:
        """Keep in the run what is different from a step on.

        Returns:
            One line about it; none if nothing is different.
        """
        if not self.changes:
            return None
        self.directory.change(self.config, self.changes, step)
        return f"from step {step} on: {changes_in_words(self.changes)}"

    def convolutions(self) -> Convolutions:
        """Which convolutions the run takes: as `kept_convolutions`."""
        return kept_convolutions([self.directory], self.options)

    def require_files(self) -> None:
        """Check that what the run names is where it was.

        Raises:
            ValueError: A file or folder is not; the line of the configuration is named.
        """
        directory, config = self.directory, self.config
        if not directory.config.exists():
            return
        for name in ("train_dir", "train_low_dir", "val_dir", *sorted(_MOVABLE)):
            given = config.get(name) if name not in self.changes else None
            for path in given if isinstance(given, list) else [given]:
                file = path if path is None or name.endswith(("dir", "weights")) else _file(path)
                if file is None or Path(file).exists():
                    continue
                where = OptionsFile.read(directory.config).where(name)
                raise ValueError(
                    f"{where}: {name} names {file}, which does not exist; if it was moved, "
                    f"continue with `resume` `out` {directory.root} `{name}` and where it is now"
                )


@overload
def checked_run(options: TrainOptions, resume: bool = False) -> Run[ResolvedTraining]: ...
@overload
def checked_run(options: DataFreeOptions, resume: bool = False) -> Run[ResolvedDataFree]: ...
@overload
def checked_run(options: Options, resume: bool = False) -> Run[Any]: ...
def checked_run(options: Options, resume: bool = False) -> Run[Any]:
    """Check that a training can begin in its run directory or go on; nothing is written.

    Args:
        options: What to do.
        resume: Whether some options may be others than those of the run, from here on.

    Raises:
        TypeError: These are no options.
        ValueError: As `options_there`, or options differ that cannot.
    """
    if not isinstance(options, SharedOptions):
        kind = type(options).__name__
        raise TypeError(f"options must be TrainOptions or DataFreeOptions, got {kind}")
    there, method = options_there(options), absolute(options.method)
    moved: Changes = {}
    if there and there.method != method and _is_moved(there.method, method):
        # What the method publishes is read from where its file is now.
        moved = {"method": (there.method, method)}
        there = dataclasses.replace(there, method=method)
    if resume and there:
        options = _continued(options, there)
    now: Any = options.resolved()
    before: Any = there.resolved() if there else now
    changes, root = moved | _differences(before, now), options.out
    refused = {name: why for name in changes if (why := _why_not(name, changes, now))}
    if resume and refused:
        reasons = (
            f"`{name}` cannot change, because {why} ({changes_in_words({name: changes[name]})})"
            for name, why in refused.items()
        )
        raise ValueError(f"`out` {root}: {'; '.join(reasons)}; give another `out`")
    if changes and not resume:
        flags = shlex.join(as_flags({name: new for name, (_, new) in changes.items()}, now))
        hint = f"; `resume` `out` {root} {flags} goes on with these"
        raise _other_options(root, changes, "" if refused else hint)
    return Run(now, before, changes)


def options_there(like: SharedOptions) -> Options | None:
    """The options of the run that is in `like.out`; none: there is no run.

    Args:
        like: Options of the same sort. An option that the run is older than has its default.

    Raises:
        ValueError: The folder cannot be written or holds something that is not a run, or the run
            has an option that is unknown or cannot be.
    """
    directory = RunDirectory(like.out)
    check_writable(directory.root)
    if not directory.config.exists():
        if any(p.exists() for p in (directory.state, directory.metrics, directory.summary)):
            raise ValueError(
                f"`out` {directory.root} holds a run without {directory.config.name}; give another "
                "`out`"
            )
        return None
    there = directory.options()
    known = dict(flat(config_of(like)))
    unknown = next((name for name, _ in flat(there) if name not in known), None)
    if unknown is not None:
        raise ValueError(
            f"`out` {directory.root}: {directory.config.name} has {unknown!r}, which is no option "
            "here: take the version of mkdext that the run was begun with, or give another `out`"
        )
    file = OptionsFile(str(directory.config), there, directory.config)
    kind = TrainOptions if isinstance(like, TrainOptions) else DataFreeOptions
    options: Options = file.made(file.over(kind(out=like.out)))
    return options


def kept_convolutions(runs: Iterable[RunDirectory], options: SharedOptions) -> Convolutions:
    """Which convolutions runs take: those of their steps so far; at first the fastest.

    Args:
        runs: Those that must take the same.
        options: With `device`, `stock_convolutions`, and the folder of all as `out`.

    Raises:
        ValueError: They are not available, or a checkpoint is damaged.
    """
    device = checked_device(options.device)
    available = "stock" if options.stock_convolutions else convolutions_on(device)
    kept = {_convolutions_of(checkpoint.load()) for run in runs for checkpoint in run.checkpoints}
    if "stock" in kept:
        return "stock"
    if "winograd" in kept and available == "stock" and device.type == "cpu":
        raise ValueError(
            f"`out` {options.out}: its steps so far were taken with winograd convolutions, which "
            "are not available here; `python -m mkdext.doctor` shows why and the fix, or give "
            "another `out`"
        )
    return available


def require_same_options(options: SharedOptions, leave_out: Collection[str] = ()) -> None:
    """Check that the run in `options.out`, if there is one, is one of these options.

    Args:
        options: Resolved or not, as those of the run.
        leave_out: Names of options that may be others.

    Raises:
        ValueError: As `options_there`, or it is one of others, which are named.
    """
    there: Any = options_there(options)
    if there and isinstance(options, ResolvedShared):
        there = there.resolved()
    changes = _differences(there, options) if there else {}
    for name in leave_out:
        changes.pop(name, None)
    if changes:
        raise _other_options(options.out, changes)


def _differences(before: SharedOptions, now: SharedOptions) -> Changes:
    were = dict(flat(config_of(before)))
    return {n: (were[n], value) for n, value in flat(config_of(now)) if were[n] != value}


def _other_options(root: Path, changes: Changes, hint: str = "") -> ValueError:
    return ValueError(
        f"`out` {root} holds a run with other options ({changes_in_words(changes)}): give another "
        f"`out`, or the same options to continue{hint}"
    )


def require_same_run(state: SavedState, options: ResolvedShared) -> None:
    """Check that a checkpoint is of a training with these options.

    Args:
        state: It has `options`, where a version wrote it that knew of them.
        options: Those of the training.

    Raises:
        ValueError: It is of others.
    """
    if not isinstance(state.content, Mapping) or "options" not in state.content:
        return
    there, now = state.entry("options", dict), dict(flat(config_of(options)))
    names = there.keys() & now.keys()
    changes = {name: (there[name], now[name]) for name in names if there[name] != now[name]}
    refused = {n: change for n, change in changes.items() if _why_not(n, changes, options)}
    if refused:
        raise state.unfit(f"is of another run ({changes_in_words(refused)})")


def _convolutions_of(state: SavedState) -> Convolutions:
    """Which a checkpoint was written with; one of a version that knew of none has stock ones."""
    content = state.content if isinstance(state.content, Mapping) else {}
    kept = content.get("convolutions", "stock")
    if kept not in get_args(Convolutions):
        raise state.unfit(f"does not fit ('convolutions' is {kept!r})")
    return cast(Convolutions, kept)


class Done(NamedTuple):
    """How far the training of a network has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them."""
    values: Mapping[str, float] = {}
    """The last value of everything that is logged."""

    @classmethod
    def of(cls, state: SavedState, options: ResolvedShared, iterations: int) -> Done:
        """What a checkpoint tells that a trainer wrote.

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


def rates_in_words(changes: Changes, before: Phase, now: Phase, iterations: int) -> str:
    """What changed options do to the rates of the next step, to be put after them.

    Args:
        changes: What is different.
        before: Of the last step that was done.
        now: Of the next.
        iterations: How long the cosine is.
    """
    if not _RATES & changes.keys():
        return ""
    said = f"; the learning rate goes from {before.lr:.3g} to {now.lr:.3g}"
    if before.distillation != now.distillation:
        said += f", the weight of the distillation loss from {before.distillation:.3g} to "
        said += f"{now.distillation:.3g}"
    if before.imitation != now.imitation:
        said += f", the share of the teacher's picture from {before.imitation:.3g} to "
        said += f"{now.imitation:.3g}"
    return f"{said}, on the cosine of {iterations} steps"


def _continued(options: Any, there: Any) -> Any:
    """Options in which what keeps its length in steps does, and that name no other first weights.

    Args:
        options: Those given.
        there: Those of the run.
    """
    if options.hint_share == there.hint_share > 0:
        # As many steps on the distillation loss alone as before.
        hints = round(there.hint_share * there.iterations)
        if hints >= options.iterations:
            raise ValueError(
                f"`iterations` must be more than the {hints} steps on the distillation loss alone, "
                f"got {options.iterations}"
            )
        options = dataclasses.replace(options, hint_share=hints / options.iterations)
    if there.privileged and options.privileged_iterations is None:
        steps = there.privileged_iterations
        options = dataclasses.replace(options, privileged_iterations=steps)
    of_object = _class_of_object(there.student)
    if of_object and of_object == _class_of_object(options.student):
        options = dataclasses.replace(options, student=there.student)
    return options


def _class_of_object(name: str) -> str | None:
    """The class in what a network that was given as an object is called."""
    kind, found, _ = name.partition(" of weights ")
    return kind if found else None


def _why_not(name: str, changes: Changes, options: SharedOptions) -> str | None:
    """Why an option cannot change; none: it can."""
    before, now = changes[name]
    if name == "iterations" and getattr(options, "stages", 1) > 1:
        return "its stages would begin at other steps"
    if name == "hint_share" and isinstance(before, int | float):
        iterations = changes.get("iterations", (options.iterations,))[0]
        if round(before * iterations) == round(now * options.iterations):
            return None
    if name in _FREE or (name in _MOVABLE and _is_moved(before, now)):
        return None
    return _FIXED.get(name, _USED)


def _is_moved(before: Any, now: Any) -> bool:
    """Whether a file has kept its name, and what is taken from it."""
    files = [_file(value) or value for value in (before, now) if isinstance(value, str)]
    same = len(files) == 2 and Path(files[0]).name == Path(files[1]).name
    return same and all(os.sep in f for f in files) and _rest(before) == _rest(now)


def _file(network: str) -> str | None:
    """The file in `file.py:factory`."""
    file, _, _ = network.rpartition(":")
    return file if file.endswith(".py") else None


def _rest(network: str) -> str | None:
    return network.rpartition(":")[2] if _file(network) else None
