"""The range of colours inside of a network of the official code, and weights for another.

The code trains networks for colours from 0 to any value of white, `--rgb_range`, which is kept
nowhere but in the colour shifts of a network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
RGB_RANGE = 255.0
"""Value of white inside of the networks here."""

_KNOWN = (1.0, RGB_RANGE)
_EXACT = 0.01  # relative; of weights in half precision
_DARKEST = 0.05  # mean of the brightest channel of photographs, of white
_SCALED = ("sub_mean.bias", "tail.1.weight", "tail.1.bias", "add_mean.bias")
_HEAD = "head.0.weight"


def with_rgb_range(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the same function of colours in [0, 1], of a network in which white is 255.

    Args:
        weights: Under the names of the official code; they may be incomplete.

    Raises:
        ValueError: They are for another range than 1 or 255.
    """
    needed = {"sub_mean.weight", _HEAD, *_SCALED}
    if not needed <= weights.keys() or not all(_is_plain(weights[name]) for name in needed):
        return dict(weights)
    factor = RGB_RANGE / _white(weights["sub_mean.weight"], weights["sub_mean.bias"])
    if factor == 1:
        return dict(weights)
    factors = {_HEAD: 1 / factor, **dict.fromkeys(_SCALED, factor)}
    # In float64, so that half precision loses nothing.
    return dict(weights) | {name: weights[name].double() * by for name, by in factors.items()}


def _is_plain(weight: Tensor) -> bool:
    """Whether a tensor holds numbers to compute with; what does not is for others to refuse."""
    is_dense = weight.layout == torch.strided and not weight.is_meta
    return is_dense and weight.is_floating_point() and not weight.is_quantized


def _white(weight: Tensor, bias: Tensor) -> float:
    """Value of white in a network whose colour shift is a 1x1 convolution.

    A shift by nothing tells nothing, and numbers that are none are for others to refuse: 255.
    """
    matrix, bias = weight.detach().double().flatten(1), bias.detach().double()
    if matrix.shape != (3, 3) or bias.shape != (3,):
        return RGB_RANGE
    if not matrix.isfinite().all() or not bias.isfinite().all() or not torch.linalg.det(matrix):
        return RGB_RANGE
    # The shift makes it zero.
    mean = -torch.linalg.solve(matrix, bias)
    if not mean.any():
        return RGB_RANGE
    of_div2k = mean / torch.tensor(DIV2K_MEAN, dtype=torch.float64)
    if of_div2k.max() - of_div2k.min() <= _EXACT * of_div2k.abs().max():
        white = of_div2k.mean().item()
        known = [value for value in _KNOWN if abs(white - value) <= _EXACT * value]
        said = f"--rgb_range {white:.4g}"
    else:
        brightest, darkest = mean.max().item(), mean.min().item()
        known = [v for v in _KNOWN if darkest >= 0 and _DARKEST * v <= brightest <= v]
        said = f"a mean colour of {', '.join(f'{value:.4g}' for value in mean.tolist())}"
    if not known:
        raise ValueError(
            f"sub_mean.bias is of {said}, must be of --rgb_range 1 or 255 and the mean of "
            "photographs; save weights of a network that was trained with one of these"
        )
    return known[0]
