"""Students that grow: parts of the body are added one after another (eq. 5, Algorithm 1)."""

from __future__ import annotations

import math

from torch import nn

from mkdext.models import SRNetwork
from mkdext.models.handling import unwrapped


def part_counts(student: nn.Module, stages: int) -> list[int]:
    """How many parts of its body a student has in each stage, in the last one all.

    Args:
        student: The whole student.
        stages: P, how many.

    Raises:
        ValueError: The student cannot grow in as many stages.

    Example:
        >>> from mkdext.models import create_model
        >>> part_counts(create_model("vdsr-half", scale=2), stages=4)
        [5, 9, 14, 18]
    """
    if stages < 1:
        raise ValueError(f"`stages` must be at least 1, got {stages}")
    if not isinstance(student, SRNetwork):
        if stages == 1:
            return [1]
        raise ValueError(
            f"`stages` {stages}: {type(unwrapped(student)).__name__} is your own "
            "network, and mkdext does not know how it grows; take `stages` 1"
        )
    parts = len(student.stages())
    if stages > parts:
        raise ValueError(
            f"`stages` {stages}: {type(student).__name__} has {parts} {student.part_count}, it can "
            f"grow in at most as many stages; take `stages` {parts}"
        )
    return [math.ceil(stage * parts / stages) for stage in range(1, stages + 1)]


def carry_over(trained: SRNetwork, student: SRNetwork) -> None:
    """Give a student the weights of the smaller one that it has grown from.

    Parts are appended at the end of the body. What follows the body keeps its weights; where it
    sees the outputs of all parts (RDN's global feature fusion, HAN's layer attention), the weights
    for the new parts stay as they are.

    Args:
        trained: What `SRNetwork.with_parts` made, after training.
        student: The same network with as many parts or more, which is changed.
    """
    state = student.state_dict()
    for name, weight in trained.state_dict().items():
        own_name = trained.name_in(student, name)
        assert own_name is not None  # A grown student has all that it had.
        state[own_name] = student.widened(own_name, weight, state[own_name])
    student.load_state_dict(state)
