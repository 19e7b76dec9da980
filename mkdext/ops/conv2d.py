"""2-D convolution with one kernel for the whole batch, by Winograd's algorithm where that is faster.

On the CPU, in float32, with 3x3 kernels. Everything else is `torch.nn.functional.conv2d`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_is_stock = False


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, upscale_factor: int = 1
) -> Tensor:
    """Convolve a batch with one kernel; stride 1, zero "same" padding."""
    output = F.conv2d(input, weight, bias, padding=weight.shape[-1] // 2)
    return F.pixel_shuffle(output, upscale_factor) if upscale_factor > 1 else output


def conv2d_algorithm(input: Tensor, weight: Tensor) -> str:
    """Tell what `conv2d` takes: ``"winograd"`` or ``"stock"``."""
    return "stock"


@contextmanager
def stock_convolutions() -> Iterator[None]:
    """Let `conv2d` take `torch.nn.functional.conv2d` alone, in the whole process."""
    global _is_stock
    before, _is_stock = _is_stock, True
    try:
        yield
    finally:
        _is_stock = before
