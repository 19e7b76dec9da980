"""The ablation of MKD, Table 2 of its paper; case 4 is MKD itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from mkdext.methods.base import DistillationMethod, matching_convolutions, total
from mkdext.methods.mkd.method import MKD, relative
from mkdext.methods.mkd.piecewise_linear import mean_magnitude
from mkdext.methods.registry import register


class _ConvolvedKnowledge(DistillationMethod):
    """Knowledge by ordinary convolutions, trained by the meta-gradient, in the distance of MKD."""

    published_weight = MKD.published_weight
    published_meta = MKD.published_meta

    kernel_size: ClassVar[int]
    convolves_teacher: ClassVar[bool]

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Make the convolutions."""
        super().__init__(student_channels, teacher_channels)
        width = self.kernel_size
        self.of_student = matching_convolutions(student_channels, teacher_channels, width)
        self.of_teacher = (
            matching_convolutions(teacher_channels, teacher_channels, width)
            if self.convolves_teacher
            else nn.ModuleList(nn.Identity() for _ in teacher_channels)
        )

    def meta_parameters(self) -> list[nn.Parameter]:
        """All."""
        return list(self.parameters())

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`sum over points of mean |K^s - K^t| / mean |K^t|` (MKD eq. 7)."""
        gaps, sizes = [], []
        points = zip(self.of_student, self.of_teacher, student, teacher, strict=True)
        for of_student, of_teacher, fs, ft in points:
            knowledge = of_teacher(ft)
            gaps.append(mean_magnitude(of_student(fs) - knowledge))
            sizes.append(mean_magnitude(knowledge))
        return total(relative(gaps, sizes))


@register("mkd-case1")
class MKDCase1(_ConvolvedKnowledge):
    """The teacher's features as they are, the student's after a 1x1 convolution.

    Example:
        >>> import torch
        >>> case = MKDCase1([16], [32])
        >>> case([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    kernel_size = 1
    convolves_teacher = False


@register("mkd-case2")
class MKDCase2(_ConvolvedKnowledge):
    """Both sides' features after a 3x3 convolution each."""

    kernel_size = 3
    convolves_teacher = True


@register("mkd-case3")
class MKDCase3(MKD):
    """MKD whose KRNets are trained by the distillation loss itself, without meta-learning."""

    def meta_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []
