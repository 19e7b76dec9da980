"""VDSR: very deep super-resolution network (Kim et al., CVPR 2016).

Parameter names are those of pytorch-vdsr, so that its weights load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mkdext.data import imresize
from mkdext.metrics import luma_picture
from mkdext.models.blocks import SRNetwork, check_sizes, conv3x3
from mkdext.models.channels import Channels
from mkdext.models.registry import register
from mkdext.models.user.adapted import AdaptedNetwork
from mkdext.models.user.interface import Interface
from mkdext.models.weights.shapes import count_numbers, is_conv, out_channels

_WHITE, _BLACK = 235, 16  # levels of Y
_NOISE, _NEAR_ZERO = 0.2, 0.05  # of new weights, beside those of He et al., "Delving Deep", 2015


@dataclasses.dataclass(frozen=True)
class VDSRConfig:
    """Size of a VDSR."""

    features: int
    """Channels of every feature map."""
    blocks: int = 18
    """Number of convolutions between the first and the last."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)


class ConvReLU(nn.Module):
    """Convolution and ReLU."""

    def __init__(self, features: int) -> None:
        """Make the block."""
        super().__init__()
        self.conv = conv3x3(features, features, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        activated: Tensor = self.relu(self.conv(x))
        return activated


class LumaVDSR(nn.Module):
    """VDSR as published: sharpens the Y channel of an image that was enlarged before.

    Example:
        >>> import torch
        >>> LumaVDSR(VDSRConfig(features=8))(torch.rand(1, 1, 9, 7)).shape
        torch.Size([1, 1, 9, 7])
    """

    def __init__(self, config: VDSRConfig) -> None:
        """Make a network with random weights.

        Convolutions between the first and the last begin as the identity and a little noise, the
        last one near zero, so that a deep or growing network can be trained at once.
        """
        super().__init__()
        self.input = conv3x3(1, config.features, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.residual_layer = nn.Sequential(
            *(ConvReLU(config.features) for _ in range(config.blocks))
        )
        self.output = conv3x3(config.features, 1, bias=False)
        for weight in self.parameters():
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        with torch.no_grad():
            for weight in self.residual_layer.parameters():
                weight.copy_(nn.init.dirac_(torch.empty_like(weight)) + _NOISE * weight)
            self.output.weight.mul_(_NEAR_ZERO)

    def forward(self, y: Tensor) -> Tensor:
        """Map `[B, 1, H, W]`, MATLAB's Y (16-235) divided by 255, to the same shape."""
        return self.residual(y) + y

    def residual(self, y: Tensor) -> Tensor:
        """What is added to `y`."""
        added: Tensor = self.output(self.residual_layer(self.relu(self.input(y))))
        return added


@register(
    {
        # Data-free contrastive distillation (Wang et al.), section 4.2.
        "vdsr": VDSRConfig(features=64),
        "vdsr-half": VDSRConfig(features=32),
    }
)
class VDSR(SRNetwork):
    """VDSR on colour images: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    The image is enlarged by MATLAB's bicubic and its Y channel goes through `luma`. Weights are the
    same for every scale.

    Example:
        >>> import torch
        >>> model = VDSR(VDSRConfig(features=8, blocks=4), scale=3)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 36, 30])
    """

    config: VDSRConfig
    protocol = "float"
    changes_luma_alone = True
    rows: ClassVar[Mapping[str, str]] = {"luma.residual_layer": "blocks"}
    first_layers = ("input.weight",)
    muon_rate = 1e-3  # At more, without shortcuts inside, its ReLUs are soon shut for good.

    def __init__(self, config: VDSRConfig, scale: int) -> None:
        """Make a network with random weights.

        Raises:
            ValueError: `scale` is not 2, 3, 4 or 8.
        """
        super().__init__(config, scale)
        self.luma = LumaVDSR(config)

    def super_resolve(self, low: Tensor) -> Tensor:
        """Enlarge, and sharpen the Y channel."""
        enlarged = imresize(low, self.scale)
        # In YCbCr a change of Y alone is the same change of red, green and blue.
        return enlarged + self.luma.residual(luma_picture(enlarged)) * (255 / (_WHITE - _BLACK))

    def stages(self) -> list[str]:
        """Names of the convolutions between the first and the last; their maps are enlarged."""
        return [f"luma.residual_layer.{block}" for block in range(self.config.blocks)]

    def channels(self, layer: str) -> Channels:
        """Each layer has channels of its own; there is no residual stream but the picture."""
        layers = ["luma.input", *(f"{stage}.conv" for stage in self.stages()), "luma.output"]
        before = dict(zip(layers[1:], layers, strict=False))
        luma, features = {"luma": 1}, self.config.features
        writes = luma if layer == layers[-1] else {layer: features}
        return Channels(writes, {before[layer]: features} if layer in before else luma)

    def at_scale(self, scale: int) -> VDSR:
        """The network at another scale, with the same `luma`."""
        other = VDSR(self.config, scale)
        other.luma = self.luma
        return other

    def for_export(self) -> nn.Module:
        """`luma` between bicubic and colours that are convolutions."""
        of_luma = Interface(channels=1, enlarged=True)
        return AdaptedNetwork(self.luma, self.scale, of_luma).for_export()

    @classmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[VDSRConfig, None] | None:
        """Size of the VDSR that `weights` seem to be of, under their names here; else none."""
        conv = weights.get("luma.residual_layer.0.conv.weight")
        features = out_channels(conv)
        if features < 1 or not is_conv(conv, features, features, 3):
            return None
        blocks = count_numbers(weights, r"luma\.residual_layer\.(\d+)\.conv\.weight")
        return VDSRConfig(features, blocks), None

    @classmethod
    def own_names(cls, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as parts of `luma`, if they have the names of pytorch-vdsr."""
        if "residual_layer.0.conv.weight" not in weights:
            return dict(weights)
        return {f"luma.{name}": tensor for name, tensor in weights.items()}
