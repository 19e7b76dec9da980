"""Figures whose texts are shown as they are."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from mkdext._system.files import atomic_write
from mkdext._system.streams import printable

DPI = 120

_LONGEST = 40
_MOST_PIXELS = 2**16 - 1  # of a side, in matplotlib


def label(name: str, longest: int = _LONGEST) -> str:
    """A name for a figure: on one line, and short enough that it leaves room for the rest.

    Example:
        >>> label("_" + 60 * "a", longest=8)
        ' _aaa…aaa'
    """
    name = " ".join(name.split())
    if len(name) > longest:
        half = longest // 2
        name = f"{name[:half]}…{name[1 - half :]}"
    # A legend leaves out what begins with an underscore.
    return f" {name}" if name.startswith("_") else name


@contextlib.contextmanager
def figure_file(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure to draw on, that is written as a PNG in the end.

    Names of users in it are text: no formula, and what fonts cannot show is replaced.

    Args:
        path: File to write.
        size: Width and height in inches.

    Raises:
        OSError: It cannot be written.
    """
    figure = Figure(figsize=size, layout="constrained")
    yield figure
    ticks = {
        id(text)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for text in axis.findobj(Text)
        if text is not axis.label
    }
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if id(text) not in ticks:  # Those of a logarithmic scale are formulas.
            text.set_parse_math(False)
            text.set_text(printable(text.get_text().strip()))
    dpi = min(DPI, _MOST_PIXELS / max(size))
    with (
        atomic_write(path) as unfinished,
        unfinished.open("wb") as file,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph|constrained_layout not applied")
        figure.savefig(file, format="png", dpi=dpi)
