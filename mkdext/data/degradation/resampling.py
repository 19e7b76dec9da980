"""Resizing to any size as `torch.nn.functional.interpolate` does, in numpy.

The degradation of Real-ESRGAN resizes by it, without antialiasing. Samples are made by several
Python threads beside a training, where torch's own threads wait for each other.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Mode = Literal["area", "bilinear", "bicubic"]
MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")

Image = npt.NDArray[np.floating[Any]]
"""Float32 `[C, H, W]`, colours in [0, 1]."""
Weights = npt.NDArray[np.floating[Any]]

_A = -0.75  # of torch's cubic kernel


def resized(image: Image, size: tuple[int, int], mode: Mode) -> Image:
    """Resize.

    Args:
        image: float32 `[C, H, W]`.
        size: Height and width of the result.
        mode: Means over areas, or interpolation from two or four pixels along each axis.

    Returns:
        float32 `[C, *size]`.

    Example:
        >>> resized(np.zeros((3, 9, 7), np.float32), (4, 12), "bicubic").shape
        (3, 4, 12)
    """
    for axis, count in enumerate(size, 1):
        if image.shape[axis] != count:
            along = _means if mode == "area" else _interpolated
            image = along(image, axis, count, mode)
    return image


def _means(image: Image, axis: int, count: int, mode: Mode) -> Image:
    side, index = image.shape[axis], np.arange(count)
    first, end = index * side // count, -(-(index + 1) * side // count)
    widths = np.insert(image.cumsum(axis, np.float64), 0, 0, axis)
    sums = widths.take(end, axis) - widths.take(first, axis)
    means: Image = (sums / _along(end - first, axis)).astype(np.float32)
    return means


def _interpolated(image: Image, axis: int, count: int, mode: Mode) -> Image:
    side = image.shape[axis]
    place = (np.arange(count) + 0.5) * side / count - 0.5
    if mode == "bilinear":
        place = place.clip(0)
    before = np.floor(place).astype(np.int64)
    t = place - before
    weights = {0: 1 - t, 1: t} if mode == "bilinear" else _cubic(t)
    parts = [
        image.take((before + offset).clip(0, side - 1), axis)
        * _along(weight.astype(np.float32), axis)
        for offset, weight in weights.items()
    ]
    total: Image = np.sum(parts, axis=0, dtype=np.float32)
    return total


def _cubic(t: Weights) -> dict[int, Weights]:
    """Weights of the four pixels around a place, `t` beyond the second."""

    def near(x: Weights) -> Weights:
        weights: Weights = ((_A + 2) * x - (_A + 3)) * x * x + 1
        return weights

    def far(x: Weights) -> Weights:
        weights: Weights = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
        return weights

    return {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}


def _along(values: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    return values[:, None] if axis == 1 else values
