"""Options that are of the types that their fields are declared with."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class WrongKind(Exception):
    """A value is none that an option can have."""

    def __init__(self, must_be: str, error: type[Exception] = TypeError) -> None:
        """Tell what it must be, such as "a number", and what a caller is to raise."""
        super().__init__(must_be)
        self.must_be = must_be
        self.error = error


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
        except WrongKind as error:
            raise error.error(f"`{prefix}{name}` must be {error.must_be}, got {value!r}") from None
        if right is not value:
            object.__setattr__(options, name, right)


@functools.cache
def kinds_of(dataclass: type) -> Mapping[str, Any]:
    """The declared types of a dataclass's fields, without annotations of flags."""
    hints = get_type_hints(dataclass)
    return {field.name: hints[field.name] for field in dataclasses.fields(dataclass)}


def as_kind(value: Any, kind: Any, read: Callable[[str, type], Any] | None = None) -> Any:
    """A value as one of a declared type.

    Args:
        value: What was given.
        kind: A type, a `Literal`, a union with `None`, or a tuple of any number of one type.
        read: Makes a number of a text, or raises `ValueError`; none: a text is no number.

    Raises:
        WrongKind: It cannot be one.
    """
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (one for one in get_args(kind) if one is not types.NoneType)
        if value is None:
            return None
        try:
            return as_kind(value, inner, read)
        except WrongKind as error:
            raise WrongKind(f"{error.must_be} or None", error.error) from None
    if get_origin(kind) is Literal:
        known = type(value) in {type(one) for one in get_args(kind)}
        if known and value in get_args(kind):
            return value
        names = ", ".join(map(repr, get_args(kind)))
        raise WrongKind(f"one of {names}", ValueError if known else TypeError)
    if get_origin(kind) is tuple:
        return _as_tuple(value, get_args(kind)[0], read)
    if kind in (int, float) and isinstance(value, str) and read:
        try:
            return read(value, kind)
        except ValueError:
            raise WrongKind(_IN_WORDS[kind][0]) from None
    accepted, make = _ACCEPTED.get(kind, (kind, None))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise WrongKind(_IN_WORDS[kind][0] if kind in _IN_WORDS else f"of type {kind.__name__}")
    return value if make is None or type(value) is kind else make(value)


def _as_tuple(value: Any, kind: Any, read: Callable[[str, type], Any] | None) -> tuple[Any, ...]:
    items = value if isinstance(value, tuple | list) else (value,)
    try:
        right = tuple(as_kind(item, kind, read) for item in items)
    except WrongKind:
        several = _IN_WORDS[kind][1] if kind in _IN_WORDS else "lists of texts"
        raise WrongKind(f"a list of {several}") from None
    same = isinstance(value, tuple) and all(a is b for a, b in zip(right, value, strict=True))
    return value if same else right


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
