"""How large gradients usually are, so that sums of them are of what they should be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mkdext.methods import RunningMean

EVERY = 10
"""Steps from one measurement of the two gradients of a student to the next."""
_TINY = 1e-30


class Balance(nn.Module):
    """Usual norms of the gradients that a student and a method are trained by.

    Its numbers are kept in checkpoints, for what follows from them must go on where it was.
    """

    def __init__(self, follows: bool) -> None:
        """Take whether the weight of the distillation loss follows the student's gradients."""
        super().__init__()
        self.follows = follows
        self.reconstruction = RunningMean()
        self.distillation = RunningMean()
        self.meta_reconstruction = RunningMean()
        self.meta_distillation = RunningMean()

    def measure(
        self, reconstruction: Sequence[Tensor], distillation: Sequence[Tensor], weight: float
    ) -> dict[str, Tensor]:
        """Take the two gradients of a student into account.

        Args:
            reconstruction: Of the reconstruction loss.
            distillation: Of the distillation loss, without its weight.
            weight: As in `weight`.

        Returns:
            `gradient_ratio`, of the weighted distillation loss to the reconstruction loss, and
            `gradient_cosine`; scalars.
        """
        norms = _norm(reconstruction), _norm(distillation)
        self.reconstruction.add(norms[0])
        self.distillation.add(norms[1])
        ratio = self.weight(weight) * norms[1] / norms[0].clamp_min(_TINY)
        return {
            # Finite where a picture is met exactly and the reconstruction loss has no gradient.
            "gradient_ratio": ratio.clamp_max(1 / _TINY),
            "gradient_cosine": _cosine(reconstruction, distillation, norms),
        }

    def weight(self, weight: float) -> Tensor:
        """What the distillation loss is multiplied by.

        Args:
            weight: The weight itself, or the ratio of gradients that it shall lead to. Where the
                distillation loss has had no gradient so far, that is none, and the weight 0.
        """
        if not self.follows:
            return torch.full_like(self.reconstruction.value, weight)
        usual = self.distillation.value
        ratio = self.reconstruction.value / usual.clamp_min(_TINY)
        return torch.where(usual > _TINY, weight * ratio, 0.0)

    def of_method(
        self, reconstruction: Sequence[Tensor], distillation: Sequence[Tensor], kappa: float
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The gradient that the meta-parameters move along.

        Args:
            reconstruction: The meta-gradient of the reconstruction loss (MKD eq. 3).
            distillation: The gradient of the distillation loss with respect to the same parameters.
            kappa: Weight of the latter, where each is divided by its usual norm.

        Returns:
            The sum, and `meta_distillation_gradient`, the norm of the latter, and `meta_cosine`.
        """
        norms = _norm(reconstruction), _norm(distillation)
        self.meta_reconstruction.add(norms[0])
        self.meta_distillation.add(norms[1])
        first = 1 / self.meta_reconstruction.value.clamp_min(_TINY)
        second = kappa / self.meta_distillation.value.clamp_min(_TINY)
        both = zip(reconstruction, distillation, strict=True)
        return tuple(first * r + second * d for r, d in both), {
            "meta_distillation_gradient": norms[1],
            "meta_cosine": _cosine(reconstruction, distillation, norms),
        }


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(gradients)


def _cosine(one: Sequence[Tensor], other: Sequence[Tensor], norms: tuple[Tensor, Tensor]) -> Tensor:
    product = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    return product / (norms[0] * norms[1]).clamp_min(_TINY)
