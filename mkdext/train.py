"""`python -m mkdext.train`: distil a super-resolution network."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from mkdext._cli.options import file_of, first_flags, following, laid_over, usual_of
from mkdext._cli.training import TrainingCommand, TrainingFlags, options_in
from mkdext.training import BUILTIN_DEMO, TrainOptions


@dataclasses.dataclass(frozen=True)
class TrainCommand(TrainingFlags, TrainOptions):
    """Distil a super-resolution network.

    Without --train-dir this is a training of minutes on the photographs that come with
    scikit-image, from the built-in teacher, with short defaults. With --train-dir steps and
    batches are the paper's. The recipe is the best that is known (docs/results/recipe.md), unless
    --recipe names another.
    """

    def options(self) -> TrainOptions:
        """What is trained, without how the command was called."""
        return options_in(self, TrainOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    command = TrainingCommand(
        name="mkdext.train",
        kind=TrainOptions,
        parse=parse,
        memory="lower --batch-size or --patch-size",
        afterwards=_try_your_own,
    )
    return command.main(arguments)


def parse(arguments: list[str]) -> TrainCommand:
    """Options from flags, over those of a configuration file, over the defaults.

    Raises:
        ValueError: A configuration file is not usable, or a number is out of range.
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    first = first_flags(arguments)
    file = file_of(first, BUILTIN_DEMO.out)
    names = "recipe", "method", "optimizer", "student"
    usual, file = usual_of(first, file, names), following(first, file, names)
    return laid_over(TrainCommand, arguments, file, usual, "python -m mkdext.train")


def _try_your_own(options: TrainOptions) -> str:
    if options.train_dir or options.train_low_dir:
        return ""
    return (
        "\nTry it on your own photographs:\n"
        "  python -m mkdext.train --train-dir FOLDER --val-dir FOLDER --out runs/mine"
    )


if __name__ == "__main__":
    sys.exit(main())
