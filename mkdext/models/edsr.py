"""EDSR: enhanced deep super-resolution network (Lim et al., CVPR workshops 2017).

Parameter names are those of the official code, EDSR-PyTorch, so that its checkpoints load.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from mkdext.models.blocks import SequentialNetwork, check_sizes, conv3x3
from mkdext.models.channels import Channels, of_pair
from mkdext.models.registry import register
from mkdext.models.weights.shapes import count_numbers, is_conv, out_channels, upsampler_scale

_WIDE = 256


@dataclasses.dataclass(frozen=True)
class EDSRConfig:
    """Size of an EDSR."""

    blocks: int
    """Number of residual blocks in the body."""
    features: int
    """Channels of every feature map of the body."""
    residual_scale: float = 1.0
    """Factor of what a block adds to its input. It stands in no checkpoint: weights of 256 features
    are taken to be trained with 0.1, others with 1, as those of the authors."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)


class ResBlock(nn.Module):
    """Residual block: convolution, ReLU, convolution, scaled, plus input."""

    def __init__(self, config: EDSRConfig) -> None:
        """Make the block."""
        super().__init__()
        self.residual_scale = config.residual_scale
        self.body = nn.Sequential(
            conv3x3(config.features, config.features),
            nn.ReLU(inplace=True),
            conv3x3(config.features, config.features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        residual: Tensor = self.body(x)
        return residual * self.residual_scale + x


@register(
    {
        # MKD Table 5.
        "edsr-t": EDSRConfig(blocks=32, features=256, residual_scale=0.1),
        "edsr-s": EDSRConfig(blocks=4, features=16),
    }
)
class EDSR(SequentialNetwork):
    """Enhanced deep network: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Example:
        >>> import torch
        >>> model = EDSR(EDSRConfig(blocks=4, features=16), scale=4)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 48, 40])
    """

    config: EDSRConfig
    rows: ClassVar[Mapping[str, str]] = {"body": "blocks"}

    def parts(self) -> list[nn.Module]:
        """The blocks."""
        return [ResBlock(self.config) for _ in range(self.config.blocks)]

    def channels(self, layer: str) -> Channels:
        """As in the frame, and those inside of the blocks."""
        channels = super().channels(layer)
        if re.fullmatch(r"body\.\d+\.body\.[02]", layer):
            return of_pair(layer, channels, self.config.features)
        return channels

    def handed(self, name: str, weight: Tensor, config: EDSRConfig) -> Tensor:
        """The factor of what a block adds goes into its last convolution."""
        if re.fullmatch(r"body\.\d+\.body\.2\..*", name):
            return weight * (config.residual_scale / self.config.residual_scale)
        return weight

    @classmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[EDSRConfig, int] | None:
        """Size and scale of the EDSR that `weights` seem to be of; none if they are of no EDSR."""
        conv = weights.get("body.0.body.0.weight")
        features = out_channels(conv)
        scale = upsampler_scale(weights, r"tail\.0\.\d\.weight", features)
        if scale is None or features < 1 or not is_conv(conv, features, features, 3):
            return None
        config = EDSRConfig(
            blocks=count_numbers(weights, r"body\.(\d+)\.body\.0\.weight"),
            features=features,
            residual_scale=0.1 if features == _WIDE else 1.0,
        )
        return config, scale

    @classmethod
    def own_names(cls, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with the names of the official code, if they have those of BasicSR's EDSR."""
        blocks = count_numbers(weights, r"body\.(\d+)\.conv1\..*")
        if "conv_first.weight" not in weights or not blocks:
            return dict(weights)
        inside = [
            (r"(body\.\d+)\.conv1\.", r"\1.body.0."),
            (r"(body\.\d+)\.conv2\.", r"\1.body.2."),
        ]
        return cls.from_basicsr(weights, blocks, inside)
