"""Response-based distillation: the student imitates the teacher's picture.

Knowledge in the first sense of Hinton, Vinyals, Dean (Distilling the knowledge in a neural network,
2015), with the L1 distance that super-resolution networks are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mkdext.methods.base import DistillationMethod
from mkdext.methods.registry import register


@register("response")
class Response(DistillationMethod):
    """Mean absolute difference of the two enlarged pictures, in levels from 0 to 1.

    Example:
        >>> pictures = [torch.zeros(1, 3, 8, 8)], [torch.full((1, 3, 8, 8), 0.25)]
        >>> Response([3], [3])(*pictures)
        tensor(0.2500)
    """

    compares = "pictures"
    whitens = False

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """`mean |S(x) - T(x)|`."""
        return torch.stack(list(map(functional.l1_loss, student, teacher))).sum()
