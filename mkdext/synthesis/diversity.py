"""How different samples are from each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mean_pairwise_distance(samples: Tensor) -> Tensor:
    """L_div, eq. 10: the mean distance of two different samples.

    The distance is the root of the mean squared difference, so that of images it is in units of
    their colours and does not depend on their size.

    Args:
        samples: `[B, ...]`, at least two.

    Returns:
        A scalar, 0 when all samples are the same.

    Raises:
        ValueError: There are fewer than two samples.

    Example:
        >>> mean_pairwise_distance(torch.tensor([[0.0, 0.0], [3.0, 3.0]])).item()
        3.0
    """
    if len(samples) < 2:
        raise ValueError(
            f"mean_pairwise_distance: samples must be at least two, got {len(samples)}"
        )
    flat = samples.flatten(1)
    return torch.pdist(flat).mean() / math.sqrt(flat.shape[1])
