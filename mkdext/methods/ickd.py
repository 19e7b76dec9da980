"""ICKD: inter-channel correlation for knowledge distillation (Liu et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mkdext.methods.base import DistillationMethod, inverse_norm, total
from mkdext.methods.registry import register


@register("ickd")
class ICKD(DistillationMethod):
    """Squared distance of the channel correlations of student and teacher.

    The student's map is brought to the teacher's channels by a 1x1 convolution and batch
    normalisation, the teacher's is taken as it is, as in the authors' code (ICKD-C). With several
    processes the statistics are those of the whole batch (`mkdext.training.batch_norm`).

    Example:
        >>> import torch
        >>> ickd = ICKD([16], [32])
        >>> ickd([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    published_weight = 2.5 / 255

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Make the embedding of each point."""
        super().__init__(student_channels, teacher_channels)
        self.embeddings = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(cs, ct, 1, bias=False),
                # Statistics of the batch alone: what is trained on is all that is ever embedded.
                nn.BatchNorm2d(ct, track_running_stats=False),
            )
            for cs, ct in zip(student_channels, teacher_channels, strict=True)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`sum over points of |G_s - G_t|^2 / (C B)` (ICKD eq. 3), `G` with rows of norm 1."""
        losses = []
        for embed, fs, ft in zip(self.embeddings, student, teacher, strict=True):
            gap = correlation(embed(fs)) - correlation(ft)
            losses.append(gap.square().sum() / (gap.shape[0] * gap.shape[1]))
        return total(losses)


def correlation(features: Tensor) -> Tensor:
    """Inner products of all channels, rows of norm 1: `[B, C, C]` (ICKD eq. 1)."""
    rows = features.flatten(2)
    products = rows @ rows.transpose(1, 2)
    return products * inverse_norm(products)
