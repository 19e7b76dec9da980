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
from mkdext.models.user import spandrel
from mkdext.models.user.adapted import adapt
from mkdext.models.user.factory import load_own, make_own
from mkdext.models.weights.files import UnknownArchitecture, load_model, read_metadata

BUILTIN = "builtin"
_OWN = (
    f"{', '.join(spandrel.SMALL)} or spandrel:CLASS (of the package spandrel), or your own, "
    "package.module:factory or file.py:factory"
)


def is_from_elsewhere(name: str) -> bool:
    """Whether `name` is that of a network of the user's or of spandrel's, and not of this package.

    Example:
        >>> [is_from_elsewhere(name) for name in ("net.py:make", "span-s", "rcan-a")]
        [True, True, False]
    """
    return is_reference(name) or spandrel.is_of_spandrel(name)


def make_from_elsewhere(
    name: str, scale: int, flag: str, options: Mapping[str, Any] | None = None
) -> SuperResolver:
    """A network of the user's or of spandrel's, as its factory makes it.

    Args:
        name: `package.module:factory`, `file.py:factory`, `spandrel:CLASS`, or one of `SMALL`.
        scale: Enlargement factor.
        flag: The option that `name` was given to, for error messages.
        options: Arguments of the factory by name.

    Raises:
        ValueError: There is none, or it is not usable.
    """
    if spandrel.is_of_spandrel(name):
        return spandrel.make(name, scale, flag, options)
    return adapt(make_own(name, flag, options), scale, f"{flag} {name}")


def load_recognised(weights: str | Path, scale: int | None = None) -> SuperResolver:
    """The network that a file holds the weights of: of this package, or else one of spandrel's.

    Args:
        weights: A file that `read_weights` can read.
        scale: Scale that the network must have; none: that of the file.

    Raises:
        ValueError: As `load_model`; what it refuses is refused by spandrel too, or that is not
            installed.
    """
    name = spandrel.recorded_name(weights)
    if name is not None:
        return spandrel.load_named(name, weights, scale, "`model`")
    try:
        return load_model(weights, scale)
    except ValueError as error:
        own = error
    is_unknown = isinstance(own, UnknownArchitecture)
    metadata = read_metadata(weights)
    if metadata is not None and metadata.factory is not None:
        raise own
    if not spandrel.is_installed():
        more = f"; for the networks that the package spandrel knows: {spandrel.INSTALL}"
        raise UnknownArchitecture(f"{own}{more}") if is_unknown else own
    try:
        found = spandrel.load(weights, scale)
    except ValueError as error:
        raise (error if is_unknown else own) from None
    if found is None:
        raise own
    return found


def resolve_student(
    student: str, scale: int, options: Mapping[str, Any] | None = None
) -> SuperResolver:
    """The student that `student` means, with new weights.

    Args:
        student: One of `MODEL_NAMES`; a network of the user, `package.module:factory` or
            `file.py:factory`, as `make_own` takes it; or one of spandrel, `spandrel:CLASS` or the
            name of a small one.
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
    if is_from_elsewhere(student):
        return make_from_elsewhere(student, scale, "`student`", options)
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
            user or of spandrel, as `resolve_student` takes it; none: whatever network the weights
            are of, the built-in one without weights.
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
    if teacher is not None and spandrel.is_of_spandrel(teacher):
        if weights is None:
            raise _without_weights(teacher)
        model = spandrel.load_named(teacher, weights, scale, "`teacher`", options)
        return model.requires_grad_(False)
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
        model = load_model(weights, scale, teacher) if teacher else load_recognised(weights, scale)
    elif teacher in (None, BUILTIN):
        model = builtin_teacher(scale)
    else:
        raise _without_weights(teacher)
    return model.eval().requires_grad_(False)


def _without_weights(teacher: str | None) -> ValueError:
    return ValueError(
        f"`teacher` {teacher} needs `teacher_weights` FILE, because a network with random "
        "weights teaches nothing; leave both out for the built-in teacher"
    )


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
