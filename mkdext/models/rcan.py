"""RCAN: residual channel attention network (Zhang et al., ECCV 2018).

Parameter names are those of the official code, so that official checkpoints load.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from mkdext.models.blocks import SequentialNetwork, channel_weights, check_sizes, conv3x3
from mkdext.models.channels import Channels, of_pair
from mkdext.models.registry import register
from mkdext.models.weights.shapes import count_numbers, is_conv, out_channels, upsampler_scale


@dataclasses.dataclass(frozen=True)
class RCANConfig:
    """Size of an RCAN."""

    groups: int
    """Number of residual groups in the body."""
    blocks: int
    """Number of residual channel attention blocks in a group."""
    features: int
    """Channels of every feature map of the body."""
    reduction: int = 16
    """Channels of a block divided by those of its attention bottleneck."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)


class CALayer(nn.Module):
    """Channel attention: each channel is scaled by a number in (0, 1) computed from all means."""

    def __init__(self, features: int, reduction: int) -> None:
        """Make the attention of `features` channels."""
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = channel_weights(features, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`, `[B, C, H, W]`."""
        scale: Tensor = self.conv_du(self.avg_pool(x))
        return x * scale


class RCAB(nn.Module):
    """Residual channel attention block: convolution, ReLU, convolution, attention, plus input."""

    def __init__(self, features: int, reduction: int) -> None:
        """Make the block."""
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(features, features),
            nn.ReLU(inplace=True),
            conv3x3(features, features),
            CALayer(features, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        residual: Tensor = self.body(x)
        return residual + x


class ResidualGroup(nn.Module):
    """Several blocks and a convolution, plus the input."""

    def __init__(self, config: RCANConfig) -> None:
        """Make the group."""
        super().__init__()
        blocks = [RCAB(config.features, config.reduction) for _ in range(config.blocks)]
        self.body = nn.Sequential(*blocks, conv3x3(config.features, config.features))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        residual: Tensor = self.body(x)
        return residual + x


@register(
    {
        # MKD Table 1: the teacher and three students.
        "rcan-t": RCANConfig(groups=10, blocks=20, features=64),
        "rcan-a": RCANConfig(groups=4, blocks=1, features=16),
        "rcan-b": RCANConfig(groups=4, blocks=4, features=16),
        "rcan-c": RCANConfig(groups=4, blocks=4, features=32),
    }
)
class RCAN(SequentialNetwork):
    """Residual channel attention network: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`, in [0, 1].

    Example:
        >>> import torch
        >>> model = RCAN(RCANConfig(groups=4, blocks=1, features=16), scale=4)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 48, 40])
    """

    config: RCANConfig
    config_class = RCANConfig
    part_count = "groups"
    rows: ClassVar[Mapping[str, str]] = {"body": "groups", "body.*.body": "blocks"}

    def parts(self) -> list[nn.Module]:
        """The groups."""
        return [ResidualGroup(self.config) for _ in range(self.config.groups)]

    def channels(self, layer: str) -> Channels:
        """As in the frame, and those inside of the blocks."""
        channels, features = super().channels(layer), self.config.features
        if re.fullmatch(r".*\.conv_du\.[02]", layer):
            return of_pair(layer, channels, features // self.config.reduction)
        if re.fullmatch(r"body\.\d+\.body\.\d+\.body\.[02]", layer):
            return of_pair(layer, channels, features)
        return channels

    @classmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[RCANConfig, int] | None:
        """Size and scale of the RCAN that `weights` seem to be of; none if they are of no RCAN.

        Example:
            >>> config = RCANConfig(groups=4, blocks=1, features=16)
            >>> RCAN.infer(RCAN(config, scale=8).state_dict()) == (config, 8)
            True
        """
        block = "body.0.body.0.body"
        features = out_channels(weights.get(f"{block}.0.weight"))
        squeezed = out_channels(weights.get(f"{block}.3.conv_du.0.weight"))
        scale = upsampler_scale(weights, r"tail\.0\.\d\.weight", features)
        if scale is None or not 1 <= squeezed <= features:
            return None
        if not is_conv(weights.get(f"{block}.0.weight"), features, features, 3):
            return None
        config = cls.config_class(
            groups=count_numbers(weights, r"body\.(\d+)\.body\.\d+\.body\.0\.weight"),
            blocks=count_numbers(weights, r"body\.\d+\.body\.(\d+)\.body\.0\.weight"),
            features=features,
            reduction=features // squeezed,
        )
        return config, scale

    @classmethod
    def own_names(cls, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with the names of the official code, if they have those of BasicSR's RCAN."""
        groups = count_numbers(weights, r"body\.(\d+)\.residual_group\..*")
        if "conv_first.weight" not in weights or not groups:
            return dict(weights)
        blocks = count_numbers(weights, r"body\.\d+\.residual_group\.(\d+)\..*")
        inside = [
            (r"(body\.\d+)\.conv\.", rf"\1.body.{blocks}."),
            (r"(body\.\d+)\.residual_group\.(\d+)\.rcab\.", r"\1.body.\2.body."),
            (r"(.*\.body\.3)\.attention\.1\.", r"\1.conv_du.0."),
            (r"(.*\.body\.3)\.attention\.3\.", r"\1.conv_du.2."),
        ]
        return cls.from_basicsr(weights, groups, inside)
