"""HAN: holistic attention network (Niu et al., ECCV 2020).

Parameter names are those of the official code, so that official checkpoints load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mkdext.models.blocks import conv3x3
from mkdext.models.channels import STREAM, Channels
from mkdext.models.rcan import RCAN, RCANConfig
from mkdext.models.registry import register

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class HANConfig(RCANConfig):
    """Size of an HAN, which has the body of an RCAN."""


class LayerAttention(nn.Module):
    """Layer attention: adds to every layer's map a mean of all, the most unlike counting most.

    The paper's softmax is of the correlation of the maps; the official code, which the checkpoints
    are of, takes that of its negative.
    """

    def __init__(self) -> None:
        """Make the attention, which does nothing until `gamma` is trained."""
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, N, C, H, W]` to `[B, N * C, H, W]`."""
        flat = maps.flatten(2)
        weights = (-flat @ flat.transpose(1, 2)).softmax(dim=-1)
        mixed = (weights @ flat).view_as(maps)
        return (self.gamma * mixed + maps).flatten(1, 2)


class ChannelSpatialAttention(nn.Module):
    """Channel-spatial attention: weights come from a convolution over channels, rows, columns."""

    def __init__(self) -> None:
        """Make the attention, which does nothing until `gamma` is trained."""
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.conv = VolumeConvolution(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        weights: Tensor = self.conv(x.unsqueeze(1)).squeeze(1).sigmoid()
        return x * (self.gamma * weights) + x


class VolumeConvolution(nn.Conv3d):
    """3-D convolution of one channel that can stand in a network of the channels-last layout."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # network.to(memory_format=torch.channels_last) fails on weights of five dimensions.
        def convert(tensor: Tensor) -> Any:
            return fn(tensor[0]).unsqueeze(0) if tensor.ndim == 5 else fn(tensor)

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        return self


@register(
    {
        # MKD Table 5.
        "han-t": HANConfig(groups=10, blocks=20, features=64),
        "han-s": HANConfig(groups=4, blocks=4, features=16, reduction=4),
    }
)
class HAN(RCAN):
    """Holistic attention network: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`, in [0, 1].

    Example:
        >>> model = HAN(HANConfig(groups=4, blocks=4, features=16, reduction=4), scale=4)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 48, 40])
    """

    config: HANConfig
    config_class = HANConfig

    def add_body(self) -> None:
        """Make the body of RCAN and the attention over the outputs of its parts."""
        super().add_body()
        features, parts = self.config.features, self.config.groups + 1
        self.csa = ChannelSpatialAttention()
        self.la = LayerAttention()
        self.last_conv = conv3x3(parts * features, features)
        self.last = conv3x3(2 * features, features)

    def deep_features(self, shallow: Tensor) -> Tensor:
        """Run the body and fuse the outputs of its parts with that of its end."""
        x, outputs = shallow, []
        for part in self.body:
            x = part(x)
            outputs.append(x)
        # The official code stacks the last output first.
        layers = self.last_conv(self.la(torch.stack(outputs[::-1], dim=1)))
        deep: Tensor = self.last(torch.cat((self.csa(x), layers), dim=1))
        return deep

    def widened(self, name: str, trained: Tensor, new: Tensor) -> Tensor:
        """Layer attention sees the output of the whole body first, then the last part's, and on."""
        if name != "last_conv.weight":
            return trained
        features = self.config.features
        added = new[:, features : features + new.shape[1] - trained.shape[1]]
        return torch.cat((trained[:, :features], added, trained[:, features:]), dim=1)

    def channels(self, layer: str) -> Channels:
        """As in RCAN, and what is made of the outputs of all parts."""
        channels, features = super().channels(layer), self.config.features
        layers = {"layers": features}
        match layer:
            case "csa.conv":
                return Channels({"volume": 1}, {"volume": 1})
            case "last_conv":
                parts = reversed(range(self.config.groups + 1))
                return Channels(layers, {f"{STREAM}:body.{part}": features for part in parts})
            case "last":
                return channels._replace(reads={STREAM: features, **layers})
        return channels

    @classmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[RCANConfig, int] | None:
        """Size and scale of the HAN that `weights` seem to be of; none if they are of no HAN."""
        return super().infer(weights) if "csa.conv.weight" in weights else None
