"""`python -m mkdext.train`: distil a super-resolution network."""

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
from mkdext.training import BUILTIN_DEMO, TrainOptions, train
from mkdext.training.config_files import defaults_for, naming_the_file, with_config


@dataclasses.dataclass(frozen=True)
class TrainCommand(TrainOptions):
    """Distil a super-resolution network.

    Without --train-dir this is a training of minutes on the photographs that come with
    scikit-image: the built-in teacher, a small student, short defaults. With --train-dir the
    defaults are those of the paper.
    """

    config: Path | None = None
    """YAML file of options, such as the config.yaml of another run; flags given count more. A
    network that it names by file.py:factory is code, which is run, by --dry-run too: look into a
    file that comes from others."""
    resume: bool = False
    """Go on with the run in --out, with its options. Some may be others from here on: with more
    --iterations also a finished run goes on, on the cosine of that length; --lr, --lr-min,
    --device, how often what is done, --teacher-cache, and where photographs and files were moved
    to."""
    dry_run: bool = False
    """Show the resolved options, sizes and the memory that a step needs, and stop."""

    def options(self) -> TrainOptions:
        """What is trained, without how the command was called."""
        names = [field.name for field in dataclasses.fields(TrainOptions)]
        return TrainOptions(**{name: getattr(self, name) for name in names})


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
        command = parse(list(sys.argv[1:] if arguments is None else arguments))
        options = command.options()
        if command.dry_run:
            show_plan(options, console, command.resume)
            return
        keep_freed_memory()
        train(options, console, command.resume)
        if not options.train_dir:
            console.say(
                "\nTry it on photographs of yours:\n"
                "  python -m mkdext.train --train-dir FOLDER --val-dir FOLDER --out runs/mine"
            )

    return exit_status("mkdext.train", run, memory="lower --batch-size or --patch-size")


def parse(arguments: list[str]) -> TrainCommand:
    """Options from flags, over those of a configuration file, over the defaults.

    Raises:
        ValueError: A configuration file is not usable, or a number is out of range.
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    given = with_config(arguments, BUILTIN_DEMO)
    base = defaults_for(given)
    default = TrainCommand(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)})
    with naming_the_file(arguments, given):
        command: TrainCommand = parse_flags(
            TrainCommand, given, default=default, prog="python -m mkdext.train"
        )
    if base is not BUILTIN_DEMO and not command.train_dir:
        raise ValueError("--train-dir must name at least one folder")
    return command


if __name__ == "__main__":
    sys.exit(main())
