"""RDN: residual dense network (Zhang et al., CVPR 2018).

Parameter names are those of EDSR-PyTorch, so that its checkpoints load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mkdext.models.blocks import SRNetwork, check_sizes, conv3x3, upsampler
from mkdext.models.channels import COLOURS, STREAM, Channels
from mkdext.models.convolutions import SubPixelSequential
from mkdext.models.registry import register
from mkdext.models.weights.rgb_range import RGB_RANGE
from mkdext.models.weights.shapes import count_numbers, is_conv, out_channels, upsampler_scale


@dataclasses.dataclass(frozen=True)
class RDNConfig:
    """Size of an RDN, with the letters of its paper."""

    blocks: int
    """Number of residual dense blocks, D."""
    layers: int
    """Number of convolutions in a block, C."""
    growth: int
    """Channels that each of them adds, G."""
    features: int
    """Channels between the blocks, G0."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)


class DenseLayer(nn.Module):
    """Convolution and ReLU whose result is put after the channels of the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        """Make the layer."""
        super().__init__()
        self.conv = nn.Sequential(conv3x3(in_channels, growth), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C + G, H, W]`."""
        return torch.cat((x, self.conv(x)), dim=1)


class RDB(nn.Module):
    """Residual dense block: dense layers, local feature fusion, plus input."""

    def __init__(self, config: RDNConfig) -> None:
        """Make the block."""
        super().__init__()
        widths = [config.features + layer * config.growth for layer in range(config.layers + 1)]
        self.convs = nn.Sequential(*(DenseLayer(width, config.growth) for width in widths[:-1]))
        self.LFF = nn.Conv2d(widths[-1], config.features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, G0, H, W]` to the same shape."""
        residual: Tensor = self.LFF(self.convs(x))
        return residual + x


@register(
    {
        # MKD Table 5.
        "rdn-t": RDNConfig(blocks=16, layers=8, growth=64, features=64),
        "rdn-s": RDNConfig(blocks=4, layers=4, growth=16, features=16),
    }
)
class RDN(SRNetwork):
    """Residual dense network: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Inside, colours run from 0 to 255 as in EDSR-PyTorch; no mean is subtracted, so that
    weights do not tell of another `--rgb_range`.

    Example:
        >>> import torch
        >>> model = RDN(RDNConfig(blocks=4, layers=4, growth=16, features=16), scale=4)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 48, 40])
    """

    config: RDNConfig
    rows: ClassVar[Mapping[str, str]] = {"RDBs": "blocks", "RDBs.*.convs": "layers"}
    first_layers = ("SFENet1.weight",)

    def __init__(self, config: RDNConfig, scale: int) -> None:
        """Make a network with random weights.

        Raises:
            ValueError: `scale` is not 2, 3, 4 or 8.
        """
        super().__init__(config, scale)
        features, growth = config.features, config.growth
        self.SFENet1 = conv3x3(3, features)
        self.SFENet2 = conv3x3(features, features)
        self.RDBs = nn.ModuleList(RDB(config) for _ in range(config.blocks))
        self.GFF = nn.Sequential(
            nn.Conv2d(config.blocks * features, features, 1), conv3x3(features, features)
        )
        self.UPNet = SubPixelSequential(*upsampler(growth, scale, features), conv3x3(growth, 3))

    def super_resolve(self, low: Tensor) -> Tensor:
        """Shallow features, dense blocks, global feature fusion, upsampling."""
        shallow = self.SFENet1(low * RGB_RANGE)
        x = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        sr: Tensor = self.UPNet(self.GFF(torch.cat(outputs, dim=1)) + shallow)
        return sr / RGB_RANGE

    def stages(self) -> list[str]:
        """Names of the blocks."""
        return [f"RDBs.{block}" for block in range(self.config.blocks)]

    def channels(self, layer: str) -> Channels:
        """Those between the blocks, at their border, and what the layers inside of them add."""
        features, growth = self.config.features, self.config.growth
        stream, shallow, fused = {STREAM: features}, {"shallow": features}, {"fused": features}
        enlarged = {"enlarged": growth}
        match layer.split("."):
            case ["SFENet1"]:
                return Channels(shallow, COLOURS)
            case ["SFENet2"]:
                return Channels(stream, shallow)
            case ["RDBs", block, "convs", number, *_]:
                return Channels({layer: growth}, stream | self._dense(block, int(number)))
            case ["RDBs", block, "LFF"]:
                return Channels(stream, stream | self._dense(block, self.config.layers))
            case ["GFF", "0"]:
                return Channels(fused, {f"{STREAM}:{block}": features for block in self.stages()})
            case ["GFF", _]:
                return Channels(shallow, fused)
            case ["UPNet", "0"]:
                return Channels(enlarged, shallow)
        is_last = layer == f"UPNet.{len(self.UPNet) - 1}"
        return Channels(COLOURS if is_last else enlarged, enlarged)

    def _dense(self, block: str, layers: int) -> dict[str, int]:
        """What the first layers of a block have added."""
        return {f"RDBs.{block}.convs.{layer}.conv.0": self.config.growth for layer in range(layers)}

    def widened(self, name: str, trained: Tensor, new: Tensor) -> Tensor:
        """Global feature fusion sees the outputs of all blocks, the first one first."""
        if name != "GFF.0.weight":
            return trained
        return torch.cat((trained, new[:, trained.shape[1] :]), dim=1)

    @classmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[RDNConfig, int] | None:
        """Size and scale of the RDN that `weights` seem to be of; none if they are of no RDN."""
        conv = weights.get("RDBs.0.convs.0.conv.0.weight")
        growth, features = out_channels(conv), out_channels(weights.get("SFENet1.weight"))
        # The last convolution of UPNet, to three colours, is not of the upsampler.
        stages = {name: weight for name, weight in weights.items() if out_channels(weight) > 3}
        scale = upsampler_scale(stages, r"UPNet\.\d\.weight", growth)
        if scale is None or min(growth, features) < 1 or not is_conv(conv, growth, features, 3):
            return None
        config = RDNConfig(
            blocks=count_numbers(weights, r"RDBs\.(\d+)\.LFF\.weight"),
            layers=count_numbers(weights, r"RDBs\.\d+\.convs\.(\d+)\.conv\.0\.weight"),
            growth=growth,
            features=features,
        )
        return config, scale
