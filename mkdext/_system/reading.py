"""What is read from files that others can have written: bounded in size and depth, and typed.

Every function takes `what`, which begins the one sentence that a `ValueError` says: the kind of
file and its path, or a flag and its value.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mkdext._system.errors import first_line

MOST_BYTES = 64 << 20
_MOST_DEPTH = 32
_MOST_YAML_BYTES = 1 << 20
_MOST_NODES = 20_000  # of a YAML file, those that aliases repeat counted each time

_Kind = TypeVar("_Kind")


def require_file(path: Path, what: str) -> None:
    """Check that a file is there to be read, and no folder, pipe or device.

    Raises:
        ValueError: It is not.
    """
    try:
        if not path.exists():
            raise ValueError(f"{what} does not exist")
        if not path.is_file():
            kind = "a directory; name a file in it" if path.is_dir() else "no regular file"
            raise ValueError(f"{what} is {kind}")
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from None


def read_bytes(path: Path, what: str, most: int = MOST_BYTES) -> bytes:
    """All of a file.

    Raises:
        ValueError: It is not there, cannot be read or is larger than `most`.
    """
    require_file(path, what)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from None
    if len(content) > most:
        raise ValueError(f"{what} is larger than {most / 1e6:,.0f} MB, more than it can be")
    return content


def read_json(path: Path, what: str, most: int = MOST_BYTES) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: As `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, what, most), what)


def parse_json(text: str | bytes, what: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: It is not JSON, is nested too deeply or has a name twice.

    Example:
        >>> parse_json('{"step": 1, "step": 2}', "metrics.jsonl")
        Traceback (most recent call last):
        ...
        ValueError: metrics.jsonl has 'step' twice
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _Twice(twice)
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except _Twice as error:
        raise ValueError(f"{what} has {str(error)!r} twice") from None
    except RecursionError:
        raise _too_deep(what) from None
    except ValueError as error:  # neither text nor JSON
        raise ValueError(f"{what} is not JSON ({error})") from None
    if _is_deeper(content, _MOST_DEPTH):
        raise _too_deep(what)
    return content


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: As `read_bytes` and `parse_yaml`.
    """
    return parse_yaml(read_bytes(path, what, _MOST_YAML_BYTES), what)


def parse_yaml(text: str | bytes, what: str) -> Any:
    """What a YAML text holds: plain values, lists and mappings.

    Raises:
        ValueError: It is not YAML, asks for more than plain values, is nested too deeply, becomes
            too large by its aliases, or has a name twice.

    Example:
        >>> parse_yaml("lr: 1.0e-4", "`config` a.yaml")
        {'lr': 0.0001}
    """
    try:
        content = yaml.load(text, _Loader)
    except _TooDeep:
        raise _too_deep(what) from None
    except _Twice as error:
        raise ValueError(f"{what} has {str(error)!r} twice") from None
    except _TooLarge:
        raise ValueError(f"{what} becomes too large through its aliases") from None
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{what} is not YAML: {error.problem}{where}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{what} is not YAML: {first_line(error)}") from None
    if _is_deeper(content, _MOST_DEPTH):
        raise _too_deep(what)
    return content


def damaged_entry(archive: zipfile.ZipFile) -> str | None:
    """The name of the first entry of a zip archive whose checksum is wrong; none if all are right.

    PyTorch does not compare the checksums that `torch.save` writes, and a flipped bit is another
    number. With `torch.serialization.set_crc32_options(False)` it writes zeros: those are not
    checksums.

    Raises:
        Exception: An entry cannot be read, in any of the ways in which zip archives are damaged.
    """
    return archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None


def entry(content: Any, name: str, kind: type[_Kind], what: str) -> _Kind:
    """A value of a mapping, of the kind that it must be of.

    An integer serves as a float; a truth value serves as no number.

    Raises:
        ValueError: `content` is no mapping, has no such name, or its value is of another kind.

    Example:
        >>> entry({"step": 3}, "step", int, "metrics.jsonl")
        3
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} must hold names and values, got {type(content).__name__}")
    if name not in content:
        raise ValueError(f"{what} has no {name!r}")
    value = content[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(
            f"{what}: {name!r} must be of type {kind.__name__}, got {type(value).__name__}"
        )
    return value


class _Twice(Exception):
    """A mapping has a name twice."""


class _TooDeep(Exception):
    """A node is nested too deeply."""


class _TooLarge(Exception):
    """Aliases make a document too large."""


def _too_deep(what: str) -> ValueError:
    return ValueError(f"{what} is nested more than {_MOST_DEPTH} levels deep")


def _is_deeper(content: Any, most: int) -> bool:
    level = [content]
    for _ in range(most):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return False
    return True


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, list):
        yield from item


class _Loader(yaml.SafeLoader):
    """Loads plain values, bounded."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _TooDeep
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {}, set())
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise _Twice(next(name for name in names if names.count(name) > 1))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _count_nodes(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Nodes below a node, those that aliases repeat counted each time."""
    if id(node) in above:
        raise _TooLarge  # It holds itself.
    if id(node) not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        inner = above | {id(node)}
        known[id(node)] = 1 + sum(_count_nodes(child, known, inner) for child in children)
    if known[id(node)] > _MOST_NODES:
        raise _TooLarge
    return known[id(node)]
