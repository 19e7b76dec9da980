"""How commands talk on a terminal: what users named is shown as it is, or as far as it can be.

Names of files, sets and networks are text, never markup; control characters of theirs do not reach
the terminal, and characters that it cannot show are replaced. All output goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")

_Item = TypeVar("_Item")


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""A text in which what `encoding` cannot show, and control characters, are replaced by `?`.

    Example:
        >>> printable("a\x1b[31m" + b"\x89\xc4".decode(errors="surrogateescape"))
        'a?[31m??'
    """
    shown = _CONTROL.sub("?", text).encode(encoding, "replace")
    return shown.decode(encoding, "replace")


class Terminal(Console):
    """A console for which every text is plain."""

    def __init__(self, **settings: Any) -> None:
        """Take what `Console` takes, but for markup, emoji and highlighting, which are off."""
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    @classmethod
    def of(cls, console: Console | None) -> Terminal:
        """A terminal in the place of any console; none: the standard output."""
        if console is None:
            return cls()
        if isinstance(console, Terminal):
            return console
        return cls(
            file=console.file,
            force_terminal=console.is_terminal,
            width=console.width,
            quiet=console.quiet,
            stderr=console.stderr,
        )

    def render_str(self, text: str, **settings: Any) -> Text:
        """Make a text printable."""
        return super().render_str(printable(text, self.encoding), **settings)

    def say(self, text: str) -> None:
        """Print a text; long lines are not broken."""
        self.print(text, soft_wrap=True)


class Words(ProgressColumn):
    """A column of a progress bar that shows a field of its task, or its description."""

    def __init__(self, field: str | None = None, encoding: str = "utf-8") -> None:
        """Take the name of the field; none: the description."""
        super().__init__()
        self._field = field
        self._encoding = encoding

    def render(self, task: Task) -> Text:
        """The text as it is now."""
        text = task.description if self._field is None else task.fields[self._field]
        return Text(printable(str(text), self._encoding))


def progress_bar(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """A progress bar, shown on a terminal only.

    Args:
        console: Where.
        columns: What it shows; none: description, bar, share and time left.
        transient: Whether it vanishes at the end.
    """
    usual = (
        Words(encoding=console.encoding),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    return Progress(
        *(columns or usual),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def track(
    items: Sequence[_Item], description: str, console: Console, transient: bool = True
) -> Iterable[_Item]:
    """Iterate over items and show how far it has come."""
    with progress_bar(console, transient=transient) as bar:
        yield from bar.track(items, total=len(items), description=description)
