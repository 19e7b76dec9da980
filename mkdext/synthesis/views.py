"""Random views of images for instance discrimination, another one for each image of a batch.

Each view is one affine map of the plane, so that a batch takes one sampling operation and the views
can be differentiated. What lies outside of an image is its mirroring.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mkdext._system.device import sent

_SHIFT = 4  # pixels
_SMALLEST_AREA = 0.25
_LARGEST_RATIO = 4 / 3  # of width to height, and the reverse


def global_views(
    images: Tensor, random: torch.Generator, count: int | None = None, rows: slice = slice(None)
) -> Tensor:
    """Views of almost the whole: shifted by up to 4 pixels each way, mirrored or not.

    Args:
        images: `[B, C, h, w]`.
        random: Where the shifts come from, on the CPU.
        count: Of how many images these are some, for all of which shifts are drawn; none: all.
        rows: Which of them these are.

    Returns:
        `[B, C, h, w]`; every pixel is one of the image. Differentiable once.

    Example:
        >>> global_views(torch.rand(2, 3, 24, 24), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 24, 24])
    """
    count, (height, width) = len(images) if count is None else count, images.shape[-2:]
    shifts = torch.randint(-_SHIFT, _SHIFT + 1, (2, count), generator=random)
    ones, mirrored = torch.ones(count), _mirrored(count, random)
    down, right = 2 * shifts[0] / height, 2 * shifts[1] / width
    return _sampled(images, *(each[rows] for each in (ones, ones, down, right, mirrored)))


def local_views(
    images: Tensor, random: torch.Generator, count: int | None = None, rows: slice = slice(None)
) -> Tensor:
    """Enlarged views of a part: a quarter of the area or more, mirrored or not.

    Width and height of the part are as 3:4 to 4:3. It is enlarged bilinearly.

    Args:
        images: `[B, C, h, w]`.
        random: Where the parts come from, on the CPU.
        count: As for `global_views`.
        rows: As for `global_views`.

    Returns:
        `[B, C, h, w]`, differentiable once.

    Example:
        >>> local_views(torch.rand(2, 3, 24, 24), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 24, 24])
    """
    count = len(images) if count is None else count
    area, ratio, top, left = torch.rand(4, count, generator=random)
    side = (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * area).sqrt()
    stretch = torch.tensor(_LARGEST_RATIO).pow(ratio - 0.5)  # square root of the ratio
    height, width = (side / stretch).clamp(max=1), (side * stretch).clamp(max=1)
    # Centres such that the part, in an image from -1 to 1, does not reach beyond it.
    down, right = (2 * top - 1) * (1 - height), (2 * left - 1) * (1 - width)
    mirrored = _mirrored(count, random)
    return _sampled(images, *(each[rows] for each in (height, width, down, right, mirrored)))


def _mirrored(count: int, random: torch.Generator) -> Tensor:
    """-1 for half of the images, 1 for the others."""
    return 1 - 2 * torch.randint(2, (count,), generator=random)


def _sampled(
    images: Tensor, height: Tensor, width: Tensor, down: Tensor, right: Tensor, mirrored: Tensor
) -> Tensor:
    """The parts of given size and centre, where an image reaches from -1 to 1."""
    maps = torch.zeros(len(images), 2, 3)
    maps[:, 0, 0], maps[:, 0, 2] = width * mirrored, right
    maps[:, 1, 1], maps[:, 1, 2] = height, down
    maps = sent(maps.to(images.dtype), images.device)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
