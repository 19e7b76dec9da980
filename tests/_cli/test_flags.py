from __future__ import annotations

import pytest

from mkdext._cli.flags import parse_flags
from mkdext.train import TrainCommand

STUDENTS = "rdn-s, rdn-t, san-s, san-t, han-s, han-t, imdn-s, imdn-t, vdsr or vdsr-half"


def help_of(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        parse_flags(TrainCommand, ["--help"], prog="train")
    return capsys.readouterr().out


def test_the_lines_of_a_help_text_break_where_the_terminal_ends(capsys, monkeypatch):
    assert STUDENTS in help_of(capsys, monkeypatch, 400)
    words = help_of(capsys, monkeypatch, 100).replace("│", " ").split()
    assert STUDENTS in " ".join(words)


def test_what_a_command_refuses_is_an_error_of_its_own():
    with pytest.raises(ValueError, match=r"^`lr` must be positive, got -1\.0$"):
        parse_flags(TrainCommand, ["--lr", "-1"], prog="train")


def test_escape_sequences_of_an_argument_do_not_reach_the_terminal(capsys):
    with pytest.raises(SystemExit):
        parse_flags(TrainCommand, ["--optimizer", "\x1b[31m[red]x"], prog="train")
    shown = capsys.readouterr().err
    assert "?[31m[red]x" in shown and "\x1b" not in shown
    assert str(parse_flags(TrainCommand, ["--out", "\x1b[31m"], prog="train").out) == "\x1b[31m"
