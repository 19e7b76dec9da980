"""``python -m mkdext.datafree``: distil a super-resolution network without photographs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mkdext._cli.dry_run import show_plan
from mkdext._cli.options import file_of, first_flags, laid_over, said_of
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.allocator import keep_freed_memory
from mkdext.training import DataFreeOptions, train
from mkdext.training.data_free_options import usual_data_free
from mkdext.training.options_file import schema


@dataclasses.dataclass(frozen=True)
class DataFreeCommand(DataFreeOptions):
    """Distil a super-resolution network without a single photograph to train on.

    A teacher and random numbers are enough: images are made by rules and by a generator that learns
    where the student fails. Without flags this is a training of minutes from the built-in teacher.
    Photographs only serve to measure the student.
    """

    config: Path | None = None
    """YAML file of options, such as the config.yaml of another run; flags override it. A network
    that it names by file.py:factory is code that is run, even by --dry-run: read files that come
    from others first."""
    resume: bool = False
    """Continue the run in --out with its options. Some may change from here on: --iterations (with
    more of them a finished run of one stage continues too, on the cosine of that length), --lr,
    --lr-min, --generator.lr, --device, how often to log, validate and save, and the paths of
    photographs and files that were moved."""
    dry_run: bool = False
    """Show the resolved options, the sizes and the memory of a step, and stop."""
    schema: bool = False
    """Print the JSON schema of files for --config, with which editors complete and check them, and
    stop."""

    def options(self) -> DataFreeOptions:
        """What is trained, without how the command was called."""
        names = [field.name for field in dataclasses.fields(DataFreeOptions)]
        return DataFreeOptions(**{name: getattr(self, name) for name in names})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Flags; default: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, 1 for a training that failed, 128 plus
        the signal for one that was stopped.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        if command.schema:
            print(json.dumps(schema(DataFreeOptions()), indent=2))
            return
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
    first = first_flags(arguments)
    file = file_of(first, DataFreeOptions.out)
    usual = usual_data_free(said_of("optimizer", first, file) or "adam")
    return laid_over(DataFreeCommand, arguments, file, usual, "python -m mkdext.datafree")


if __name__ == "__main__":
    sys.exit(main())
