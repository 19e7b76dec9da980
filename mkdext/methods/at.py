"""AT: attention transfer (Zagoruyko, Komodakis, Paying more attention to attention, 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from mkdext.methods.base import DistillationMethod, inverse_norm, total
from mkdext.methods.registry import register


@register("at")
class AttentionTransfer(DistillationMethod):
    """Mean squared distance of the spatial attention maps of student and teacher.

    It has no parameters and takes any channels. Published weight: that of the authors' code, which
    takes the mean of the squares.

    Example:
        >>> import torch
        >>> at = AttentionTransfer([16], [32])
        >>> at([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    published_weight = 1000 / 255

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`sum over points of mean (Q_s/|Q_s| - Q_t/|Q_t|)^2` (eq. 2 of the paper, squared)."""
        points = zip(student, teacher, strict=True)
        return total([functional.mse_loss(attention(fs), attention(ft)) for fs, ft in points])


def attention(features: Tensor) -> Tensor:
    """Sum of the squares over the channels, of norm 1 in each sample: `[B, h*w]`."""
    energy = features.square().sum(1).flatten(1)
    return energy * inverse_norm(energy)
