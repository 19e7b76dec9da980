"""What is said where memory is exhausted before a command has begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mkdext._system import startup

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_exhausted_memory_is_one_sentence(error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", None)
    startup.explain_exhausted_memory()
    sys.excepthook(type(error), error, None)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "memory ran out" in shown and "ulimit -v" in shown


def test_other_errors_are_shown_as_ever(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *given: seen.append(given))
    startup.explain_exhausted_memory()
    error = ImportError("no module")
    sys.excepthook(ImportError, error, None)
    assert seen == [(ImportError, error, None)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["python", "-m", "mkdext.train", "--out", "x"], True),
        (["python", "-X", "dev", "-m", "mkdext"], True),
        (["python", "-m", "pytest"], False),
        (["python", "mine.py"], False),
        (["python", "-m"], False),
    ],
)
def test_only_a_command_of_the_package_is_one(given, expected, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", given)
    assert startup.is_command() is expected


def test_importing_the_package_leaves_the_hook_of_a_program_alone():
    code = "import sys, mkdext; print(sys.excepthook is sys.__excepthook__)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "True\n"
