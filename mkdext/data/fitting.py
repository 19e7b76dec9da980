"""Pairs of photographs whose sizes need not fit to the pixel."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mkdext.data.decoding import BadImageError, Levels

_MOST_CUT = 12  # pixels: data sets are cut to multiples of 12, to fit scales of 2, 3 and 4


def whole_cells(high: Tensor, scale: int) -> Tensor:
    """Cut `[3, H, W]` at the right and the bottom to multiples of `scale`."""
    height, width = (size // scale * scale for size in high.shape[1:])
    return high[:, :height, :width]


def mirrored(levels: Levels, side: int) -> Levels:
    """Continue `[3, H, W]` by its mirror image at the right and the bottom up to a size.

    The pixels at the border come twice, so that both versions of a photograph stay aligned.

    Example:
        >>> mirrored(np.arange(6, dtype=np.uint8).reshape(1, 2, 3), 4)[0].tolist()
        [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2]]
    """
    missing = [max(side - length, 0) for length in levels.shape[1:]]
    if not any(missing):
        return levels
    return np.pad(levels, ((0, 0), (0, missing[0]), (0, missing[1])), "symmetric")


def fitted(low: Tensor, high: Tensor, scale: int, crop: bool = False) -> tuple[Tensor, Tensor]:
    """A photograph with a given low-resolution version, cut so that their sizes fit.

    Args:
        low: `[3, h, w]`.
        high: `[3, H, W]`.
        scale: Downscaling factor.
        crop: Whether both may be cut at the right and the bottom to the whole cells that they
            share, as EDSR's code does; otherwise only `high` is cut to a multiple of `scale`.

    Returns:
        `low` `[3, h, w]` and `high` `[3, scale*h, scale*w]`.

    Raises:
        BadImageError: The sizes do not fit; of `low`.

    Example:
        >>> import torch
        >>> low, high = fitted(torch.zeros(3, 43, 34), torch.zeros(3, 170, 134), 4, crop=True)
        >>> low.shape, high.shape
        (torch.Size([3, 42, 33]), torch.Size([3, 168, 132]))
    """
    needed = [side // scale for side in high.shape[1:]]
    given = list(low.shape[1:])
    if given != needed:
        differences = [abs(a * scale - b) for a, b in zip(given, high.shape[1:], strict=True)]
        is_near = max(differences) < max(_MOST_CUT, scale)
        if not (crop and is_near):
            hint = "; `crop` cuts both to what they share" if is_near else ""
            raise BadImageError(
                f"must be {needed[1]}x{needed[0]} pixels in low resolution, has "
                f"{given[1]}x{given[0]}, for a photograph of {high.shape[2]}x{high.shape[1]}{hint}"
            )
    height, width = (min(pair) for pair in zip(given, needed, strict=True))
    return low[:, :height, :width], high[:, : height * scale, : width * scale]
