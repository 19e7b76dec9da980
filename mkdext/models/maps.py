"""The feature map in what a sub-module gives: a tensor, the first of several, or tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mkdext.models.user.adapted import AdaptedNetwork

_NEAR = 0.15  # by which the ratio of sides of tokens may differ from that of the image, logarithm


def map_in(output: Any, image_size: tuple[int, int]) -> Tensor | None:
    """The feature map `[B, C, h, w]` in an output; none if there is none.

    Args:
        output: What a sub-module gives. Of several tensors the first is taken. Tokens `[B, h*w, C]`
            are put in rows.
        image_size: Height and width of the image that the network works on, which tell those of
            tokens.

    Example:
        >>> import torch
        >>> map_in((torch.rand(2, 8 * 12, 5), None), (8, 12)).shape
        torch.Size([2, 5, 8, 12])
    """
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        output = next((inner for inner in output if isinstance(inner, Tensor)), None)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 4:
        return output
    grid = _grid(output.shape[1], *image_size) if output.ndim == 3 else None
    if grid is None:
        return None
    return output.transpose(1, 2).reshape(len(output), output.shape[2], *grid)


def size_inside(model: nn.Module, low: Tensor) -> tuple[int, int]:
    """Height and width of the image on which the user's network in `model` works, given `low`."""
    height, width = low.shape[2:]
    if isinstance(model, AdaptedNetwork):
        factor = model.scale if model.interface.enlarged else 1
        height, width = model.interface.sizes.fitting(height * factor, width * factor)
    return height, width


def _grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of tokens: those of the image, or others that are nearly as it is."""
    if tokens == height * width:
        return height, width
    found = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]

    def difference(sides: tuple[int, int]) -> float:
        return abs(math.log(sides[0] * width / (sides[1] * height)))

    best = min(found, key=difference, default=None)
    return best if best and min(best) > 1 and difference(best) < _NEAR else None
