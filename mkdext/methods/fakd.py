"""FAKD: affinity of features (He, Dai, Lu, Jiang, Xia, FAKD, ICIP 2020), its spatial form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mkdext._system.processes import averaged
from mkdext.methods.base import DistillationMethod, total
from mkdext.methods.registry import register
from mkdext.ops import spatial_affinity_gap


@register("fakd")
class FAKD(DistillationMethod):
    """Mean distance of the spatial affinities: which points of a map resemble each other.

    With the columns of a map over its channels scaled to length 1, `F~` of `[C, h*w]`, its affinity
    is `A = F~^T F~`, `[h*w, h*w]`, which `mkdext.ops.spatial_affinity_gap` never holds. It has no
    parameters and takes any channels. Published weight: 10 in the authors' code, whose
    reconstruction loss is in levels from 0 to 255.

    Example:
        >>> fakd = FAKD([16], [32])
        >>> fakd([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    published_weight = 10 / 255

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`sum over points of mean |A_s - A_t|`."""
        return total(_gaps(student, teacher))

    @torch.no_grad()
    def statistics(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
        """Means over the points.

        Returns:
            `affinity_teacher`: mean magnitude of the teacher's affinities. `gap`: of the two,
            relative to it.
        """
        nothing = [torch.zeros_like(maps[:, :1]) for maps in teacher]  # their affinity is 0
        sizes, gaps = averaged(
            torch.stack(_gaps(nothing, teacher)), torch.stack(_gaps(student, teacher))
        )
        return {"affinity_teacher": float(sizes.mean()), "gap": float((gaps / sizes).mean())}


def _gaps(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
    return [spatial_affinity_gap(fs, ft) for fs, ft in zip(student, teacher, strict=True)]
