"""How commands talk on a terminal: what users named is shown as it is, or as far as it can be.

Names of files, sets and networks are text, never markup; control characters of theirs do not reach
the terminal, and characters that it cannot show are replaced. All output goes through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from mkdext._system.streams import printable

_WIDEST = 1000  # letters of a table
_LONG_NAME, _LONG_NUMBER = 60, 24  # letters of a column, which has more lines for the rest
_LONG_TASK = 48  # letters of what a bar is about

_Item = TypeVar("_Item")


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

    def show(self, table: Table) -> None:
        """Print a table: as wide as it is where there is no terminal that it would have to fit."""
        if self.is_terminal:
            self.print(table)
            return
        options = self.options.update(max_width=_WIDEST)
        width = max(self.width, self.measure(table, options=options).maximum)
        Terminal(file=self.file, width=width, quiet=self.quiet).print(table)


def text_table(title: str, first: str, *others: str) -> Table:
    """A table: names in the first column, numbers in the others; long ones go on below."""
    table = Table(title=title)
    table.add_column(first, overflow="fold", max_width=_LONG_NAME)
    for name in others:
        table.add_column(name, justify="right", overflow="fold", max_width=_LONG_NUMBER)
    return table


class Words(ProgressColumn):
    """A column of a progress bar that shows a field of its task, or its description, cut short."""

    def __init__(self, field: str | None = None, encoding: str = "utf-8") -> None:
        """Take the name of the field; none: the description."""
        super().__init__(Column(no_wrap=True, overflow="crop"))
        self._field = field
        self._encoding = encoding

    def render(self, task: Task) -> Text:
        """The text as it is now."""
        text = task.description if self._field is None else task.fields[self._field]
        # Each line more would move what is above the bar.
        text = " ".join(str(text).splitlines())
        if self._field is None and len(text) > _LONG_TASK:
            text = f"{text[: _LONG_TASK // 2]}...{text[-_LONG_TASK // 2 :]}"
        return Text(printable(text, self._encoding))


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


def waiting_bar(console: Console) -> Progress:
    """What is being done, and for how long, where nobody knows how long it will take."""
    columns = SpinnerColumn(), Words(encoding=console.encoding), TimeElapsedColumn()
    return progress_bar(console, *columns, transient=True)


def track(
    items: Iterable[_Item], description: str, console: Console, total: int | None = None
) -> Iterator[_Item]:
    """Iterate over items and show how far it has come, until the end.

    Args:
        items: What to iterate over.
        description: Of what is done.
        console: Where.
        total: How many there are; none: as many as `items` has.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    with progress_bar(console, transient=True) as bar:
        yield from bar.track(items, total=total, description=description)
