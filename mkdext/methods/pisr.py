"""PISR: privileged information for super-resolution (Lee, Lee, Kim, Ham, ECCV 2020).

The teacher sees the high-resolution picture: an encoder makes a low-resolution image of it, from
which a decoder, a network like the student, restores the picture. The student starts from the
decoder's weights and learns from the decoder's feature maps by variational information distillation
(VID: Ahn et al., CVPR 2019) with a Laplace distribution. Sizes and constants that the paper leaves
open are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext._system.processes import averaged
from mkdext.methods.base import DistillationMethod, total
from mkdext.methods.registry import register

IMITATION_WEIGHT = 1e-4
"""Weight of the encoder's imitation of the low-resolution image in the teacher's loss."""
_WIDTHS = 56, 12
_SLOPE, _LEAST = 0.1, 1e-8
_LEAST_SIZE = 1e-4  # of a map; the gradient of a map of zeros is the inverse of it


class PrivilegedEncoder(nn.Sequential):
    """From the high-resolution picture to an image that tells a decoder more than its bicubic one.

    Maps `[B, 3, s*h, s*w]` to `[B, 3, h, w]` for any scale s: convolutions of 5, 5 with stride s,
    3, and 3 pixels, PReLU between them.

    Example:
        >>> PrivilegedEncoder(scale=3)(torch.rand(1, 3, 24, 15)).shape
        torch.Size([1, 3, 8, 5])
    """

    def __init__(self, scale: int) -> None:
        """Make the encoder with random weights.

        Raises:
            ValueError: `scale` is less than 1.
        """
        if scale < 1:
            raise ValueError(f"PrivilegedEncoder: scale must be at least 1, got {scale}")
        wide, narrow = _WIDTHS
        super().__init__(
            nn.Conv2d(3, wide, 5, padding=2),
            nn.PReLU(),
            nn.Conv2d(wide, wide, 5, stride=scale, padding=2),
            nn.PReLU(),
            nn.Conv2d(wide, narrow, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(narrow, 3, 3, padding=1),
        )


def privileged_loss(
    sr: Tensor, high: Tensor, encoded: Tensor, low: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the privileged teacher is trained on: reconstruction, and imitation of the input.

    Args:
        sr: What the decoder makes of `encoded`, `[B, 3, s*h, s*w]` in [0, 1].
        high: The picture, like `sr`.
        encoded: What the encoder makes of `high`, `[B, 3, h, w]`.
        low: The low-resolution image, like `encoded`.

    Returns:
        `mean |sr - high| + 1e-4 mean |encoded - low|` and its two terms without weights; scalars.

    Example:
        >>> picture, image = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 2, 2)
        >>> float(privileged_loss(picture + 1, picture, image + 1, image)[0])
        1.000100016593933
    """
    reconstruction, imitation = functional.l1_loss(sr, high), functional.l1_loss(encoded, low)
    return reconstruction + IMITATION_WEIGHT * imitation, reconstruction, imitation


@register("pisr")
class PISR(DistillationMethod):
    """Negative log-likelihood of the teacher's maps, given the student's.

    At each point two heads of 1x1 convolutions with a PReLU between them turn the student's map
    into mean and scale of a Laplace distribution for every pixel and channel of the teacher's. Maps
    are divided by their mean magnitude, for the method was made for networks whose maps are of the
    size of 1. (Of larger ones random weights make some scales next to nothing, and the student's
    map, from which scales come as well, would grow to make them larger.) Weight: 0.002; with the
    1e-6 of the authors' code the student would not feel it beside reconstruction.

    Example:
        >>> pisr = PISR([16], [32])
        >>> pisr([torch.rand(2, 16, 8, 8)], [torch.rand(2, 32, 8, 8)]).shape
        torch.Size([])
    """

    whitens = False
    privileged = True
    published_weight = 2e-3

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Make the heads for the channels of each point."""
        super().__init__(student_channels, teacher_channels)
        channels = list(zip(student_channels, teacher_channels, strict=True))
        self.means = nn.ModuleList(_head(*each) for each in channels)
        self.scales = nn.ModuleList(_head(*each) for each in channels)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Sum over the points of `mean(log 2b + |mu - t| / b)`, `b = 0.1 softplus(.) + 1e-8`.

        It has no least value: the surer of the right mean, the lower.
        """
        losses = []
        for mean, scale, s, t in zip(self.means, self.scales, student, teacher, strict=True):
            own = of_unit_size(s)
            b = _SLOPE * functional.softplus(scale(own)) + _LEAST
            losses.append(laplace(mean(own), b, of_unit_size(t)))
        return total(losses)

    @torch.no_grad()
    def statistics(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
        """`gap`: mean of `|mu - t|`, averaged over the points; that of `|t|` is 1."""
        gaps = [
            functional.l1_loss(mean(of_unit_size(s)), of_unit_size(t))
            for mean, s, t in zip(self.means, student, teacher, strict=True)
        ]
        return {"gap": float(torch.stack(gaps).mean())}


def of_unit_size(features: Tensor) -> Tensor:
    """A map divided by the mean of its magnitude, over the batch too, or by 1e-4 if that is more.

    The batch is that of all processes.

    Example:
        >>> of_unit_size(torch.tensor([3.0, -1.0]))
        tensor([ 1.5000, -0.5000])
    """
    (size,) = averaged(features.abs().mean())
    return features / size.clamp_min(_LEAST_SIZE)


def laplace(mean: Tensor, scale: Tensor, value: Tensor) -> Tensor:
    """Mean negative log-likelihood of a Laplace distribution.

    Args:
        mean: Of the distribution, any shape.
        scale: Its scale b, positive, like `mean`.
        value: What was observed, like `mean`.

    Returns:
        A scalar, differentiable twice.

    Example:
        >>> float(laplace(torch.zeros(3), torch.full((3,), 0.5), torch.ones(3)))
        2.0
    """
    return ((2 * scale).log() + (mean - value).abs() / scale).mean()


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.PReLU(), nn.Conv2d(outputs, outputs, 1))
