"""What the names and shapes of weights tell of their network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor


def count_numbers(names: Iterable[str], pattern: str) -> int:
    r"""How many different texts the group of `pattern` matches in whole names.

    Example:
        >>> count_numbers(["body.0.weight", "body.1.weight", "body.1.bias"], r"body\.(\d+)\..*")
        2
    """
    return len({match[1] for name in names if (match := re.fullmatch(pattern, name))})


def is_conv(weight: Tensor | None, out_channels: int, in_channels: int, size: int) -> bool:
    """Whether `weight` is there and that of a `size` x `size` convolution."""
    return weight is not None and weight.shape == (out_channels, in_channels, size, size)


def out_channels(weight: Tensor | None) -> int:
    """Output channels of a layer, 0 if `weight` is none or a scalar."""
    return len(weight) if weight is not None and weight.ndim else 0


def upsampler_scale(weights: Mapping[str, Tensor], stage: str, features: int) -> int | None:
    """Scale of the upsampler of `features` channels whose convolutions are called `stage`.

    Args:
        weights: Weights by name.
        stage: Regular expression of the names of the weights of its convolutions.
        features: Channels that the upsampler ends with.

    Returns:
        The scale, none if there is no upsampler.
    """
    stages = [weight for name, weight in weights.items() if re.fullmatch(stage, name)]
    if not stages:
        return None
    return 3 if out_channels(stages[0]) == 9 * features else 2 ** len(stages)


def renamed(
    weights: Mapping[str, Tensor], replacements: Iterable[tuple[str, str]]
) -> dict[str, Tensor]:
    """Weights with the beginnings of their names replaced, by regular expressions in this order."""
    result = {}
    for name, tensor in weights.items():
        for pattern, replacement in replacements:
            name = re.sub(f"^{pattern}", replacement, name)
        result[name] = tensor
    return result
