"""VID: variational information distillation (Ahn et al., CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext.methods.base import DistillationMethod, total
from mkdext.methods.registry import register

INITIAL_VARIANCE = 1.0
_LEAST_VARIANCE = 1e-5


@register("vid")
class VID(DistillationMethod):
    """Negative logarithm of the likelihood of the teacher's maps, given the student's.

    A Gaussian whose mean is a function of the student's map and whose variance is a number for each
    channel (VID eq. 5 and 6), both learned. The loss is not 0 where the maps agree, and becomes
    negative once a variance falls below 1. Its weight is 1: the gradient of a mean over channels,
    pixels and three layers is small enough beside reconstruction.

    Example:
        >>> vid = VID([16], [32])
        >>> vid([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Make the Gaussian of each point."""
        super().__init__(student_channels, teacher_channels)
        channels = list(zip(student_channels, teacher_channels, strict=True))
        self.means = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(cs, ct, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(ct, ct, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(ct, ct, 1, bias=False),
            )
            for cs, ct in channels
        )
        start = math.log(math.expm1(INITIAL_VARIANCE - _LEAST_VARIANCE))
        self.raw_variances = nn.ParameterList(torch.full((ct, 1, 1), start) for _, ct in channels)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`sum over points of mean ((mu(F_s) - F_t)^2 / s^2 + log s^2) / 2`."""
        losses = []
        points = zip(self.means, self.raw_variances, student, teacher, strict=True)
        for mean, raw, fs, ft in points:
            variance = functional.softplus(raw) + _LEAST_VARIANCE
            losses.append(((mean(fs) - ft).square() / variance + variance.log()).mean() / 2)
        return total(losses)
