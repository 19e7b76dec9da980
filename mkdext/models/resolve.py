"""From what a user writes on a command line to a network."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mkdext.models.builtin import builtin_teacher
from mkdext.models.checkpoints import load_model
from mkdext.models.near_names import did_you_mean
from mkdext.models.registry import MODEL_NAMES

BUILTIN = "builtin"
TEACHER_NAMES = (BUILTIN, *MODEL_NAMES)


def resolve_teacher(teacher: str | None, weights: str | Path | None, scale: int) -> nn.Module:
    """The teacher that `--teacher` and `--teacher-weights` mean.

    Args:
        teacher: "builtin", or one of `MODEL_NAMES` that the weights must be of; none: whatever
            network the weights are of, the built-in one without weights.
        weights: A file that `read_weights` can read.
        scale: Scale that the teacher must have.

    Returns:
        A trained network in evaluation mode, whose parameters take no gradient. It maps
        `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Raises:
        ValueError: The name is unknown, weights are missing or too many, or they do not fit.

    Example:
        >>> resolve_teacher("builtin", None, scale=4).scale
        4
    """
    if teacher is not None and teacher not in TEACHER_NAMES:
        raise ValueError(
            f"--teacher {teacher} is unknown, there are {', '.join(TEACHER_NAMES)}"
            f"{did_you_mean(teacher, TEACHER_NAMES)}"
        )
    if teacher == BUILTIN and weights is not None:
        raise ValueError(
            f"--teacher {BUILTIN} has its own weights, got --teacher-weights {weights}; "
            "leave one of them out"
        )
    if weights is not None:
        model = load_model(weights, scale, teacher)
    elif teacher in (None, BUILTIN):
        model = builtin_teacher(scale)
    else:
        raise ValueError(
            f"--teacher {teacher} needs --teacher-weights FILE, because a network with random "
            "weights teaches nothing; leave both out for the built-in teacher"
        )
    return model.eval().requires_grad_(False)
