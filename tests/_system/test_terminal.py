"""Texts of users on a terminal: shown as they are, or as far as it can show them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn

import mkdext
from mkdext._system.terminal import Terminal, Words, progress_bar, text_table, track

NAMES = [
    "photo[edited].png",
    "[/x]",
    "[bold]",
    ":smile:",
    "https://x.y 1.5 'a'",
    "$\\frac$",
    "a[31",
]


def terminal(encoding: str = "utf-8", **settings) -> tuple[Terminal, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, errors="strict", newline="", write_through=True)
    return Terminal(file=file, **settings), raw


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_same_text_in_a_line_a_table_and_a_bar(name):
    console, raw = terminal(force_terminal=True, width=100)
    console.print(name)
    console.say(name)
    table = text_table(f"of {name}", name, "number")
    table.add_row(name, "1")
    console.show(table)
    with progress_bar(console) as bar:
        bar.add_task(name, total=1)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.getvalue().decode())
    assert shown.count(name) >= 6 and f"of {name}" in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_replaced(encoding):
    console, raw = terminal(encoding, force_terminal=True, width=120)
    name = "夏ü" + b"\x89".decode(errors="surrogateescape") + "…" * 200
    console.say(name)
    table = text_table(name, "name", "number")
    table.add_row(name, name)
    console.show(table)
    assert list(track([1, 2], name, console)) == [1, 2]
    first = raw.getvalue().decode(encoding).splitlines()[0]
    assert first[:3] == {"ascii": "???", "latin-1": "?ü?", "utf-8": "夏ü?"}[encoding]


def test_escape_sequences_of_a_name_do_not_reach_the_terminal():
    console, raw = terminal(width=80)
    name = "\x1b]0;title\x07\x1b[31mred\x9b31m\r"
    console.say(name)
    table = text_table(name, name)
    table.add_row(name)
    console.show(table)
    bar = progress_bar(Terminal(file=console.file, force_terminal=True), Words(), BarColumn())
    bar.add_task(name)
    Console(file=console.file, width=80).print(bar.get_renderable())
    shown = raw.getvalue().decode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert "?[31mred?31m?" in shown


def test_a_table_is_whole_where_there_is_no_terminal_and_fits_where_there_is_one():
    table = text_table("title", "photograph", *(f"network {n}" for n in range(12)))
    table.add_row("x" * 249, *(f"{n}.25 / 0.8229" for n in range(12)))
    console, raw = terminal(width=80)
    console.show(table)
    shown = raw.getvalue().decode()
    assert all(f"{n}.25 / 0.8229" in shown for n in range(12)) and shown.count("x") == 249
    console, raw = terminal(width=80, force_terminal=True)
    console.show(table)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue().decode())
    assert max(map(len, shown.splitlines())) <= 80 and shown.count("x") == 249


def test_any_console_is_made_a_terminal_that_writes_to_the_same_place():
    file = io.StringIO()
    console = Terminal.of(Console(file=file, width=60, force_terminal=True))
    console.print("[red]x[/]")
    assert file.getvalue() == "[red]x[/]\n" and (console.width, console.is_terminal) == (60, True)
    assert Terminal.of(console) is console and Terminal.of(Console(quiet=True)).quiet


def test_no_other_module_takes_texts_for_markup_or_makes_bars_of_its_own():
    """What takes markup is in one module, which turns it off."""
    package = Path(mkdext.__file__).parent
    forbidden = re.compile(
        r"rich\.markup|\bescape\b\(|\bTextColumn\b|\bConsole\(|\bProgress\(|rich_track"
        r"|rich\.progress import track|SpinnerColumn|from_markup|markup=|mathtext|\bFigure\("
    )
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.name not in ("terminal.py", "figures.py")
        for line in path.read_text().splitlines()
        if forbidden.search(line) and ">>>" not in line and "..." not in line
    ]
    assert not found
