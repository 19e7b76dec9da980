"""L2T-ww: learning what and where to transfer (Jang et al., ICML 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mkdext.methods.base import DistillationMethod, MetaDefaults, matching_convolutions, total
from mkdext.methods.registry import register

_FACTOR = 0.5  # beta in the authors' code


@register("l2t-ww")
class L2Tww(DistillationMethod):
    """Squared distances of matched channels, weighted by what the meta-gradient finds to matter.

    The weights of the channels come from the teacher's mean activations (L2T-ww eq. 3). *Where* to
    transfer is fixed: each of the student's points to one of the teacher's with weight 1, as in the
    comparison of the MKD paper. The 1x1 convolutions are trained with the student, also in the
    inner loop. Published: two inner steps and one on the reconstruction loss, all with the
    student's own optimizer; the loss has the factor 0.5 in the student's steps and in the inner
    ones, so it is part of the loss here. Weight: 0.1; with the 1 of the authors' code, divided by
    255, the student would hardly feel it beside reconstruction.

    Example:
        >>> import torch
        >>> l2t = L2Tww([16], [32])
        >>> l2t([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    published_weight = 0.1
    published_meta = MetaDefaults(steps=2, inner_optimizer="adam", inner_lr=None, closing_step=True)

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Make the weights, which are equal at first, and the convolutions."""
        super().__init__(student_channels, teacher_channels)
        self.matches = matching_convolutions(student_channels, teacher_channels)
        self.weights = nn.ModuleList(nn.Linear(ct, ct) for ct in teacher_channels)
        for parameter in self.weights.parameters():
            nn.init.zeros_(parameter)

    def meta_parameters(self) -> list[nn.Parameter]:
        """Those of the weights."""
        return list(self.weights.parameters())

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Half of the sum over points of `sum_c w_c mean_hw (r(F_s)_c - F_t,c)^2`, batch mean."""
        losses = []
        for match, weigh, fs, ft in zip(self.matches, self.weights, student, teacher, strict=True):
            weights = weigh(ft.mean((2, 3))).softmax(1)
            losses.append((weights * (match(fs) - ft).square().mean((2, 3))).sum(1).mean())
        return _FACTOR * total(losses)
