"""What generator and student descend (the data-free paper's eq. 1 to 5 and 13)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor

from mkdext._system.field_types import check_types
from mkdext._system.processes import averaged, processes
from mkdext.data import imresize
from mkdext.metrics.losses import Loss


@dataclasses.dataclass(frozen=True)
class Criterion:
    """How far two batches of images are apart; the distance in eq. 1, 3 and 5.

    The paper prints absolute errors and a mean; the code published with DFSR takes the sum of
    squared errors. The mean and the sum are over all numbers of the batch. Where several processes
    share a batch, the average over them is that of the whole batch, of sums too.

    Example:
        >>> import torch
        >>> Criterion("squared", "sum")(torch.zeros(2, 3), torch.full((2, 3), 2.0)).item()
        24.0
    """

    error: Literal["l1", "squared"] = "l1"
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        """Check the names."""
        check_types(self)

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """The distance, a scalar."""
        gap = images - others
        errors = gap.abs() if self.error == "l1" else gap.square()
        return errors.mean() if self.reduction == "mean" else errors.sum() / processes().share


def reconstruction_loss(images: Tensor, enlarged: Tensor, criterion: Loss | None = None) -> Tensor:
    """Made images must agree with what they become enlarged and reduced again: L_R, eq. 1.

    R, which reduces, is MATLAB's bicubic and passes gradients on; nothing is rounded or clipped.

    Args:
        images: `G(z)`, `[B, 3, h, w]`.
        enlarged: `T(G(z))`, `[B, 3, scale*h, scale*w]`.
        criterion: The distance; default: the mean absolute error.

    Returns:
        A scalar, differentiable any number of times.
    """
    reduced = imresize(enlarged, images.shape[-1] / enlarged.shape[-1])
    return (criterion or Criterion())(reduced, images)


def adversarial_loss(teacher: Tensor, student: Tensor, criterion: Loss | None = None) -> Tensor:
    """Images must be such that the student fails on them: L_GEN = -log(1 + L_KD), eq. 2 and 3.

    Args:
        teacher: `T(G(z))`, `[B, 3, H, W]`, with its graph.
        student: `S(G(z))`, likewise.
        criterion: The distance L_KD; default: the mean absolute error.

    Returns:
        A scalar, at most 0, differentiable any number of times.
    """
    (distance,) = averaged((criterion or Criterion())(teacher, student))
    return -distance.log1p()


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of what the generator descends beside the adversarial loss (eq. 13)."""

    reconstruction: float = 1.0
    """W_R: consistency of an image with its enlargement."""
    contrastive: float = 0.8
    """W_C: how well each image can be told from all others; 0: no contrastive inversion, which is
    DFSR."""
    statistics: float = 1.0
    """Agreement with the statistics that the teacher's batch normalisation layers have kept, where
    it has such layers."""

    def __post_init__(self) -> None:
        """Check types."""
        check_types(self, "weights.")

    def total(
        self,
        adversarial: Tensor,
        reconstruction: Tensor,
        contrastive: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """L_G, eq. 13, with the term of eq. 7 where there is one.

        Example:
            >>> import torch
            >>> terms = [torch.tensor(v) for v in (-1.0, 2.0, 0.5)]
            >>> LossWeights(reconstruction=3, contrastive=2).total(*terms).item()
            6.0
        """
        loss = adversarial + self.reconstruction * reconstruction
        if contrastive is not None:
            loss = loss + self.contrastive * contrastive
        if statistics is not None:
            loss = loss + self.statistics * statistics
        return loss
