"""README, CONTRIBUTING and docs: their commands are accepted, their Python runs, their links lead.

Shell blocks run in a real shell whose programs only note how they were called. What they noted is
given to the real parser of each command.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

from mkdext import __main__ as dispatch
from mkdext.methods import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}

BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"\n]*)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PROGRAMS = (
    *("python", "mkdext", "pip", "pytest", "ruff", "mypy", "mkdocs", "pre-commit", "cmake"),
    "torchrun",
)
IGNORED = {"cmake", "g++", "which", "rm", "phases", ".ci/run"}
OF_OTHERS = {"--help", "--rgb_range"}


class Block(NamedTuple):
    page: str
    language: str
    title: str
    code: str


BLOCKS = [Block(page, *found) for page, text in TEXTS.items() for found in BLOCK.findall(text)]
SHELL = [block for block in BLOCKS if block.language in {"sh", "bash", "shell", "console"}]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SPANS = {
    page: [span for span in INLINE.findall(BLOCK.sub("", text))] for page, text in TEXTS.items()
}
ONE_LINERS = [
    Block(page, "sh", "", span)
    for page, spans in SPANS.items()
    for span in dict.fromkeys(spans)
    if span.split()[0] in PROGRAMS and len(span.split()) > 1 and "NAME" not in span
]


def name_of(block: Block) -> str:
    return f"{block.page}: {' '.join(block.code.split())[:60]}"


class Parsed(BaseException):
    """Flags were accepted. No command catches it."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the commands of the pages name."""
    monkeypatch.chdir(tmp_path)
    # Copied, not linked: a command may write into what it names.
    shutil.copytree(ROOT / "configs", "configs")
    Path("docs/schema").mkdir(parents=True)
    for name in ("photographs", "holdout"):
        Path(name).mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (200, 208, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{name}/noise.png")
    for block in PYTHON:
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("block", SHELL + ONE_LINERS, ids=name_of)
def test_a_command_is_accepted(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls_of(block.code, folder)
    assert called
    for program, *arguments in called:
        check(program, arguments, monkeypatch)


def test_a_command_that_is_not_accepted_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (
        "python -m mkdext.train --itterations 3",
        "mkdext evaluate --data Set5 --scale four",
        "python -m mkdext.complexity --sizes 3",
        "python benchmarks/bench_dynconv.py --thread 1",
        "python benchmarks/missing.py",
        "pip install '.[tests]'",
        "pytest tests/ops/test_missing.py",
        "python -m mkdext.compare --methods vanilla --method-options mkd meta.evry=4",
    ):
        (call,) = calls_of(code, folder)
        with pytest.raises((AssertionError, SystemExit, ValueError)):
            check(call[0], call[1:], monkeypatch)
    with pytest.raises(subprocess.CalledProcessError):
        calls_of("pythn -m mkdext.train", folder)


def calls_of(code: str, folder: Path) -> list[list[str]]:
    """Programs that a shell block calls, and their arguments, in order."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    log = folder / "calls"
    note = f'#!/bin/sh\nprintf "%s\\0" "${{0##*/}}" "$@" >>"{log}"\nprintf "\\n" >>"{log}"\n'
    for name in {*PROGRAMS, *IGNORED}:
        path = programs / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(note)
        path.chmod(0o755)
    for name in ("phases", ".venv/bin/activate"):  # what a block makes and then uses
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    log.write_text("")
    subprocess.run(
        ["/bin/bash", "-euc", code],
        cwd=folder,
        env={"PATH": str(programs)},
        check=True,
        capture_output=True,
    )
    return [line.rstrip("\0").split("\0") for line in log.read_text().splitlines()]


def check(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise if a program does not take these arguments."""
    match program, arguments:
        case "python", ["-m", "mkdext", *rest]:
            check("mkdext", rest, monkeypatch)
        case "python", ["-m", module, *rest] if module.startswith("mkdext."):
            check("mkdext", [module.removeprefix("mkdext."), *rest], monkeypatch)
        case "torchrun", arguments:
            # Its own flags are PyTorch's, which tells what to run and with which flags.
            run = get_args_parser().parse_args(arguments)
            assert run.module
            check("python", ["-m", run.training_script, *run.training_script_args], monkeypatch)
        case "python", ["-m", "pytest", *rest]:
            check("pytest", rest, monkeypatch)
        case "python", ["-m", "venv", _]:
            pass
        case "python", [script, *rest]:
            assert (ROOT / script).is_file(), f"there is no {script}"
            unknown = {flag for flag in rest if flag.startswith("--")} - flags_of_script(script)
            assert not unknown, f"{script} does not take {unknown}"
        case "mkdext", [command, *rest]:
            assert command in dispatch.COMMANDS, f"there is no command {command}"
            with monkeypatch.context() as patch:
                parse(command, rest, patch)
        case "pip", ["install", *names]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
                "optional-dependencies"
            ]
            given = re.findall(r"\[(.*?)\]", " ".join(names))
            wanted = {extra for some in given for extra in some.split(",")}
            assert wanted <= {*extras}, f"there is no extra of {names}"
        case "pytest", rest:
            missing = [path for path in rest if "/" in path and not (ROOT / path).exists()]
            assert not missing
        case _:
            assert program in {*PROGRAMS, *IGNORED}


def parse(command: str, arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Give flags to the real parser of a command, and stop before anything else is done.

    Raises:
        SystemExit: A flag is unknown or malformed.
        ValueError: A value is refused.
    """
    module = module_of(command)
    for flag, name in itertools.pairwise(arguments):
        config = {"--config": Path(name), "--out": Path(name, "config.yaml")}.get(flag)
        if config and not config.exists() and {"--config", "--resume"} & {*arguments}:
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text("seed: 0\n")  # of an earlier run
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            module.main(arguments)
        return
    if command in {"train", "datafree"}:
        module.parse(arguments)
        return
    if command == "compare":
        module.parse(arguments).comparison()
        return

    def stopping(parser: Callable[..., Any]) -> Callable[..., Any]:
        def parse_and_stop(*given: Any, **more: Any) -> None:
            parser(*given, **more)
            raise Parsed

        return parse_and_stop

    if hasattr(module, "parse_flags"):
        patch.setattr(module, "parse_flags", stopping(module.parse_flags))
    else:
        parser = argparse.ArgumentParser
        patch.setattr(parser, "parse_args", stopping(parser.parse_args))
    try:
        status = module.main(arguments)
    except Parsed:
        return
    raise ValueError(f"{command} {shlex.join(arguments)} ended with status {status}")


def module_of(command: str) -> ModuleType:
    is_package = (ROOT / "mkdext" / command).is_dir()
    return importlib.import_module(f"mkdext.{command}{'.__main__' * is_package}")


@cache
def flags_of_script(script: str) -> set[str]:
    """Flags that are in the text of a Python script."""
    return set(re.findall(r'"(--[a-z][a-z0-9-]*)"', (ROOT / script).read_text())) | {
        "--inplace",
        "--help",
    }


@cache
def known_flags() -> frozenset[str]:
    """Every flag of every command and benchmark, as its help or its text has it."""
    known = set(OF_OTHERS)
    for path in (ROOT / "benchmarks").glob("*.py"):
        known |= flags_of_script(str(path.relative_to(ROOT)))
    for command in dispatch.COMMANDS:
        known |= set(re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", help_of(command)))
    return frozenset(known)


def help_of(command: str) -> str:
    """What a command says of its flags, with those of its sub-commands."""
    said = io.StringIO()
    for name in ("prepare", "check", "list") if command == "data" else ("",):
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
            module_of(command).main([*filter(None, [name]), "--help"])
    return said.getvalue()


@pytest.mark.parametrize("page", SPANS)
def test_flags_in_the_text_exist(page: str) -> None:
    named = {
        flag
        for span in SPANS[page]
        if span.startswith("--")
        for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9._-]*", span)
    }
    assert named <= known_flags()


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_a_python_example_runs(
    block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    names: dict[str, Any] = {"__name__": "example"}
    exec(block.code.replace("iterations=20_000", "iterations=1, batch_size=1"), names)
    if "print(" in block.code:
        assert "dB" in capsys.readouterr().out
    if "large" in names:
        assert isinstance(names["large"], torch.Tensor)
        assert names["large"].shape == (1, 3, 192, 192)


def test_the_network_of_the_page_is_trained_by_its_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [block for block in SHELL if block.page == "docs/own_network.md"]
    _, _, _, *arguments = calls_of(own[0].code, folder)[0]
    train = importlib.import_module("mkdext.train")
    assert train.main([*arguments, "--allow-weak-teacher", "--dry-run"]) == 0
    assert "student espcn.py:ESPCN" in capsys.readouterr().out


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", BLOCK.sub("", TEXTS[page]))
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("page", TEXTS)
def test_variables_of_the_environment_are_read_somewhere(page: str) -> None:
    sources = [
        path.read_text()
        for pattern in ("mkdext/**/*.py", "build_backend/*.py", "csrc/**/*.[ch]*", "CMakeLists.txt")
        for path in ROOT.glob(pattern)
    ]
    for variable in set(re.findall(r"MKDEXT_[A-Z_]+[A-Z]", TEXTS[page])):
        assert any(variable in source for source in sources), variable


def test_the_reference_names_what_there_is() -> None:
    for page, text in TEXTS.items():
        for name in re.findall(r"^::: (.*)$", text, re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            found = importlib.import_module(module)
            assert hasattr(found, attribute), f"{page}: {name}"


def test_every_page_is_in_the_site() -> None:
    def listed(entries: Any) -> Iterator[str]:
        match entries:
            case str():
                yield entries
            case dict():
                yield from listed(list(entries.values()))
            case list():
                for entry in entries:
                    yield from listed(entry)

    class Loader(yaml.SafeLoader):
        """Reads the names of Python objects as nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(listed(site["nav"])) == pages
    assert {"README.md", "CONTRIBUTING.md"} < set(TEXTS)
