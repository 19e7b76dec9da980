"""MATLAB's `imresize(image, scale, 'bicubic')`, exact and differentiable.

torch's antialiased bicubic interpolation has MATLAB's kernel (a = -0.5, stretched when
downscaling) and differs only at the border, where MATLAB mirrors the image with the edge pixel
repeated. So the image is padded that way, interpolated and cropped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_BICUBIC_RADIUS = 2


def imresize(images: Tensor, scale: float) -> Tensor:
    """Resize images as MATLAB's bicubic `imresize` with antialiasing does.

    Args:
        images: `[..., H, W]`, floating point or uint8. Floating point is not clipped and can be
            differentiated any number of times. uint8 is rounded and clipped after each of the two
            passes (rows first), as MATLAB does.
        scale: An integer factor, or one divided by an integer. The result has
            `ceil(scale * H)` rows and `ceil(scale * W)` columns.

    Returns:
        `[..., ceil(scale * H), ceil(scale * W)]`, the type of `images`.

    Raises:
        TypeError: `images` is neither floating point nor uint8.
        ValueError: `images` has fewer than two dimensions or an empty side, or `scale` is neither
            a positive integer nor one divided by such.

    Example:
        >>> imresize(torch.rand(3, 48, 40), 1 / 4).shape
        torch.Size([3, 12, 10])
    """
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise TypeError(f"imresize: images must be floating point or uint8, got {images.dtype}")
    if images.ndim < 2 or min(images.shape[-2:]) < 1:
        raise ValueError(f"imresize: images must be [..., H, W], got {list(images.shape)}")
    if not scale > 0:
        raise ValueError(f"imresize: scale must be positive, got {scale}")
    factor = round(max(scale, 1 / scale))
    if not math.isclose(max(scale, 1 / scale), factor, rel_tol=1e-6):
        raise ValueError(f"imresize: scale must be an integer n or 1/n, got {scale}")
    if factor == 1:
        return images.clone()
    planes = images.reshape(-1, 1, *images.shape[-2:])
    for axis in (-2, -1):
        planes = _resize_axis(planes, axis, factor, enlarge=scale > 1)
    return planes.reshape(*images.shape[:-2], *planes.shape[-2:])


def _resize_axis(planes: Tensor, axis: int, factor: int, enlarge: bool) -> Tensor:
    if planes.dtype == torch.uint8:
        resized = _resize_axis(planes.double(), axis, factor, enlarge)
        # MATLAB rounds halves up; a tie that float arithmetic misses by an ulp counts as one.
        return (resized + 0.5 + 1e-9).floor().clamp(0, 255).to(torch.uint8)
    size = planes.shape[axis]
    if enlarge:
        pad, out = 2 * _BICUBIC_RADIUS, size * factor
        padded_out, first = (size + 2 * pad) * factor, pad * factor
    else:
        # The padded size is a multiple of the factor, so that the sampling grid keeps its phase.
        pad, out = _BICUBIC_RADIUS * factor, math.ceil(size / factor)
        padded_out, first = out + 2 * _BICUBIC_RADIUS, _BICUBIC_RADIUS
    total = padded_out // factor if enlarge else padded_out * factor
    index = _symmetric_index(size, pad, total, planes.device)
    padded = planes.index_select(axis, index)
    shape = list(planes.shape[-2:])
    shape[axis] = padded_out
    resized = functional.interpolate(padded, size=shape, mode="bicubic", antialias=True)
    return resized.narrow(axis, first, out)


def _symmetric_index(size: int, pad: int, total: int, device: torch.device) -> Tensor:
    position = (torch.arange(total, device=device) - pad) % (2 * size)
    return torch.where(position < size, position, 2 * size - 1 - position)
