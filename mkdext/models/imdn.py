"""IMDN: information multi-distillation network (Hui et al., ACM Multimedia 2019).

In the form that the challenges on efficient super-resolution take as their baseline (NTIRE 2022):
a chain of blocks without channel attention, inside a skip. Parameter names are those of its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mkdext.models.blocks import SRNetwork, check_sizes, conv3x3
from mkdext.models.channels import COLOURS, Channels
from mkdext.models.convolutions import SubPixelSequential
from mkdext.models.registry import register
from mkdext.models.weights.shapes import count_numbers, is_conv, out_channels

_SLOPE = 0.05


@dataclasses.dataclass(frozen=True)
class IMDNConfig:
    """Size of an IMDN."""

    blocks: int
    """Number of blocks in the body."""
    features: int
    """Channels between the blocks."""
    kept: int
    """Channels that a block keeps of each of its convolutions; the others go on to the next."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)
        if self.kept >= self.features:
            raise ValueError(
                f"IMDNConfig: kept must be less than features={self.features}, got {self.kept}"
            )


class IMDBlock(nn.Module):
    """Four convolutions, of each of which some channels are kept, fused, plus the input."""

    def __init__(self, config: IMDNConfig) -> None:
        """Make the block."""
        super().__init__()
        features, self.kept = config.features, config.kept
        passed = features - self.kept
        self.conv1 = _activated(features, features)
        self.conv2 = _activated(passed, features)
        self.conv3 = _activated(passed, features)
        self.conv4 = conv3x3(passed, self.kept)
        self.conv1x1 = nn.Conv2d(4 * self.kept, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        passed, kept = x, []
        for conv in (self.conv1, self.conv2, self.conv3):
            result = conv(passed)
            kept.append(result[:, : self.kept])
            passed = result[:, self.kept :]
        residual: Tensor = self.conv1x1(torch.cat([*kept, self.conv4(passed)], dim=1))
        return residual + x


class Shortcut(nn.Module):
    """Layers in a row, plus the input."""

    def __init__(self, *layers: nn.Module) -> None:
        """Take the layers."""
        super().__init__()
        self.sub = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        residual: Tensor = self.sub(x)
        return residual + x


@register(
    {
        # The baseline of the challenge, and a student of a quarter of its width.
        "imdn-t": IMDNConfig(blocks=8, features=64, kept=16),
        "imdn-s": IMDNConfig(blocks=4, features=16, kept=4),
    }
)
class IMDN(SRNetwork):
    """Information multi-distillation network: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`.

    Colours are in [0, 1], inside too.

    Example:
        >>> import torch
        >>> model = IMDN(IMDNConfig(blocks=4, features=16, kept=4), scale=4)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 48, 40])
    """

    config: IMDNConfig
    rows: ClassVar[Mapping[str, str]] = {"model.1.sub": "blocks"}
    first_layers = ("model.0.weight",)

    def __init__(self, config: IMDNConfig, scale: int) -> None:
        """Make a network with random weights.

        Raises:
            ValueError: `scale` is not 2, 3, 4 or 8.
        """
        super().__init__(config, scale)
        features = config.features
        blocks = [IMDBlock(config) for _ in range(config.blocks)]
        self.model = SubPixelSequential(
            conv3x3(3, features),
            Shortcut(*blocks, conv3x3(features, features)),
            conv3x3(features, 3 * scale**2),
            nn.PixelShuffle(scale),
        )

    def super_resolve(self, low: Tensor) -> Tensor:
        """Run all layers."""
        sr: Tensor = self.model(low)
        return sr

    def stages(self) -> list[str]:
        """Names of the blocks."""
        return [f"model.1.sub.{block}" for block in range(self.config.blocks)]

    def name_in(self, other: SRNetwork, name: str) -> str | None:
        """As for any network; the convolution after the blocks has the number after theirs."""
        end, new_end = (f"model.1.sub.{len(network.stages())}" for network in (self, other))
        if name == end or name.startswith(f"{end}."):
            return f"{new_end}{name.removeprefix(end)}"
        return super().name_in(other, name)

    def channels(self, layer: str) -> Channels:
        """The stream, and what the convolutions of a block keep and pass on."""
        stream, kept = super().channels(layer).reads, self.config.kept
        block, _, name = layer.removesuffix(".0").rpartition(".")
        all_kept = {f"{block}.conv{number}": kept for number in range(1, 5)}
        if name == "conv1x1":
            return Channels(stream, all_kept)
        own = f"{block}.{name}"
        if own in all_kept:
            passed = [{f"{slot}+": self.config.features - kept} for slot in all_kept][:3]
            number = int(name[-1])
            reads = passed[number - 2] if number > 1 else stream
            return Channels({own: kept} | (passed[number - 1] if number < 4 else {}), reads)
        if layer == "model.0":
            return Channels(stream, COLOURS)
        return Channels(COLOURS if layer == "model.2" else stream, stream)

    @classmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[IMDNConfig, int] | None:
        """Size and scale of the IMDN that `weights` seem to be of; none if they are of no IMDN."""
        first = weights.get("model.1.sub.0.conv1.0.weight")
        features = out_channels(first)
        kept = out_channels(weights.get("model.1.sub.0.conv4.weight"))
        scale = round((out_channels(weights.get("model.2.weight")) / 3) ** 0.5)
        if not is_conv(first, features, features, 3) or not 1 <= kept < features or scale < 1:
            return None
        blocks = count_numbers(weights, r"model\.1\.sub\.(\d+)\.conv1\.0\.weight")
        return IMDNConfig(blocks, features, kept), scale


def _activated(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(in_channels, out_channels), nn.LeakyReLU(_SLOPE, inplace=True))
