"""The flags of a command, made from a dataclass by tyro."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from mkdext._cli.wording import in_flags
from mkdext._system.streams import printable


def parse_flags(command: Any, arguments: Sequence[str] | None, **settings: Any) -> Any:
    """Do as `tyro.cli`, with help texts whose lines are filled.

    Args:
        command: A dataclass, or a union of some; each field's docstring is the help of its flag.
        arguments: Those of the command line; None: of this process.
        settings: More for `tyro.cli`.

    Raises:
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    given = sys.argv[1:] if arguments is None else arguments
    said = io.StringIO()
    with _filled_help():
        try:
            with contextlib.redirect_stderr(said):
                return tyro.cli(command, args=given, **settings)
        finally:
            print(printable(in_flags(said.getvalue())), end="", file=sys.stderr)


@contextlib.contextmanager
def _filled_help() -> Iterator[None]:
    # tyro joins the lines of a docstring before it takes away their indentation, and keeps every
    # line break where there is one.
    strings, name = getattr(tyro, "_strings", None), "remove_single_line_breaks"
    original = getattr(strings, name, None)
    if original is None:  # another version of tyro
        yield
        return
    setattr(strings, name, _fill)
    try:
        yield
    finally:
        setattr(strings, name, original)


def _fill(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
