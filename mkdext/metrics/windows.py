"""Square parts of pictures."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

SIDE = 96
"""Width and height of a part that is shown, unless another is named."""


class Window(NamedTuple):
    """A square part of a picture, in its pixels."""

    left: int
    top: int
    size: int

    def of(self, picture: Tensor) -> Tensor:
        """The part of a picture `[..., H, W]`."""
        return picture[..., self.top : self.top + self.size, self.left : self.left + self.size]


def strongest_window(
    values: Tensor, size: int = SIDE, stride: int | None = None
) -> tuple[Window, float]:
    """The square with the largest mean.

    Args:
        values: `[H, W]`, float.
        size: Width and height of the square; where there is less, as much as there is.
        stride: Pixels from one square to the next; default: a quarter of its width.

    Returns:
        The square, and its mean.

    Example:
        >>> import torch
        >>> strongest_window(torch.ones(192, 192).tril(-96))[0]
        Window(left=0, top=96, size=96)
    """
    size = min(size, *values.shape)
    stride = stride or max(size // 4, 1)
    means = functional.avg_pool2d(values[None], size, stride)[0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return Window(column * stride, row * stride, size), float(means.max())
