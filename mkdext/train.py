"""`python -m mkdext.train`: distil a super-resolution network."""

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
from mkdext.training import BUILTIN_DEMO, TrainOptions, train
from mkdext.training.options import usual_training
from mkdext.training.options_file import schema


@dataclasses.dataclass(frozen=True)
class TrainCommand(TrainOptions):
    """Distil a super-resolution network.

    Without --train-dir this is a training of minutes on the photographs that come with
    scikit-image, from the built-in teacher, with short defaults. With --train-dir the defaults are
    the paper's.
    """

    config: Path | None = None
    """YAML file of options, such as the config.yaml of another run; flags override it. A network
    that it names by file.py:factory is code that is run, even by --dry-run: read files that come
    from others first."""
    resume: bool = False
    """Continue the run in --out with its options. Some may change from here on: --iterations (with
    more of them a finished run continues too, on the cosine of that length), --lr, --lr-min,
    --device, --teacher-cache, how often to log, validate and save, and the paths of photographs and
    files that were moved."""
    dry_run: bool = False
    """Show the resolved options, the sizes and the memory of a step, and stop."""
    schema: bool = False
    """Print the JSON schema of files for --config, with which editors complete and check them, and
    stop."""

    def options(self) -> TrainOptions:
        """What is trained, without how the command was called."""
        names = [field.name for field in dataclasses.fields(TrainOptions)]
        return TrainOptions(**{name: getattr(self, name) for name in names})


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
        command = parse(list(sys.argv[1:] if arguments is None else arguments))
        if command.schema:
            print(json.dumps(schema(TrainOptions()), indent=2))
            return
        options = command.options()
        if command.dry_run:
            show_plan(options, console, command.resume)
            return
        keep_freed_memory()
        train(options, console, command.resume)
        if not options.train_dir:
            console.say(
                "\nTry it on your own photographs:\n"
                "  python -m mkdext.train --train-dir FOLDER --val-dir FOLDER --out runs/mine"
            )

    return exit_status("mkdext.train", run, memory="lower --batch-size or --patch-size")


def parse(arguments: list[str]) -> TrainCommand:
    """Options from flags, over those of a configuration file, over the defaults.

    Raises:
        ValueError: A configuration file is not usable, or a number is out of range.
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    first = first_flags(arguments)
    file = file_of(first, BUILTIN_DEMO.out)
    usual = usual_training(said_of("train_dir", first, file) or ())
    return laid_over(TrainCommand, arguments, file, usual, "python -m mkdext.train")


if __name__ == "__main__":
    sys.exit(main())
