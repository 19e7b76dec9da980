"""MATLAB's `imresize(image, scale, 'bicubic')`, exact and differentiable.

The kernel is Keys' cubic (a = -1/2), stretched when downscaling; the image is mirrored at its
border, the edge pixel repeated. For an integer factor the weights are rational numbers and few.
Floating point images are multiplied by matrices of them. Sums of 8-bit levels are taken in
integers, so that rounding is right whatever the order of the sum.
"""

from __future__ import annotations

import contextlib
import functools
import math
from fractions import Fraction
from numbers import Real

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mkdext._system.device import sent

_RADIUS = 2  # of the bicubic kernel
_MOST = 4096  # up to where the exact sums of levels fit into 64 bits


def imresize(images: Tensor, scale: float) -> Tensor:
    """Resize images as MATLAB's bicubic `imresize` with antialiasing does.

    Args:
        images: `[..., H, W]`, floating point or uint8. Floating point is not clipped and can be
            differentiated any number of times; 16-bit types are computed in float32. uint8 is
            rounded (halves up) and clipped after each of the two passes, as MATLAB does, and has
            no gradient.
        scale: A positive integer up to 4096, or one divided by such.

    Returns:
        `[..., ceil(scale * H), ceil(scale * W)]`, the type of `images`.

    Raises:
        TypeError: `images` is neither floating point nor uint8, or `scale` is no number.
        ValueError: `images` has fewer than two dimensions or an empty side, or `scale` is neither
            such an integer nor one divided by it.

    Example:
        >>> imresize(torch.rand(3, 48, 40), 1 / 4).shape
        torch.Size([3, 12, 10])
    """
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise TypeError(f"imresize: images must be floating point or uint8, got {images.dtype}")
    if images.ndim < 2 or min(images.shape[-2:]) < 1:
        raise ValueError(f"imresize: images must be [..., H, W], got {list(images.shape)}")
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"imresize: scale must be a number, got {scale!r}")
    if not 0 < scale < math.inf:
        raise ValueError(f"imresize: scale must be positive, got {scale}")
    if not 1 / _MOST <= scale <= _MOST:
        raise ValueError(f"imresize: scale must be from 1/{_MOST} to {_MOST}, got {scale}")
    factor = round(max(scale, 1 / scale))
    if not math.isclose(max(scale, 1 / scale), factor, rel_tol=1e-6):
        raise ValueError(f"imresize: scale must be an integer n or 1/n, got {scale}")
    if factor == 1:
        return images.clone()
    enlarge = scale > 1
    planes = images.reshape(-1, *images.shape[-2:])
    if images.dtype == torch.uint8:
        levels = planes.cpu().numpy()
        for _ in range(2):
            levels = _resize_rows_of_levels(levels, factor, enlarge).swapaxes(1, 2)
        planes = torch.from_numpy(np.ascontiguousarray(levels)).to(images.device)
    else:
        planes = _resize_floats(planes, factor, enlarge)
    return planes.reshape(*images.shape[:-2], *planes.shape[-2:]).to(images.dtype)


def _resize_floats(planes: Tensor, factor: int, enlarge: bool) -> Tensor:
    """Resize `[N, H, W]` to `[N, H', W']`, at least in float32."""
    dtype = torch.float64 if planes.dtype == torch.float64 else torch.float32
    rows, columns = (
        sent(torch.from_numpy(_matrix(size, factor, enlarge)).to(dtype), planes.device)
        for size in planes.shape[-2:]
    )
    # Meta tensors have no autocast to turn off.
    meta, device = planes.is_meta, planes.device.type
    with contextlib.nullcontext() if meta else torch.autocast(device, enabled=False):
        return rows @ planes.to(dtype) @ columns.T


def _resize_rows_of_levels(
    planes: npt.NDArray[np.uint8], factor: int, enlarge: bool
) -> npt.NDArray[np.uint8]:
    """Resize uint8 `[N, H, W]` to `[N, H', W]`, rounded and clipped.

    In numpy, because photographs are prepared by several Python threads beside a training, where
    torch's own threads wait for each other a hundred times longer than they work.
    """
    phases, denominator = _integer_weights(factor, enlarge)
    largest = 255 * max(sum(map(abs, taps.values())) for taps in phases) + denominator
    integer = np.int32 if largest < 2**31 else np.int64
    step = 1 if enlarge else factor
    size, width = planes.shape[-2:]
    pad, out = _RADIUS * step, math.ceil(size / step)
    rows = _mirrored(size, pad, out * step + 2 * pad)
    resized = np.empty((len(planes), out, len(phases), width), np.uint8)
    total, product = np.empty((2, out, width), integer)
    for plane, result in zip(planes, resized, strict=True):
        padded = plane[rows].astype(integer)
        for phase, taps in enumerate(phases):
            total.fill(denominator // 2)
            for offset, weight in taps.items():
                first = pad + offset
                source = padded[first : first + (out - 1) * step + 1 : step]
                total += np.multiply(source, weight, out=product)
            total //= denominator
            result[:, phase] = total.clip(0, 255, out=total)
    return resized.reshape(len(planes), out * len(phases), width)


@functools.lru_cache(maxsize=8)
def _matrix(size: int, factor: int, enlarge: bool) -> npt.NDArray[np.float64]:
    """What `size` pixels in a row are multiplied by: `[size', size]`."""
    phases, denominator = _integer_weights(factor, enlarge)
    step = 1 if enlarge else factor
    pad, out = _RADIUS * step, math.ceil(size / step)
    sources = _mirrored(size, pad, out * step + 2 * pad)
    matrix = np.zeros((out, len(phases), size))
    for phase, taps in enumerate(phases):
        for offset, weight in taps.items():
            columns = sources[pad + offset :][: out * step : step]
            matrix[np.arange(out), phase, columns] += weight / denominator
    return matrix.reshape(-1, size)


@functools.lru_cache
def _integer_weights(factor: int, enlarge: bool) -> tuple[list[dict[int, int]], int]:
    """Exact weights `weight / denominator` of the source pixels, for each phase of the result.

    Reduced by `factor`, result `i` is a sum over source pixels `factor * i + offset`, the same for
    every `i`. Enlarged, result `factor * i + phase` is a sum over source pixels `i + offset`.
    """
    stretch = 1 if enlarge else factor
    if enlarge:
        centres = [Fraction(2 * phase + 1, 2 * factor) - Fraction(1, 2) for phase in range(factor)]
    else:
        centres = [Fraction(factor - 1, 2)]
    reach = _RADIUS * stretch
    phases = [
        {
            offset: weight
            for offset in range(math.ceil(centre - reach), math.floor(centre + reach) + 1)
            if (weight := _cubic((centre - offset) / stretch) / stretch)
        }
        for centre in centres
    ]
    denominator = math.lcm(*(weight.denominator for taps in phases for weight in taps.values()))
    integers = [{k: int(weight * denominator) for k, weight in taps.items()} for taps in phases]
    return integers, denominator


def _cubic(x: Fraction) -> Fraction:
    """Keys' cubic convolution kernel, a = -1/2."""
    x = abs(x)
    if x <= 1:
        return 3 * x**3 / 2 - 5 * x**2 / 2 + 1
    return -(x**3) / 2 + 5 * x**2 / 2 - 4 * x + 2 if x <= 2 else Fraction(0)


def _mirrored(size: int, pad: int, total: int) -> npt.NDArray[np.int64]:
    """Rows of an image of `size` rows that lie at `-pad` to `total - pad - 1` of its mirrorings."""
    position = (np.arange(total) - pad) % (2 * size)
    return np.minimum(position, 2 * size - 1 - position)
