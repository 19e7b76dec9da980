"""The trainings that a comparison is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from mkdext._system.files import locked, write_text
from mkdext._system.memory import available_bytes
from mkdext._system.near_names import did_you_mean
from mkdext._system.terminal import Terminal
from mkdext._system.terminal import track as shown_track
from mkdext.methods import known_method, method_class
from mkdext.models.convolutions import Convolutions
from mkdext.training.checks import check_teachers
from mkdext.training.options import MIXED_IN, ResolvedTraining, TrainOptions, known_methods
from mkdext.training.options_file import OptionsFile, config_of
from mkdext.training.photographs import held_out_pictures, training_photographs, validation_sets
from mkdext.training.run.directory import RunDirectory
from mkdext.training.run.going_on import kept_convolutions, require_same_options
from mkdext.training.run.live import reading_bar
from mkdext.training.setup import prepare

REFERENCE = "vanilla"
"""The training without a teacher, that all others are compared with."""

_OF_A_CELL = ("student", "method", "seed")
_EQUAL_FOR_ALL = (
    *("out", "student_options", "scale", "train_dir", "val_dir", "bad_images"),
    *("train_low_dir", "crop", "degradation", "small_images"),
    *("iterations", "batch_size", "patch_size", "device", "stock_convolutions"),
    # What a cache keeps decides which patches there are.
    *("teacher_cache", "teacher_cache_keeps", "teacher_cache_crops"),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: a student, a method, a seed."""

    options: ResolvedTraining

    @property
    def run(self) -> RunDirectory:
        """Where it is trained."""
        return RunDirectory(self.options.out)

    @property
    def teacher_steps(self) -> int:
        """Steps of a method's own teacher, before those of the student."""
        return self.options.privileged_iterations if self.options.privileged else 0

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.run.read_summary() is not None

    def check(self) -> None:
        """Check that it can begin or go on.

        Raises:
            ValueError: As `require_same_options`.
        """
        require_same_options(self.options)

    def __str__(self) -> str:
        return f"{self.options.student}, {self.options.method}, seed {self.options.seed}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A grid of students, methods and seeds, all trained alike but for these.

    A seed gives every method the same initial weights and the same patches in the same order.
    """

    base: TrainOptions
    """What is common to all; student, method and seed do not count. `out` is the folder of the
    comparison, each cell has a run directory below it."""
    students: Sequence[str]
    """As `TrainOptions.student`."""
    methods: Sequence[str]
    """As `TrainOptions.method`."""
    seeds: Sequence[int]
    """Any, each once."""
    method_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Options of single methods by the method's name, nested as in a configuration file."""

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            TypeError: A list is a text.
            ValueError: A list is empty, has something twice or holds an unknown method, or there
                are options of a method that is not compared, or that must be equal for all.
        """
        for flag in ("students", "methods", "seeds"):
            if isinstance(getattr(self, flag), str):
                raise TypeError(f"`{flag}` must be a list, got {getattr(self, flag)!r}")
            values = list(getattr(self, flag))
            if not values:
                raise ValueError(f"`{flag}` must name at least one")
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"`{flag}` has {twice} twice")
        known = known_methods()
        for flag, names in (("methods", self.methods), ("method_options", self.method_options)):
            for name in names:
                if name != REFERENCE and not known_method(name):
                    raise ValueError(
                        f"`{flag}`: {name} is unknown, there are {', '.join(known)}"
                        f"{did_you_mean(name, known)}"
                    )
        for method, options in self.method_options.items():
            if method not in self.methods:
                raise ValueError(
                    f"`method_options` {method}: {method} is not compared, `methods` are "
                    f"{', '.join(self.methods)}"
                )
            for name in options:
                if name in (*_OF_A_CELL, *_EQUAL_FOR_ALL):
                    raise ValueError(
                        f"`method_options` {method}: `{name}` must be the same for all methods"
                    )

    @property
    def settings(self) -> dict[str, Any]:
        """What all cells have in common, as plain values."""
        config = config_of(self.base)
        return {name: value for name, value in config.items() if name not in _OF_A_CELL}

    def cells(self) -> list[Cell]:
        """All trainings, those of the first seed first.

        Raises:
            ValueError: An option of a method is unknown, of another type or out of range.
        """
        return [
            Cell(self._options(student, method, seed))
            for seed in self.seeds
            for student in self.students
            for method in self.methods
        ]

    def _options(self, student: str, method: str, seed: int) -> ResolvedTraining:
        where = Path(as_folder(student)) / as_folder(method) / f"seed-{seed}"
        refused: dict[str, Any] = {"recipe": None}  # which holds for one method
        if method == REFERENCE or method_class(method).privileged:
            refused |= {"imitation": 0.0, "imitation_end": None} | dict.fromkeys(MIXED_IN, 0.0)
        if self.base.recipe and method != self.base.method:
            # What the recipe sets for its own method alone.
            meta = dataclasses.replace(self.base.meta, kappa=None)
            refused |= {"kd_maps": "whitened", "meta": meta}
        options = dataclasses.replace(
            self.base,
            **refused,
            student=student,
            method=method,
            seed=seed,
            out=self.base.out / "cells" / where,
        )
        if options.privileged:
            # It trains a teacher of its own and refuses to be given the others'.
            options = dataclasses.replace(
                options,
                teacher=None,
                teacher_options=(),
                teacher_weights=None,
                teacher_range=None,
                teacher_points=(),
            )
        if method != REFERENCE and method_class(method).compares == "pictures":
            options = dataclasses.replace(options, student_points=(), teacher_points=())
        own = self.method_options.get(method, {})
        if own:
            file = OptionsFile(f"`method_options` {method}", own)
            options = file.made(file.over(options))
        if options.teacher_cache is not None and self._keeps == "pictures":
            # All seeds and students learn from the same pictures.
            folder = options.teacher_cache
            if any("teacher" in name for name in own):
                folder /= f"of-{method}"
            options = dataclasses.replace(
                options, teacher_cache=folder, teacher_cache_keeps="pictures"
            )
        elif options.teacher_cache is not None:
            # Another seed has other crops, another student may want maps of another size.
            what: str = "features" if method == REFERENCE else method_class(method).compares
            what += "-and-pictures" if options.imitation or options.imitation_end else ""
            if any("teacher" in name or "points" in name for name in own):
                what += f"-of-{method}"
            folder = options.teacher_cache / as_folder(student) / f"seed-{seed}" / what
            options = dataclasses.replace(options, teacher_cache=folder, teacher_cache_keeps="maps")
        return options.resolved()

    @property
    def _keeps(self) -> Literal["maps", "pictures"]:
        """What all caches keep, those of methods that are added later too.

        So all methods are trained on the same patches.
        """
        return self.base.teacher_cache_keeps or "maps"

    def convolutions(self) -> Convolutions:
        """Which convolutions all trainings in the folder take: as `kept_convolutions`."""
        folders = self.base.out.glob("cells/*/*/*")
        return kept_convolutions(map(RunDirectory, folders), self.base)

    def check(self, jobs: int, console: Terminal) -> list[Cell]:
        """Check all that can be checked before the first cell is trained; nothing is written.

        Args:
            jobs: How many cells will be trained at once.
            console: Where progress is shown.

        Returns:
            The cells, finished or not.

        Raises:
            ValueError: The folder holds a comparison of other settings, or a cell cannot be
                trained.
        """
        require_same_options(self.base, _OF_A_CELL)
        cells = self.cells()
        folders = {as_folder(student): student for student in self.students}
        if len(folders) < len(self.students):
            raise ValueError(f"`students` would share folders: {', '.join(self.students)}")
        for cell in cells:
            try:
                cell.check()
            except ValueError as error:
                again = f"or delete {cell.run.root} to train it again"
                raise ValueError(f"{cell}: {error}; {again}") from None
        pending = [cell for cell in cells if not cell.finished]
        if not pending:
            return cells
        self.convolutions()
        kinds: dict[tuple[str, str], list[Cell]] = {}
        for cell in pending:
            kinds.setdefault((cell.options.student, cell.options.method), []).append(cell)
        sets = validation_sets(self.base, reading_bar(console))
        memory, measured = [], set()
        for (student, method), seeds in shown_track(kinds.items(), "checking", console):
            options = seeds[0].options
            teacher = options.teacher, options.teacher_options, options.teacher_weights
            try:
                training = prepare(options)
                if training.teachers and teacher not in measured:
                    measured.add(teacher)
                    check_teachers(training, sets)
            except ValueError as error:
                raise ValueError(f"{student}, {method}: {error}") from None
            memory += [training.memory or 0] * len(seeds)
        together, available = sum(sorted(memory)[-jobs:]), available_bytes()
        if self.base.device == "cpu" and together > available:
            raise ValueError(
                f"{min(jobs, len(pending))} trainings at once need about {together / 1e9:.1f} GB "
                f"of memory, {available / 1e9:.1f} GB are available: lower `jobs`, `batch_size` or "
                "`patch_size`"
            )
        training_photographs(self.base, reading_bar(console))
        if self.base.low_only and not self.base.val_dir:
            held_out_pictures(self.base, reading_bar(console))
        return cells

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder of the comparison and keep other comparisons out of it.

        Raises:
            ValueError: The folder cannot be written, or another comparison is at work there.
        """
        run = RunDirectory(self.base.out)
        with locked(run.root, "`out`", "comparison"):
            if not run.config.exists():
                write_text(run.config, yaml.safe_dump(self.settings, sort_keys=False))
            yield


def as_folder(name: str) -> str:
    """The name of the folder of a student or method.

    Example:
        >>> as_folder("nets/small.py:make")
        'nets_small.py_make'
    """
    return re.sub(r"[^\w.-]+", "_", name)
