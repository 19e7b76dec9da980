"""What a training does only later, tried before its first step, so that no step is lost by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mkdext._system.errors import is_out_of_memory
from mkdext._system.plugins import in_words
from mkdext._system.saved_state import SavedState, serialized
from mkdext.models import check_comes_back
from mkdext.models.handling import evaluation_mode, unwrapped
from mkdext.training.validation import picture

Pair = tuple[Tensor, Tensor]
"""A photograph `(lr, hr)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`."""


def rehearse(
    student: nn.Module,
    state: Mapping[str, Any],
    origin: Mapping[str, Any],
    pairs: Iterable[Pair],
) -> None:
    """Save a student and read it again, in memory, and let it enlarge some photographs.

    It is left as it was.

    Args:
        student: As it will be saved.
        state: What a checkpoint will hold, the student's weights under `student`.
        origin: What its weights file will tell of it.
        pairs: Some of those to measure on.

    Raises:
        ValueError: Something of it fails.
    """
    try:
        check_comes_back(unwrapped(student), origin)
        kept = SavedState.of(serialized(state), "its checkpoint", "look at its state dict")
        kept.load_module("student", student)
    except (Exception, SystemExit) as error:  # Whatever code of others may raise.
        raise _failed(student, "student", "saved and read again", error) from error
    try_on(student, "student", pairs)


def try_on(network: nn.Module, whose: str, pairs: Iterable[Pair]) -> None:
    """Let a network enlarge photographs.

    Raises:
        ValueError: It fails on one, or makes another size of it; `whose` begins the sentence.
    """
    with evaluation_mode(network):
        for lr, hr in pairs:
            try:
                made, needed = list(picture(network, lr).shape), list(hr.shape)
                if made != needed:
                    raise ValueError(f"it makes {made} of it, not {needed}")
            except (Exception, SystemExit) as error:
                what = f"measured on a photograph of {lr.shape[2]}x{lr.shape[1]}"
                raise _failed(network, whose, what, error) from error


def first_and_smallest(pairs: Sequence[Pair]) -> tuple[Pair, Pair]:
    """Two photographs of a set that tell most of what a network does with all of them."""
    sides = [min(pairs[index][0].shape[1:]) for index in range(len(pairs))]
    return pairs[0], pairs[sides.index(min(sides))]


def _failed(network: nn.Module, whose: str, what: str, error: BaseException) -> BaseException:
    if is_out_of_memory(error):
        return error
    name = type(unwrapped(network)).__name__
    return ValueError(f"{whose} {name} cannot be {what}: {in_words(error)}")
