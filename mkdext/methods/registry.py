"""Distillation methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mkdext._system.near_names import did_you_mean
from mkdext.methods.base import DistillationMethod

_METHODS: dict[str, type[DistillationMethod]] = {}
_Method = TypeVar("_Method", bound=type[DistillationMethod])


def register(name: str) -> Callable[[_Method], _Method]:
    """Decorator that makes a method known as `name`."""

    def add(method: _Method) -> _Method:
        _METHODS[name] = method
        return method

    return add


def method_names() -> tuple[str, ...]:
    """The names of all methods; 'vanilla', training without a teacher, is none."""
    return tuple(sorted(_METHODS))


def method_class(name: str) -> type[DistillationMethod]:
    """The method of a name.

    Raises:
        ValueError: There is none; near names are given.

    Example:
        >>> method_class("mkd").__name__
        'MKD'
    """
    if name not in _METHODS:
        near = did_you_mean(name, _METHODS)
        raise ValueError(
            f"distillation method must be one of {', '.join(method_names())}, got {name!r}{near}"
        )
    return _METHODS[name]
