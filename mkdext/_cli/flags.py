"""The flags of a command, made from a dataclass by tyro."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from mkdext._cli.wording import in_flags
from mkdext._system.drafts import draft_class, made
from mkdext._system.streams import printable


def parse_flags(command: Any, arguments: Sequence[str] | None, **settings: Any) -> Any:
    """Make a command of its flags.

    Args:
        command: A dataclass, or a union of some; each field's docstring is the help of its flag.
        arguments: Those of the command line; default: those of the process.
        settings: More for `tyro.cli`.

    Raises:
        SystemExit: A flag is unknown or malformed, or help was asked for.
        ValueError: The command refuses what it is given.
    """
    return made(parse_draft(command, arguments, **settings))


def parse_draft(
    command: Any, arguments: Sequence[str] | None, default: object = None, **settings: Any
) -> Any:
    """The same, but not checked yet.

    Args:
        command: A dataclass, or a union of some.
        arguments: Those of the command line; default: those of the process.
        default: Has values by the names of fields, which hold where no flag is given.
        settings: More for `tyro.cli`.

    Returns:
        A draft of the command, see `mkdext._system.drafts`; where `return_unknown_args` is set,
        with what is left of the arguments.

    Raises:
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    given = sys.argv[1:] if arguments is None else arguments
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(draft_class(command, default, _without_empty), args=given, **settings)
    finally:
        print(printable(in_flags(said.getvalue())), end="", file=sys.stderr)


def _without_empty(default: Any) -> Sequence[Any]:
    # "(default: None)" says less than the help before it, which names what holds instead.
    return (tyro.conf.arg(help_behavior_hint=""),) if default in (None, ()) else ()
