"""Who may import whom: imports inside the package point downward."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import mkdext
from mkdext.__main__ import COMMANDS

ROOT = Path(mkdext.__file__).parent

LAYERS = (
    {"_system"},
    {"ops"},
    {"models", "methods", "synthesis", "data", "metrics", "page"},
    {"meta", "training"},
    {"comparison", "inference", "exporting"},
    {"_cli"},
    {"commands"},
)
RANKS = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}


class Import(NamedTuple):
    """What a file takes from another package of this one."""

    file: str
    package: str
    imported: str

    @property
    def is_allowed(self) -> bool:
        strangers = {self.package, self.imported} == {"methods", "models"}
        downward = RANKS[self.imported] <= RANKS[self.package]
        return downward and not strangers and self.imported != "commands"


def package_of(module: str) -> str:
    """The folder that a module is in; what is at the top level, or can be called, is a command."""
    first, *inner = [*module.split(".")[1:], ""]
    is_package = (ROOT / first / "__init__.py").exists() and inner[0] != "__main__"
    return first if is_package else "commands"


def imported_by(path: Path) -> Iterator[str]:
    """Modules and names, also those that a function imports or that only type checkers see."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def imports() -> list[Import]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT)
        package = package_of(".".join(["mkdext", *file.with_suffix("").parts]))
        for name in imported_by(path):
            if name.split(".")[0] == "mkdext" and name != "mkdext.__version__":
                imported = package_of(name)
                if imported != package or imported == "commands":
                    found.append(Import(file.as_posix(), package, imported))
    return found


def test_the_top_level_has_the_commands_and_nothing_else():
    there = {path.name.split(".")[0] for path in ROOT.iterdir()} - {"__pycache__", "_C"}
    others = {"__init__", "__main__", "py", "assets"}  # "py": py.typed
    assert there == (RANKS.keys() - {"commands"}) | COMMANDS.keys() | others


def test_every_package_is_in_a_layer():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == RANKS.keys() - {"commands"}


def test_imports_point_downward():
    assert not [each for each in imports() if not each.is_allowed]


def test_no_packages_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for each in imports():
        graph.setdefault(each.package, set()).add(each.imported)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("package", "imported", "allowed"),
    [
        ("training", "models", True),
        ("synthesis", "models", True),
        ("commands", "_cli", True),
        ("models", "methods", False),
        ("methods", "models", False),
        ("inference", "_cli", False),
        ("data", "training", False),
        ("comparison", "commands", False),
        ("commands", "commands", False),
    ],
)
def test_these_are_the_rules(package, imported, allowed):
    assert Import("", package, imported).is_allowed == allowed
