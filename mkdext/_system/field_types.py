"""Options that are of the types that their fields are declared with."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import types
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_types(options: Any, prefix: str = "") -> None:
    """Bring the fields of a frozen dataclass to their declared types, where that is no change.

    Text stands for a path, a list for a tuple and a single value for a tuple of one; an integer
    serves as a float, and numbers of numpy serve as Python's.

    Args:
        options: The dataclass, for its `__post_init__`.
        prefix: What comes before the names of its fields, such as "meta.".

    Raises:
        TypeError: A field is of another type; it is named.
        ValueError: A field is none of the names that it can be.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     folders: tuple[Path, ...] = ()
        ...     def __post_init__(self):
        ...         check_types(self)
        >>> Options("photographs").folders
        (PosixPath('photographs'),)
        >>> Options(3)
        Traceback (most recent call last):
        ...
        TypeError: `folders` must be a list of paths, got 3
    """
    for name, kind in kinds_of(type(options)).items():  # type: ignore[arg-type]
        value = getattr(options, name)
        try:
            right = as_kind(value, kind)
        except (TypeError, ValueError) as error:
            message = f"`{prefix}{name}` must be {kind_in_words(kind)}, got {value!r}"
            raise type(error)(message) from None
        if right is not value:
            object.__setattr__(options, name, right)


@functools.cache
def kinds_of(dataclass: type) -> Mapping[str, Any]:
    """The declared types of a dataclass's fields, without annotations of flags."""
    hints = get_type_hints(dataclass)
    return {field.name: hints[field.name] for field in dataclasses.fields(dataclass)}


def as_kind(value: Any, kind: Any) -> Any:
    """A value as one of a declared type.

    Args:
        value: What was given.
        kind: A type, a `Literal`, a union with `None`, or a tuple of any number of one type.

    Raises:
        TypeError: It cannot be one.
        ValueError: It is none of the names that it can be.
    """
    inner = _or_none(kind)
    if inner is not None:
        return None if value is None else as_kind(value, inner)
    if get_origin(kind) is Literal:
        if value in get_args(kind) and type(value) in set(map(type, get_args(kind))):
            return value
        raise ValueError if type(value) in set(map(type, get_args(kind))) else TypeError
    if get_origin(kind) is tuple:
        items = value if isinstance(value, tuple | list) else (value,)
        right = tuple(as_kind(item, get_args(kind)[0]) for item in items)
        same = isinstance(value, tuple) and all(a is b for a, b in zip(right, value, strict=True))
        return value if same else right
    accepted, make = _ACCEPTED.get(kind, (kind, None))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value if make is None or type(value) is kind else make(value)


def as_written(value: Any, kind: Any) -> Any:
    """A value of a YAML file as one of a declared type.

    YAML 1.1, which is what is read, takes `1e-4` for a text; here it is a number.

    Raises:
        ValueError: It cannot be one.

    Example:
        >>> as_written("1e-4", float | None), as_written(["a"], tuple[Path, ...])
        (0.0001, (PosixPath('a'),))
    """
    is_float = float in (kind, _or_none(kind))
    if is_float and isinstance(value, str) and _POWER_OF_TEN.fullmatch(value):
        return float(value)
    try:
        return as_kind(value, kind)
    except TypeError:
        raise ValueError from None


def kind_in_words(kind: Any) -> str:
    """What values of a declared type are called.

    Example:
        >>> kind_in_words(float | None), kind_in_words(tuple[Path, ...])
        ('a number or None', 'a list of paths')
    """
    inner = _or_none(kind)
    if inner is not None:
        return f"{kind_in_words(inner)} or None"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return f"a list of {_IN_WORDS[item][1] if item in _IN_WORDS else 'lists of texts'}"
    return _IN_WORDS[kind][0] if kind in _IN_WORDS else f"of type {kind.__name__}"


def _or_none(kind: Any) -> Any:
    """The type that a union has beside `None`; none: it is no such union."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    (inner,) = (one for one in get_args(kind) if one is not types.NoneType)
    return inner


_POWER_OF_TEN = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")
_ACCEPTED: dict[Any, tuple[Any, Callable[[Any], Any]]] = {
    int: (Integral, int),
    float: (Real, float),
    Path: (str | os.PathLike, Path),
}
_IN_WORDS: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
}
