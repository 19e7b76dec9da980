"""``python -m mkdext.datafree``: distil a super-resolution network without photographs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from mkdext._cli.dry_run import show_plan
from mkdext._cli.flags import parse_flags
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.allocator import keep_freed_memory
from mkdext.training import DataFreeOptions, train
from mkdext.training.config_files import naming_the_file, value_of, with_config
from mkdext.training.datafree.options import with_usual_rates


@dataclasses.dataclass(frozen=True)
class DataFreeCommand(DataFreeOptions):
    """Distil a super-resolution network without one photograph to train on.

    A teacher and random numbers are all it takes: images are made by rules and by a generator that
    learns where the student fails. Without flags this is a training of minutes from the built-in
    teacher. Photographs only serve to measure the student.
    """

    config: Path | None = None
    """YAML file of options, such as the config.yaml of another run; flags given count more. A
    network that it names by file.py:factory is code, which is run, by --dry-run too: look into a
    file that comes from others."""
    resume: bool = False
    """Go on with the run in --out, with its options. Some may be others from here on: with more
    --iterations also a finished run of one stage goes on, on the cosine of that length; --lr,
    --lr-min, --generator.lr, --device, how often what is done, and where photographs and files were
    moved to."""
    dry_run: bool = False
    """Show the resolved options, sizes and the memory that a step needs, and stop."""

    def options(self) -> DataFreeOptions:
        """What is trained, without how the command was called."""
        names = [field.name for field in dataclasses.fields(DataFreeOptions)]
        return DataFreeOptions(**{name: getattr(self, name) for name in names})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Flags; none: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, 1 for a training that failed, 128 plus
        the signal for one that was stopped.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        options = command.options()
        if command.dry_run:
            show_plan(options, console, command.resume)
            return
        keep_freed_memory()
        train(options, console, command.resume)

    memory = "lower --batch-size, --patch-size or --contrastive.bank-bytes"
    return exit_status("mkdext.datafree", run, memory=memory)


def parse(arguments: Sequence[str]) -> DataFreeCommand:
    """Options from flags, over those of a configuration file, over the defaults.

    Raises:
        ValueError: A configuration file is not usable, or a number is out of range.
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    given = with_config(arguments, DataFreeOptions())
    default = with_usual_rates(DataFreeCommand(), value_of("--optimizer", given))
    with naming_the_file(arguments, given):
        command: DataFreeCommand = parse_flags(
            DataFreeCommand, given, default=default, prog="python -m mkdext.datafree"
        )
    return command


if __name__ == "__main__":
    sys.exit(main())
