"""`python -m mkdext.datafree`: distil a super-resolution network without photographs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from mkdext._cli.options import file_of, first_flags, laid_over, said_of
from mkdext._cli.training import TrainingCommand, TrainingFlags, options_in
from mkdext.training import DataFreeOptions
from mkdext.training.data_free_options import usual_data_free


@dataclasses.dataclass(frozen=True)
class DataFreeCommand(TrainingFlags, DataFreeOptions):
    """Distil a super-resolution network without a single photograph to train on.

    A teacher and random numbers are enough: images are made by rules and by a generator that learns
    where the student fails. Without flags this is a training of minutes from the built-in teacher.
    Photographs only serve to measure the student.
    """

    def options(self) -> DataFreeOptions:
        """What is trained, without how the command was called."""
        return options_in(self, DataFreeOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    command = TrainingCommand(
        name="mkdext.datafree",
        kind=DataFreeOptions,
        parse=parse,
        memory="lower --batch-size, --patch-size or --contrastive.bank-bytes",
    )
    return command.main(arguments)


def parse(arguments: list[str]) -> DataFreeCommand:
    """Options from flags, over those of a configuration file, over the defaults.

    Raises:
        ValueError: A configuration file is not usable, or a number is out of range.
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    first = first_flags(arguments)
    file = file_of(first, DataFreeOptions.out)
    said = (said_of(name, first, file) for name in ("recipe", "optimizer", "student"))
    usual = usual_data_free(*said)
    return laid_over(DataFreeCommand, arguments, file, usual, "python -m mkdext.datafree")


if __name__ == "__main__":
    sys.exit(main())
