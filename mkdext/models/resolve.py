"""From what a user writes on a command line to a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mkdext._system.near_names import did_you_mean
from mkdext._system.plugins import is_reference
from mkdext.models.blocks import SuperResolver
from mkdext.models.builtin import builtin_teacher
from mkdext.models.registry import create_model, model_names
from mkdext.models.user.adapted import adapt
from mkdext.models.user.factory import load_own, make_own
from mkdext.models.weights.files import load_model

BUILTIN = "builtin"
_OWN = "or your own, package.module:factory or file.py:factory"


def resolve_student(
    student: str, scale: int, options: Mapping[str, Any] | None = None
) -> SuperResolver:
    """The student that `student` means, with new weights.

    Args:
        student: One of `MODEL_NAMES`, or a network of the user: `package.module:factory` or
            `file.py:factory`, as `make_own` takes it.
        scale: Enlargement factor.
        options: Arguments of the user's factory by name.

    Returns:
        A network that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Raises:
        ValueError: The name is unknown, the user's network is not usable, or options are given to
            a network of this package.

    Example:
        >>> resolve_student("rcan-a", scale=2).scale
        2
    """
    if is_reference(student):
        network = make_own(student, "`student`", options)
        return adapt(network, scale, f"`student` {student}")
    if student not in model_names():
        raise _unknown("`student`", student, model_names())
    _refuse_options("student", student, options)
    return create_model(student, scale)


def resolve_teacher(
    teacher: str | None,
    weights: str | Path | None,
    scale: int,
    options: Mapping[str, Any] | None = None,
) -> SuperResolver:
    """The teacher that `teacher` and `teacher_weights` mean.

    Args:
        teacher: "builtin"; one of `MODEL_NAMES`, that the weights must be of; a network of the
            user, as `resolve_student` takes it; none: whatever network the weights are of, the
            built-in one without weights.
        weights: A file that `read_weights` can read. The user's factory may load its own instead.
        scale: Scale that the teacher must have.
        options: Arguments of the user's factory by name.

    Returns:
        A trained network in evaluation mode, whose parameters take no gradient. It maps
        `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1]. Torch's random generator
        is not touched.

    Raises:
        ValueError: The name is unknown, weights are missing or too many, they do not fit, the
            user's network is not usable, or options are given to a network of this package.

    Example:
        >>> resolve_teacher("builtin", None, scale=4).scale
        4
    """
    model: SuperResolver
    if teacher is not None and is_reference(teacher):
        with torch.random.fork_rng(devices=[]):
            model = load_own(teacher, weights, scale, "`teacher`", options=options)
        return model.eval().requires_grad_(False)
    names = BUILTIN, *model_names()
    if teacher is not None and teacher not in names:
        raise _unknown("`teacher`", teacher, names)
    _refuse_options("teacher", teacher or BUILTIN, options)
    if teacher == BUILTIN and weights is not None:
        raise ValueError(
            f"`teacher` {BUILTIN} has its own weights, got `teacher_weights` {weights}; "
            "leave one of them out"
        )
    if weights is not None:
        model = load_model(weights, scale, teacher)
    elif teacher in (None, BUILTIN):
        model = builtin_teacher(scale)
    else:
        raise ValueError(
            f"`teacher` {teacher} needs `teacher_weights` FILE, because a network with random "
            "weights teaches nothing; leave both out for the built-in teacher"
        )
    return model.eval().requires_grad_(False)


def _refuse_options(role: str, name: str, options: Mapping[str, Any] | None) -> None:
    if options:
        raise ValueError(
            f"`{role}_options` {', '.join(options)}: they go with your own network, "
            f"package.module:factory or file.py:factory, and `{role}` is {name}; leave them out"
        )


def _unknown(flag: str, name: str, known: tuple[str, ...]) -> ValueError:
    # A name with a dot is a module or file whose factory was forgotten.
    hint = did_you_mean(name, known) or ("; name its factory" if "." in name else "")
    return ValueError(f"{flag} {name} is unknown, there are {', '.join(known)}, {_OWN}{hint}")
