"""Networks by name."""

from __future__ import annotations

from torch import nn

from mkdext.models.near_names import did_you_mean
from mkdext.models.rcan import RCAN, RCANConfig

RCAN_CONFIGS = {
    "rcan-t": RCANConfig(groups=10, blocks=20, features=64),
    "rcan-a": RCANConfig(groups=4, blocks=1, features=16),
    "rcan-b": RCANConfig(groups=4, blocks=4, features=16),
    "rcan-c": RCANConfig(groups=4, blocks=4, features=32),
}
"""The teacher and the three students of MKD Table 1."""

MODEL_NAMES = tuple(RCAN_CONFIGS)


def create_model(name: str, scale: int) -> nn.Module:
    """Make a network with random weights, drawn from torch's global generator.

    Args:
        name: One of `MODEL_NAMES`.
        scale: Enlargement factor: 2, 3, 4 or 8.

    Returns:
        A module that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Raises:
        ValueError: The name is unknown or the network does not come at this scale.

    Example:
        >>> sum(p.numel() for p in create_model("rcan-a", scale=4).parameters())
        49799
    """
    if name not in RCAN_CONFIGS:
        raise ValueError(
            f"network {name!r} is unknown, there are {', '.join(MODEL_NAMES)}"
            f"{did_you_mean(name, MODEL_NAMES)}"
        )
    return RCAN(RCAN_CONFIGS[name], scale)
