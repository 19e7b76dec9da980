"""Going on with a run: with the options that it was begun with, or with others from here on.

Every step is a function of the options and of the step alone, and so it is after a change. With
`iterations` of another number the cosine of the learning rate, and that of the weight of the
distillation loss, are those of that number: at the step from which it holds the rate jumps to where
a training of that length would be. A warm-up, the steps on the distillation loss alone
(`hint_share`) and those of a privileged teacher keep their length in steps. A run that is extended
therefore ends as one of that length from the beginning would, where nothing falls along a cosine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from mkdext._system.reading import entry
from mkdext._system.saved_state import SavedState
from mkdext.training.config_files import config_of, flags_of
from mkdext.training.options import SharedOptions
from mkdext.training.run.directory import Changes, RunDirectory, flat, in_words
from mkdext.training.schedule import Phase

_FREE = frozenset(
    {
        *("iterations", "lr", "lr_min", "generator.lr", "device"),
        *("validate_every", "checkpoint_every", "log_every"),
        *("train_dir", "val_dir", "bad_images"),
        *("teacher_cache", "teacher_cache_crops", "teacher_compile"),
    }
)
_RATES = frozenset({"iterations", "lr", "lr_min", "generator.lr"})
_MOVABLE = frozenset({"student", "teacher", "teacher_weights"})

_FIXED = {
    "student": "what was trained are its weights",
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
}
_USED = "the steps so far were taken with it"

Options = TypeVar("Options", bound=SharedOptions)


@dataclasses.dataclass(frozen=True)
class Run(Generic[Options]):
    """A run that can begin or go on."""

    options: Options
    """Resolved ones."""
    directory: RunDirectory
    config: dict[str, Any]
    """The options as plain values, which the run is known by."""
    changes: Changes
    """What is different from now on."""

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Make the folder and keep other trainings out of it."""
        return self.directory.opened(self.config)

    def before(self) -> Options:
        """The options that held so far."""
        old = _nested({name: (now, before) for name, (before, now) in self.changes.items()})
        groups = {
            name: dataclasses.replace(getattr(self.options, name), **value)
            for name, value in old.items()
            if isinstance(value, dict)
        }
        return dataclasses.replace(self.options, **(old | groups))

    def change(self, step: int) -> str | None:
        """Keep in the run what is different from a step on.

        Returns:
            One line about it; none if nothing is different.
        """
        if not self.changes:
            return None
        self.directory.change(self.config, self.changes, step)
        return f"from step {step} on: {in_words(self.changes)}"

    def require_files(self) -> None:
        """Check that what the run names is where it was.

        Raises:
            ValueError: A file or folder is not; the line of the configuration is named.
        """
        if not self.directory.config.exists():
            return
        for name in ("train_dir", "val_dir", "student", "teacher", "teacher_weights"):
            given = self.config.get(name) if name not in self.changes else None
            for path in given if isinstance(given, list) else [given]:
                file = path if path is None or name.endswith(("dir", "weights")) else _file(path)
                if file is None or Path(file).exists():
                    continue
                raise ValueError(
                    f"{self.directory.config}, line {self.directory.line_of(name)}: {name} names "
                    f"{file}, which does not exist; if it was moved, go on by `resume` `out` "
                    f"{self.directory.root} `{name}` and where it is now"
                )


