"""How large the students are, and how much they compute."""

from __future__ import annotations

import functools
from typing import NamedTuple

from mkdext._system.plugins import named_options
from mkdext.models import MODEL_NAMES, resolve_student
from mkdext.models.complexity import complexity
from mkdext.models.handling import count_parameters

_SIDE = 512  # of the low-resolution image, as in the papers


class Size(NamedTuple):
    """Of one student."""

    parameters: int
    """Trained numbers."""
    paper_parameters: int | None
    """By the papers' convention; none: not known of a user's network."""
    paper_flops: int | None
    """On a low-resolution image of 512x512, by the papers' convention."""
    macs: int | None
    """Multiplications with addition, on the same image."""


@functools.cache
def size_of(student: str, scale: int, options: tuple[str, ...] = ()) -> Size:
    """Count parameters and operations of a student.

    Args:
        student: As `TrainOptions.student`.
        scale: Enlargement factor.
        options: As `TrainOptions.student_options`.

    Raises:
        ValueError: The user's network is not usable any more.

    Example:
        >>> size_of("rcan-a", 4).paper_flops / 1e9
        22.028484868
    """
    given = named_options(options, "`student_options`")
    network = resolve_student(student, scale, given)
    parameters = count_parameters(network)
    try:
        counted = complexity(network, _SIDE)
    except (Exception, SystemExit):
        if student in MODEL_NAMES:
            raise
        # A user's code need not run on tensors without numbers.
        return Size(parameters, None, None, None)
    return Size(parameters, counted.paper_parameters, counted.paper_flops, counted.macs)
