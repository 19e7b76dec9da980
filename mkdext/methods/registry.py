"""Distillation methods by name: those of this package, and those of users."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mkdext._system.near_names import did_you_mean
from mkdext._system.plugins import check_options, error_in_words, is_reference, loaded
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
    """The names of all registered methods; 'vanilla', training without a teacher, is none."""
    return tuple(sorted(_METHODS))


def known_method(name: str) -> bool:
    """Whether a method is registered as `name`, or `name` says where a class of the user's is.

    Example:
        >>> known_method("mkd"), known_method("methods.py:Mine"), known_method("vanilla")
        (True, True, False)
    """
    return name in _METHODS or is_reference(name)


def method_class(name: str) -> type[DistillationMethod]:
    """The method of a name.

    Args:
        name: One of `method_names()`, or a class of the user's: `package.module:Class` or
            `file.py:Class`.

    Raises:
        ValueError: There is none, near names are given; or the user's is no `DistillationMethod`.

    Example:
        >>> method_class("mkd").__name__
        'MKD'
    """
    if is_reference(name):
        return _users_class(name)
    if name not in _METHODS:
        near = did_you_mean(name, _METHODS)
        raise ValueError(
            f"distillation method must be one of {', '.join(method_names())}, or your own class, "
            f"package.module:Class or file.py:Class, got {name!r}{near}"
        )
    return _METHODS[name]


def make_method(
    method: str | type[DistillationMethod],
    student_channels: Sequence[int],
    teacher_channels: Sequence[int],
    options: Sequence[object] = (),
    given: Mapping[str, Any] | None = None,
) -> DistillationMethod:
    """Make a method for the channels of the distillation points.

    Args:
        method: As `method_class` takes it, or the class.
        student_channels: One number for each point.
        teacher_channels: Likewise.
        options: Options of several methods, of which this one takes that of its `Options`; none is
            of this class: its defaults.
        given: Options of this method by name, which override those.

    Raises:
        ValueError: There is no such method, it has no such option, an option is not usable, or the
            user's constructor fails.

    Example:
        >>> make_method("mkd", [16], [32], given={"grid": 4}).options.grid
        4
    """
    what = f"`method` {method if isinstance(method, str) else method.__name__}"
    made_of = method_class(method) if isinstance(method, str) else method
    given = given or {}
    if made_of.Options is None:
        check_options(made_of, given, what, before=2)
    else:
        check_options(made_of.Options, given, what)
    try:
        if made_of.Options is None:
            return made_of(student_channels, teacher_channels, **given)
        of_this = [own for own in options if type(own) is made_of.Options]
        own: Any = of_this[0] if of_this else made_of.Options()
        try:
            changed = dataclasses.replace(own, **given)
        except TypeError as error:
            raise ValueError(str(error)) from None
        return made_of(student_channels, teacher_channels, changed)  # type: ignore[call-arg]
    except ValueError:
        raise
    except Exception as error:  # Whatever the user's code may raise.
        raise ValueError(f"{what} cannot be made: {error_in_words(error)}") from error


def try_method(
    method: DistillationMethod,
    student: Sequence[Sequence[int]],
    teacher: Sequence[Sequence[int]],
    twice: bool,
    what: str,
) -> None:
    """Check that a user's method computes a loss with a gradient, by computing it once.

    The method is left as it was.

    Args:
        method: The method.
        student: Shapes of the student's feature maps, `[C, h, w]` for each point.
        teacher: Shapes of the teacher's.
        twice: Whether the meta-gradient is to be taken through it.
        what: Names it in error messages.

    Raises:
        ValueError: It fails, or what it gives is no scalar, not finite, or without a gradient.
    """
    method = copy.deepcopy(method)
    device = next((p.device for p in method.parameters()), torch.device("cpu"))
    maps = [_wave(shape, device).requires_grad_() for shape in student]
    hints = [_wave(shape, device) for shape in teacher]
    with torch.random.fork_rng(devices=[]):
        try:
            loss = method(maps, hints)
        except (Exception, SystemExit) as error:  # Whatever the user's code may raise.
            sizes = ", ".join(str(list(m.shape)) for m in maps)
            raise ValueError(f"{what} fails on maps {sizes}: {error_in_words(error)}") from error
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{what} must give a scalar tensor of floating point, got {got}")
        if not loss.isfinite():
            raise ValueError(f"{what} gives {loss.item()} for maps of numbers from -1 to 1")
        if not loss.requires_grad:
            raise ValueError(f"{what} gives a loss that does not depend on the student's maps")
        own = list(method.parameters())
        try:
            method.gradient(maps, hints, twice, own)
            if twice:
                # Of the square: a function that is differentiable once only is passed by in silence
                # where what arrives at it is a constant.
                slopes = torch.autograd.grad(
                    loss.square(),
                    (*maps, *own),
                    create_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                torch.autograd.backward(torch.stack([s.square().sum() for s in slopes]).sum())
        except RuntimeError as error:
            often = "twice, which the meta-gradient needs" if twice else "at all"
            raise ValueError(
                f"{what} cannot be differentiated {often}: {error_in_words(error)}"
            ) from error


def _wave(shape: Sequence[int], device: torch.device) -> Tensor:
    """Two feature maps of numbers from -1 to 1 that differ in all places."""
    numbers = torch.arange(2 * math.prod(shape), device=device, dtype=torch.float32)
    return numbers.sin().view(2, *shape)


def _users_class(name: str) -> type[DistillationMethod]:
    what = f"`method` {name}"
    with loaded(name, what, "Class") as found:
        if not isinstance(found, type) or not issubclass(found, DistillationMethod):
            is_class = isinstance(found, type)
            kind = found.__name__ if is_class else f"an object {type(found).__name__}"
            raise ValueError(
                f"{what} must be a class derived from mkdext.methods.DistillationMethod, got {kind}"
            )
        return found
