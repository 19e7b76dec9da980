"""Layers that bring a student's feature maps to the channels of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def matching_convolutions(
    student_channels: Sequence[int], teacher_channels: Sequence[int], kernel_size: int = 1
) -> nn.ModuleList:
    """One convolution `C_s -> C_t` with 'same' padding for each distillation point."""
    return nn.ModuleList(
        nn.Conv2d(cs, ct, kernel_size, padding=kernel_size // 2)
        for cs, ct in zip(student_channels, teacher_channels, strict=True)
    )


def inverse_norm(vectors: Tensor) -> Tensor:
    """`1 / max(|v|, 1e-12)` of each last dimension, which is kept; smooth at 0, to any order.

    Example:
        >>> inverse_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))[0]
        tensor([0.2000])
    """
    return vectors.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()


def total(losses: Sequence[Tensor]) -> Tensor:
    """The sum of the losses of all points."""
    return torch.stack(list(losses)).sum()
