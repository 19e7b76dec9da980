"""One training of a comparison, which ends with it.

`python -m mkdext._cli.cell PARENT FOLDER CONVOLUTIONS`, the folder being a run that has its
`config.yaml`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.allocator import keep_freed_memory
from mkdext._system.lifetime import end_with
from mkdext.models.convolutions import stock_if
from mkdext.training import TrainOptions, train
from mkdext.training.options_file import load_options
from mkdext.training.run.directory import RunDirectory


def main() -> int:
    """Train, until done or the comparison, process number PARENT, is no more."""
    parent, folder, convolutions = sys.argv[1:]
    end_with(int(parent))
    return train_in(Path(folder), convolutions)


def train_in(folder: Path, convolutions: str) -> int:
    """Train as the `config.yaml` in a folder says, and return the exit status.

    With `convolutions` "stock" these are taken, whatever there is.
    """
    console = CommandTerminal()

    def run() -> None:
        options = load_options(RunDirectory(folder).config, TrainOptions(out=folder))
        keep_freed_memory()
        with stock_if(convolutions == "stock"):
            train(options, console)

    return exit_status("mkdext.train", run, memory="lower --batch-size or --patch-size")


if __name__ == "__main__":
    sys.exit(main())
