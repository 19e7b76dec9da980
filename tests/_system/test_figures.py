"""Texts of users in figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mkdext._system.figures import figure_file, label

NAMES = [
    "$\\frac$.png",
    "$",
    "a_b^c",
    "_hidden",
    "夏😀",
    b"\x89\xc4.png".decode(errors="surrogateescape"),
]


@pytest.mark.parametrize("name", [*NAMES, "\x1b[31m", 5000 * "x", "a\nb"])
def test_a_figure_shows_any_name(name: str, tmp_path: Path) -> None:
    with figure_file(tmp_path / "figure.png", (3, 3)) as figure:
        axes = figure.subplots()
        axes.plot([1, 2], label=label(name))
        axes.set(title=label(name), xlabel=label(name), yscale="log")
        (text,) = axes.legend().get_texts()
    assert len(text.get_text()) > 0 and "\x1b" not in text.get_text()
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (360, 360)


def test_names_are_shown_as_they_are_and_long_ones_by_their_ends(tmp_path: Path) -> None:
    with figure_file(tmp_path / "figure.png", (3, 3)) as figure:
        axes = figure.subplots()
        for name in NAMES[:4]:
            axes.plot([1, 2], label=label(name))
        axes.set_title(label(f"begin {100 * 'x'} end", 20))
        legend = axes.legend()
    assert [text.get_text() for text in legend.get_texts()] == NAMES[:4]
    assert axes.get_title() == "begin xxxx…xxxxx end"


def test_a_figure_is_never_larger_than_can_be_drawn(tmp_path: Path) -> None:
    with figure_file(tmp_path / "figure.png", (0.1, 600)) as figure:
        figure.text(0, 0, "x")
    with Image.open(tmp_path / "figure.png") as image:
        assert 60_000 < image.height < 2**16
