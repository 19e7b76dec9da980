"""From what a user writes on a command line to a network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mkdext._system.near_names import did_you_mean
from mkdext.models.builtin import builtin_teacher
from mkdext.models.own import adapt
from mkdext.models.registry import MODEL_NAMES, create_model
from mkdext.models.user_code import is_own, make_own
from mkdext.models.weights.files import load_model, load_weights_file

BUILTIN = "builtin"
TEACHER_NAMES = (BUILTIN, *MODEL_NAMES)
_OWN = "or a network of yours, package.module:factory or file.py:factory"


def resolve_student(student: str, scale: int) -> nn.Module:
    """The student that `student` means, with new weights.

    Args:
        student: One of `MODEL_NAMES`, or a network of the user: `package.module:factory` or
            `file.py:factory`, as `mkdext.models.own` describes them.
        scale: Enlargement factor.

    Returns:
        A network that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Raises:
        ValueError: The name is unknown, or the user's network is not usable.

    Example:
        >>> resolve_student("rcan-a", scale=2).scale
        2
    """
    if is_own(student):
        return adapt(make_own(student, "`student`"), scale, f"`student` {student}")
    if student not in MODEL_NAMES:
        raise _unknown("`student`", student, MODEL_NAMES)
    return create_model(student, scale)


def resolve_teacher(teacher: str | None, weights: str | Path | None, scale: int) -> nn.Module:
    """The teacher that `teacher` and `teacher_weights` mean.

    Args:
        teacher: "builtin"; one of `MODEL_NAMES`, that the weights must be of; a network of the
            user, as `resolve_student` takes it; none: whatever network the weights are of, the
            built-in one without weights.
        weights: A file that `read_weights` can read. The user's factory may load its own instead.
        scale: Scale that the teacher must have.

    Returns:
        A trained network in evaluation mode, whose parameters take no gradient. It maps
        `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1]. Torch's random generator
        is not touched.

    Raises:
        ValueError: The name is unknown, weights are missing or too many, they do not fit, or the
            user's network is not usable.

    Example:
        >>> resolve_teacher("builtin", None, scale=4).scale
        4
    """
    if teacher is not None and is_own(teacher):
        with torch.random.fork_rng(devices=[]):
            model = load_own(teacher, weights, scale, "`teacher`")
        return model.eval().requires_grad_(False)
    if teacher is not None and teacher not in TEACHER_NAMES:
        raise _unknown("`teacher`", teacher, TEACHER_NAMES)
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


def load_own(
    name: str,
    weights: str | Path | None,
    scale: int,
    flag: str,
    size: tuple[int, int] | None = None,
) -> nn.Module:
    """A user's network with its weights.

    Args:
        name: `package.module:factory` or `file.py:factory`.
        weights: A file that `read_weights` can read; none: those that the factory gives it.
        scale: Enlargement factor.
        flag: The option that `name` was given to, for error messages.
        size: Height and width of the only pictures that it must take; none: any.

    Returns:
        A network that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Raises:
        ValueError: There is no such factory, the weights do not fit what it makes, or that is not
            usable at this scale.

    Example:
        >>> sharpen_nothing = load_own("torch.nn:Identity", None, scale=2, flag="`model`")
        >>> sharpen_nothing(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """
    network = make_own(name, flag)
    if weights is not None:
        try:
            load_weights_file(network, weights)
        except ValueError:
            # Some networks make what is to be loaded when they run first, as `adapt` has them.
            adapt(network, scale, f"{flag} {name}", size)
            load_weights_file(network, weights)
    return adapt(network, scale, f"{flag} {name}", size)


def _unknown(flag: str, name: str, known: tuple[str, ...]) -> ValueError:
    # A name with a dot is a module or file whose factory was forgotten.
    hint = did_you_mean(name, known) or ("; which factory of it?" if "." in name else "")
    return ValueError(f"{flag} {name} is unknown, there are {', '.join(known)}, {_OWN}{hint}")
