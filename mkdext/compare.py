"""`python -m mkdext.compare`: train students by several methods under one protocol."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from mkdext._cli.options import config_file, first_flags, following, laid_over, usual_of
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.errors import WorkFailed
from mkdext._system.processors import physical_cores
from mkdext._system.reading import parse_yaml
from mkdext.comparison import Comparison, run_cells, write_report
from mkdext.training import TrainOptions
from mkdext.training.options import values_of
from mkdext.training.options_file import OptionsFile

_MOST_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class CompareCommand(TrainOptions):
    """Train students by several methods and compare what they reach.

    Every method gets the same initial weights, the same patches in the same order and as many
    student steps (pisr trains a teacher from these weights first). Each training is one of
    mkdext.train in a folder below --out, and takes the options explained there. If it was stopped,
    the same command continues; with more methods, students or seeds it trains what is missing.
    Without --train-dir it trains on the photographs that come with scikit-image, with short
    defaults.
    """

    student: tyro.conf.Suppress[str] = TrainOptions.student
    method: tyro.conf.Suppress[str] = TrainOptions.method
    seed: int = 0
    """The first seed."""
    out: Path = Path("runs/comparison")
    """Folder for the trainings, the table (comparison.md, .csv and .json) and the figures."""

    methods: tuple[str, ...] = ("vanilla", "mkd")
    """Methods, as --method of mkdext.train; commas may separate them."""
    students: tuple[str, ...] = ("rcan-a",)
    """Networks to train, as --student of mkdext.train; commas may separate them."""
    seeds: int = 3
    """Number of seeds, counted from --seed."""
    jobs: int | None = None
    """Trainings at once; default: one for each core of the processor, or one on a GPU."""
    method_options: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()  # type: ignore[assignment]
    """Options of one method alone: its name, then the options, as in --method-options mkd
    kd-weight=1e-2 meta.every=4; may be repeated for each method."""
    config: Path | None = None
    """YAML file of options, such as the config.yaml of a run; flags override it. A network that it
    names by file.py:factory is code that is run: read files that come from others first."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise ValueError(f"`seeds` must be from 1 to {_MOST_SEEDS}, got {self.seeds}")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"`jobs` must be at least 1, got {self.jobs}")

    def comparison(self) -> Comparison:
        """What is compared.

        Raises:
            ValueError: A list is empty or has a name that is unknown or twice, or an option of one
                method is not usable.
        """
        names = {field.name for field in dataclasses.fields(TrainOptions)} - {"method_options"}
        own = _method_options_of(config_file(self.config)) if self.config else {}
        return Comparison(
            TrainOptions(**{name: getattr(self, name) for name in names}),
            _split(self.students),
            _split(self.methods),
            range(self.seed, self.seed + self.seeds),
            _with_flags(own, self.method_options),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Flags; default: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, before any work; 1 if a training
        failed, with all others done; 128 plus the signal if it was stopped.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse(list(sys.argv[1:] if arguments is None else arguments))
        comparison = command.comparison()
        jobs = command.jobs or (physical_cores() if command.device == "cpu" else 1)
        cells = comparison.check(jobs, console)
        with comparison.opened():
            # Also before the first training, because one that is damaged is found by it.
            write_report(command.out, None)
            failures = run_cells(
                cells,
                comparison.convolutions(),
                jobs,
                command.out,
                console,
                lambda: write_report(command.out, None),
            )
            write_report(command.out, console)
        if failures:
            lines = [f"{cell} failed: {message}" for cell, message in failures.items()]
            raise WorkFailed("\n".join(lines))

    memory = "lower --batch-size, --patch-size or --jobs"
    return exit_status("mkdext.compare", run, "interrupted; the same command continues", memory)


def parse(arguments: list[str]) -> CompareCommand:
    """Options from flags, over those of a configuration file, over the defaults.

    Raises:
        ValueError: A configuration file is not usable, or a number is out of range.
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    first = first_flags(arguments)
    file = _of_a_comparison(config_file(first.config)) if first.config else None
    names = "recipe", "optimizer"
    usual, file = usual_of(first, file, names), following(first, file, names)
    default = CompareCommand(**values_of(usual) | {"out": CompareCommand.out})
    return laid_over(CompareCommand, arguments, file, default, "python -m mkdext.compare")


def _of_a_comparison(file: OptionsFile) -> OptionsFile:
    """What a file says of all methods together."""
    values = {name: v for name, v in file.values.items() if name != "method_options"}
    # The file of a training names one student and one method.
    for one, several in (("student", "students"), ("method", "methods")):
        if one in values:
            values.setdefault(several, [values.pop(one)])
    return dataclasses.replace(file, values=values)


def _method_options_of(file: OptionsFile) -> Mapping[str, Any]:
    """What a file says of single methods."""
    methods = file.values.get("method_options") or {}
    if not isinstance(methods, dict) or not all(isinstance(o, dict) for o in methods.values()):
        where = file.where("method_options")
        raise ValueError(f"{where}: method_options must hold names and values by method")
    return methods


def _split(names: Iterable[str]) -> list[str]:
    parts = (part.strip() for name in names for part in name.split(","))
    return [part for part in parts if part]


def _with_flags(
    methods: Mapping[str, Any], given: Iterable[Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Nested values by method, and above them `(method, "name=value", "group.name=value", ...)`."""
    every: dict[str, dict[str, Any]] = copy.deepcopy(dict(methods))
    for names in given:
        if not names:
            raise ValueError("--method-options takes a method and name=value, got nothing")
        method, *settings = names
        if not settings:
            raise ValueError(f"--method-options {method} takes name=value, got nothing")
        for setting in settings:
            name, equals, value = setting.partition("=")
            if not equals:
                raise ValueError(f"--method-options {method} takes name=value, got {setting!r}")
            *groups, last = name.replace("-", "_").split(".")
            options = every.setdefault(method, {})
            for group in groups:
                options = options.setdefault(group, {})
            try:
                options[last] = parse_yaml(value, setting)
            except ValueError:
                raise ValueError(
                    f"--method-options {method} takes name=value, the value as in YAML, got "
                    f"{setting!r}"
                ) from None
    return every


if __name__ == "__main__":
    sys.exit(main())
