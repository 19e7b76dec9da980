"""What networks compute in."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def computing_in(dtype: torch.dtype, image: Tensor) -> contextlib.AbstractContextManager[object]:
    """Let a network compute in `dtype`, by autocast, what it computes of `image`."""
    # Meta tensors have no autocast.
    if dtype == torch.float32 or image.is_meta:
        return contextlib.nullcontext()
    return torch.autocast(image.device.type, dtype)
