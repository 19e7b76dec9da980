from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mkdext
from mkdext import __main__ as dispatch

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdext", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_module_that_is_a_command_is_listed() -> None:
    modules = {
        path.stem
        for path in (ROOT / "mkdext").glob("[a-z]*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    packages = {path.parent.name for path in (ROOT / "mkdext").glob("*/__main__.py")}
    assert modules | packages == set(dispatch.COMMANDS)


@pytest.mark.parametrize("command", dispatch.COMMANDS)
def test_command_explains_itself(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["mkdext", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        dispatch.main()
    assert ended.value.code == 0
    assert f"usage: python -m mkdext.{command} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_no_command_lists_the_commands(arguments: tuple[str, ...]) -> None:
    answer = run(*arguments)
    assert answer.returncode == 0
    assert all(f"\n  {name} " in answer.stdout for name in dispatch.COMMANDS)


def test_unknown_command_is_refused_with_a_suggestion() -> None:
    answer = run("trian")
    assert answer.returncode == 2
    assert answer.stderr == "mkdext: there is no command 'trian', did you mean 'train'?\n"


def test_version() -> None:
    assert run("--version").stdout == f"mkdext {mkdext.__version__}\n"


def test_exit_status_of_a_command_is_passed_on() -> None:
    answer = run("doctor", "--nonsense")
    assert answer.returncode == 2
    assert "unrecognized arguments: --nonsense" in answer.stderr
