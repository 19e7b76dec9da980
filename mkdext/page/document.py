"""The page: what is on it, and how it becomes a file that needs no other."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from html import escape as as_html
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from mkdext._system.files import write_text
from mkdext.page.gallery import Gallery

_FEW = 600  # points of a line; more cannot be told apart


class Sheet(NamedTuple):
    """A table; its columns sort by the numbers that cells begin with."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Curves(NamedTuple):
    """Values over the steps."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Step and value, by name."""
    marks: Mapping[str, float] = {}
    """Values that stay, by name."""
    unit: str = ""
    logarithmic: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
    """What is on a page."""

    title: str
    facts: Mapping[str, str]
    """Short texts by name."""
    command: str = ""
    """What the results can be had by again."""
    tables: Sequence[Sheet] = ()
    curves: Sequence[Curves] = ()
    gallery: Gallery | None = None
    refresh: int | None = None
    """Seconds after which a browser looks whether there is a newer one; none: it is the last."""


def write_page(path: Path, page: Page) -> None:
    """Write a page as one HTML file, which needs no network and no other file.

    Args:
        path: File to write.
        page: What is on it.

    Raises:
        OSError: The file cannot be written.
    """
    gallery = page.gallery
    facts = dict(page.facts)
    if gallery and gallery.left_out:
        facts["pictures left out"] = f"{gallery.left_out}, which differ less"
    data = {
        "facts": list(facts.items()),
        "command": page.command,
        "tables": [table._asdict() for table in page.tables],
        "curves": [_curves(curves) for curves in page.curves],
        "scenes": gallery.scenes() if gallery else [],
        "left": gallery.one if gallery else "",
        "right": gallery.other if gallery else "",
    }
    parts = {
        "title": as_html(page.title),
        "refresh": f'<meta http-equiv="refresh" content="{page.refresh}">' if page.refresh else "",
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        # Nothing in it ends the element that it stands in.
        "data": json.dumps(data).replace("<", "\\u003c"),
    }
    before, *rest = _asset("page.html").split("{{")
    pieces = [before]
    for piece in rest:
        name, _, text = piece.partition("}}")
        pieces += [parts[name], text]
    write_text(path, "".join(pieces))


def _asset(name: str) -> str:
    return resources.files("mkdext.page").joinpath(name).read_text(encoding="utf-8")


def _curves(curves: Curves) -> dict[str, Any]:
    lines = [
        {"name": name, "points": _thinned([p for p in points if math.isfinite(p[1])])}
        for name, points in curves.lines.items()
    ]
    marks = [(name, value) for name, value in curves.marks.items() if math.isfinite(value)]
    return curves._asdict() | {"lines": [line for line in lines if line["points"]], "marks": marks}


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    every = -(-len(points) // _FEW)
    return points if every <= 1 else [*points[:-1:every], points[-1]]