def checked_run(options: Options, resume: bool = False) -> Run[Options]:
    """Check that a training can begin in its run directory or go on; nothing is written.

    Args:
        options: What to do.
        resume: Whether some options may be others than those of the run, from here on.

    Raises:
        ValueError: As `RunDirectory.differences`, or options differ that cannot.
    """
    directory = RunDirectory(options.out)
    there = directory.options() if directory.config.exists() else {}
    if resume and there:
        options = _continued(options, there, str(directory.config))
    options = options.resolved()
    config = config_of(options)
    changes = directory.differences(config, lambda name: default_of(options, name))
    flags_of(there, options, str(directory.config))  # Values of other types are told.
    refused = {name: why for name in changes if (why := _refusal(name, changes, options))}
    if resume and refused:
        reasons = (
            f"`{name}` cannot change, because {why} ({in_words({name: changes[name]})})"
            for name, why in refused.items()
        )
        raise ValueError(f"`out` {directory.root}: {'; '.join(reasons)}; give another `out`")
    if changes and not resume:
        flags = shlex.join(flags_of(_nested(changes), options, ""))
        hint = (
            f"; `resume` `out` {directory.root} {flags} goes on with these" if not refused else ""
        )
        raise ValueError(
            f"`out` {directory.root} holds a run of other options ({in_words(changes)}): give "
            f"another `out`, or the same options to go on{hint}"
        )
    return Run(options, directory, config, changes)


def default_of(options: SharedOptions, name: str) -> Any:
    """What an option would be, as a plain value, if it was not given.

    Args:
        options: All others.
        name: Its name, that of one in a group as `group.name`.
    """
    group, _, inner = name.rpartition(".")
    default = next(f for f in dataclasses.fields(options) if f.name == (group or name))
    value: Any = default.default
    if default.default_factory is not dataclasses.MISSING:
        value = default.default_factory()
    if group:
        value = dataclasses.replace(getattr(options, group), **{inner: getattr(value, inner)})
    unset = dataclasses.replace(options, **{default.name: value})
    return dict(flat(config_of(unset.resolved())))[name]


def require_same_run(state: SavedState, options: SharedOptions) -> None:
    """Check that a checkpoint is of a training with these options.

    Args:
        state: It has `options`, where a version wrote it that knew of them.
        options: Resolved ones.

    Raises:
        ValueError: It is of others.
    """
    if not isinstance(state.content, Mapping) or "options" not in state.content:
        return
    there, now = state.entry("options", dict), dict(flat(config_of(options)))
    names = there.keys() & now.keys()
    changes = {name: (there[name], now[name]) for name in names if there[name] != now[name]}
    refused = {n: change for n, change in changes.items() if _refusal(n, changes, options)}
    if refused:
        raise state.unfit(f"is of another run ({in_words(refused)})")


class Done(NamedTuple):
    """How far the training of a network has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them."""
    values: Mapping[str, float] = {}
    """The last value of everything that is logged."""

    @classmethod
    def of(cls, state: SavedState, options: SharedOptions, iterations: int) -> Done:
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
    return f"{said}, on the cosine of {iterations} steps"


def _continued(options: Options, there: Mapping[str, Any], what: str) -> Options:
    """Options in which what keeps its length in steps does, and that name no other first weights.

    Args:
        options: Those given.
        there: Those of the run, as plain values.
        what: Where they stand.
    """
    share, steps = entry(there, "hint_share", float, what), entry(there, "iterations", int, what)
    if options.hint_share == share and share:
        # As many steps on the distillation loss alone as before.
        hints = round(share * steps)
        if hints >= options.iterations:
            raise ValueError(
                f"`iterations` must be more than the {hints} steps on the distillation loss alone, "
                f"got {options.iterations}"
            )
        options = dataclasses.replace(options, hint_share=hints / options.iterations)
    if there.get("privileged_iterations") and getattr(options, "privileged_iterations", 0) is None:
        steps = entry(there, "privileged_iterations", int, what)
        options = dataclasses.replace(options, privileged_iterations=steps)  # type: ignore[call-arg]
    student = str(there.get("student"))
    if _class_of_object(student) and _class_of_object(options.student) == _class_of_object(student):
        options = dataclasses.replace(options, student=student)
    return options


def _class_of_object(name: str) -> str | None:
    """The class in what a network that was given as an object is called."""
    kind, found, _ = name.partition(" of weights ")
    return kind if found else None


def _refusal(name: str, changes: Changes, options: SharedOptions) -> str | None:
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


def _nested(changes: Changes) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, (_, now) in changes.items():
        group, _, inner = name.rpartition(".")
        if group:
            values.setdefault(group, {})[inner] = now
        else:
            values[name] = now
    return values
