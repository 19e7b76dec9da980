"""FitNet: hints of intermediate layers (Romero et al., FitNets: hints for thin deep nets, 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from mkdext.methods.base import DistillationMethod, matching_convolutions, total
from mkdext.methods.registry import register


@register("fitnet")
class FitNet(DistillationMethod):
    """Mean squared distance of the teacher's maps to the student's after a 1x1 convolution.

    The convolution is the regressor of FitNets eq. 3. Its output has no activation, as the hint
    layers of super-resolution networks have none. Published weight: RepDistiller's.

    Example:
        >>> import torch
        >>> fitnet = FitNet([16], [32])
        >>> fitnet([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    published_weight = 100 / 255

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Make the regressors."""
        super().__init__(student_channels, teacher_channels)
        self.regressors = matching_convolutions(student_channels, teacher_channels)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`sum over points of mean (r(F_s) - F_t)^2`."""
        points = zip(self.regressors, student, teacher, strict=True)
        return total([functional.mse_loss(regress(fs), ft) for regress, fs, ft in points])
