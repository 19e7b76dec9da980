"""What the commands that train have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from mkdext._cli.dry_run import show_plan
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.allocator import keep_freed_memory
from mkdext._system.joining import joined
from mkdext.training import train
from mkdext.training.data_free_options import Options
from mkdext.training.options_file import schema

_Options = TypeVar("_Options", bound=Options)


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Flags beside the options of a training."""

    config: Path | None = None
    """YAML file of options, such as the config.yaml of another run; flags override it. A network,
    method or loss that it names by file.py:name is code that is run, even by --dry-run: read files
    that come from others first."""
    resume: bool = False
    """Continue the run in --out with its options. Some may change from here on: --iterations (with
    more of them a finished run continues too, on the cosine of that length; not that of a student
    that grows), the learning rates, --device, where the teacher's maps are kept, how often to log,
    validate and save, and the paths of photographs and files that were moved."""
    dry_run: bool = False
    """Show the resolved options, the sizes and the memory of a step, and stop."""
    schema: bool = False
    """Print the JSON schema of files for --config, with which editors complete and check them, and
    stop."""


@dataclasses.dataclass(frozen=True)
class TrainingCommand(Generic[_Options]):
    """A command that trains."""

    name: str
    """As in `python -m NAME`."""
    kind: type[_Options]
    """What it trains with."""
    parse: Callable[[list[str]], TrainingFlags]
    """From a command line to options of that kind and the flags beside them."""
    memory: str
    """What to do where memory is exhausted."""
    afterwards: Callable[[_Options], str] = lambda options: ""
    """What to tell after a training; nothing if it is empty."""

    def main(self, arguments: Sequence[str] | None) -> int:
        """Run the command.

        Args:
            arguments: Flags; default: those of the process.

        Returns:
            The exit status: 2 for what cannot be done as asked, 1 for a training that failed, 128
            plus the signal for one that was stopped.
        """

        def run() -> None:
            with joined() as together:
                terminal = CommandTerminal(quiet=not together.is_first)
                # A launcher gives the same flags to all processes of a machine.
                with _heard(os.environ.get("LOCAL_RANK", "0") == "0"):
                    flags = self.parse(list(sys.argv[1:] if arguments is None else arguments))
                if flags.schema:
                    if together.is_first:
                        print(json.dumps(schema(self.kind()), indent=2))
                    return
                options = options_in(flags, self.kind)
                if flags.dry_run:
                    show_plan(options, terminal, flags.resume)
                    return
                keep_freed_memory()
                train(options, terminal, flags.resume)
                said = self.afterwards(options)
                if said:
                    terminal.say(said)

        return exit_status(self.name, run, memory=self.memory)


@contextlib.contextmanager
def _heard(is_heard: bool) -> Iterator[None]:
    """Let help and complaints about flags be printed, or by one of several processes alone."""
    with contextlib.ExitStack() as stack:
        if not is_heard:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def options_in(flags: TrainingFlags, kind: type[_Options]) -> _Options:
    """What is trained, without how the command was called."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: getattr(flags, name) for name in names})
