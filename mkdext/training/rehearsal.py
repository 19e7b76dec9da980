"""What a training does only later, tried before its first step, so that no step is lost by it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mkdext._command import is_out_of_memory
from mkdext.models import check_comes_back
from mkdext.models.own import evaluation_mode, unwrapped
from mkdext.models.user_code import in_words
from mkdext.training.saved_state import SavedState, write_state
from mkdext.training.validation import picture


def rehearse(
    student: nn.Module,
    state: Mapping[str, Any],
    origin: Mapping[str, Any],
    pairs: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Save a student and read it again, and let it enlarge a photograph of each set.

    It is left as it was.

    Args:
        student: As it will be saved.
        state: What a checkpoint will hold, the student's weights under `student`.
        origin: What its weights file will tell of it.
        pairs: Photographs `(lr, hr)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`.

    Raises:
        ValueError: Something of it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "state.pt")
        try:
            check_comes_back(unwrapped(student), origin)
            write_state(checkpoint, state)
            SavedState.read(checkpoint, "look at its state dict").load_module("student", student)
        except OSError:
            raise
        except (Exception, SystemExit) as error:  # Whatever code of others may raise.
            raise _failed(student, "saved and read again", error) from error
    with evaluation_mode(student):
        for lr, hr in pairs:
            try:
                made, needed = list(picture(student, lr).shape), list(hr.shape)
                if made != needed:
                    raise ValueError(f"it makes {made} of it, not {needed}")
            except (Exception, SystemExit) as error:
                size = f"{lr.shape[2]}x{lr.shape[1]}"
                raise _failed(student, f"measured on a photograph of {size}", error) from error


def _failed(student: nn.Module, what: str, error: BaseException) -> BaseException:
    if is_out_of_memory(error):
        return error
    name = type(unwrapped(student)).__name__
    return ValueError(f"student {name} cannot be {what}: {in_words(error)}")
