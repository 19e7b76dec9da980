"""Blur kernels: Gaussians, their generalized and plateau-shaped forms, and sinc filters.

They are those of Real-ESRGAN (arXiv 2107.10833, section 3.2 and eq. 5); the shapes come from Liu et
al., "Blind image super-resolution with spatially variant degradations" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import j1

from mkdext.data.degradation.parameters import Blur

Kernel = npt.NDArray[np.floating[Any]]

_LONG = 13  # side from which on a sinc filter may cut lower frequencies


def drawn_kernel(blur: Blur, random: np.random.Generator) -> Kernel:
    """One of the kernels that `blur` describes, float32 `[k, k]` of sum 1."""
    size = drawn_size(blur, random)
    if random.random() < blur.sinc:
        lowest = math.pi / (3 if size < _LONG else 5)
        return sinc_kernel(size, random.uniform(lowest, math.pi))
    weights = np.array(list(blur.kernels.weights.values()))
    kind = list(blur.kernels.weights)[random.choice(len(weights), p=weights / weights.sum())]
    sigma = [between(blur.sigma, random)] * 2
    turn = 0.0
    if kind.endswith("aniso"):
        sigma[1], turn = between(blur.sigma, random), random.uniform(-math.pi, math.pi)
    form = kind.rpartition("_")[0]
    exponent = 1.0
    if form:
        least, most = blur.generalized_beta if form == "generalized" else blur.plateau_beta
        exponent = random.uniform(least, 1) if random.random() < 0.5 else random.uniform(1, most)
    return bell_kernel(size, (sigma[0], sigma[1]), turn, exponent, is_plateau=form == "plateau")


def between(range: Sequence[float], random: np.random.Generator) -> float:
    """A number from the first of two to the second."""
    least, most = range
    return float(random.uniform(least, most))


def drawn_size(blur: Blur, random: np.random.Generator) -> int:
    """Width and height of a kernel, an odd number."""
    least, most = blur.size
    return least + 2 * int(random.integers((most - least) // 2 + 1))


def bell_kernel(
    size: int, sigma: tuple[float, float], turn: float, exponent: float, is_plateau: bool = False
) -> Kernel:
    """A kernel with one maximum: `exp(-q^b / 2)`, or `1 / (1 + q^b)` with a plateau.

    `q` is the squared distance from the middle, in units of `sigma` along two axes.

    Args:
        size: Width and height, odd.
        sigma: In pixels.
        turn: Angle of the first axis, in radians.
        exponent: `b`; with 1 the first form is a Gaussian.
        is_plateau: Which form.

    Example:
        >>> float(bell_kernel(3, (0.1, 0.1), 0.0, 1.0).max())
        1.0
    """
    x, y = _grid(size)
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    powered = ((u / sigma[0]) ** 2 + (v / sigma[1]) ** 2) ** exponent
    return _normalised(1 / (1 + powered) if is_plateau else np.exp(-powered / 2))


def sinc_kernel(size: int, cutoff: float) -> Kernel:
    """The circular low-pass filter, which rings as sharpening and JPEG do.

    Args:
        size: Width and height, odd.
        cutoff: Frequency in radians a pixel, up to pi.
    """
    radius = np.hypot(*_grid(size))
    radius[size // 2, size // 2] = 1.0
    kernel = cutoff * j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)


def _grid(size: int) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]:
    y, x = np.mgrid[:size, :size] - float(size // 2)
    return x, y


def _normalised(kernel: npt.NDArray[np.floating[Any]]) -> Kernel:
    normalised: Kernel = (kernel / kernel.sum()).astype(np.float32)
    return normalised
