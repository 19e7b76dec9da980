"""RCAN: residual channel attention network (Zhang et al., ECCV 2018).

Parameter names are those of the official code, so that official checkpoints load.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
RGB_RANGE = 255.0
SCALES = (2, 3, 4, 8)


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
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"RCANConfig: {name} must be at least 1, got {value}")
        if self.features < self.reduction:
            raise ValueError(
                f"RCANConfig: features must be at least reduction={self.reduction}, "
                f"got {self.features}"
            )


class MeanShift(nn.Module):
    """Adds `sign * 255 * mean` to each colour channel: `[B, 3, H, W]` -> `[B, 3, H, W]`.

    A fixed 1x1 convolution; its numbers are buffers, because checkpoints carry their own.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Sequence[float], sign: int) -> None:
        """Make the shift by `sign` times `mean` (in [0, 1])."""
        super().__init__()
        self.register_buffer("weight", torch.eye(3).view(3, 3, 1, 1))
        self.register_buffer("bias", sign * RGB_RANGE * torch.tensor(mean))

    def forward(self, image: Tensor) -> Tensor:
        """Shift the colours of `image`."""
        return nn.functional.conv2d(image, self.weight, self.bias)


class CALayer(nn.Module):
    """Channel attention: each channel is scaled by a number in (0, 1) computed from all means."""

    def __init__(self, features: int, reduction: int) -> None:
        """Make the attention of `features` channels."""
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(features, features // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(features // reduction, features, 1),
            nn.Sigmoid(),
        )

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


class RCAN(nn.Module):
    """Residual channel attention network: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`, in [0, 1].

    Inside, colours run from 0 to 255 as in the official code. The output is not clipped.

    Example:
        >>> model = RCAN(RCANConfig(groups=4, blocks=1, features=16), scale=4)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 48, 40])
    """

    def __init__(self, config: RCANConfig, scale: int) -> None:
        """Make a network with random weights.

        Raises:
            ValueError: `scale` is not 2, 3, 4 or 8.
        """
        super().__init__()
        self.config = config
        self.scale = scale
        self.sub_mean = MeanShift(DIV2K_MEAN, -1)
        self.add_mean = MeanShift(DIV2K_MEAN, 1)
        self.head = nn.Sequential(conv3x3(3, config.features))
        groups = [ResidualGroup(config) for _ in range(config.groups)]
        self.body = nn.Sequential(*groups, conv3x3(config.features, config.features))
        self.tail = nn.Sequential(upsampler(config.features, scale), conv3x3(config.features, 3))

    def forward(self, lr: Tensor) -> Tensor:
        """Super-resolve `lr`.

        Raises:
            TypeError: `lr` is of integers.
        """
        if not lr.is_floating_point():
            # It would run, on colours 255 times too large.
            raise TypeError(
                f"RCAN: lr must be floating point in [0, 1], got {lr.dtype}; divide it by 255"
            )
        shallow = self.head(self.sub_mean(lr * RGB_RANGE))
        deep = self.body(shallow) + shallow
        sr: Tensor = self.add_mean(self.tail(deep))
        return sr / RGB_RANGE

    def distillation_points(self, count: int = 4) -> list[str]:
        """Names of the `count` evenly spaced groups whose outputs are distilled.

        Raises:
            ValueError: The network has fewer than `count` groups.
        """
        groups = self.config.groups
        if not 1 <= count <= groups:
            raise ValueError(f"distillation_points: count must be 1..{groups}, got {count}")
        return [f"body.{math.ceil(i * groups / count) - 1}" for i in range(1, count + 1)]


def infer_rcan(weights: Mapping[str, Tensor]) -> tuple[RCANConfig, int] | None:
    """Size and scale of the RCAN that `weights` seem to be of, from their names and shapes.

    Returns:
        The configuration and the scale; none if the weights are of another architecture. That they
        are complete is not checked.

    Example:
        >>> config = RCANConfig(groups=4, blocks=1, features=16)
        >>> infer_rcan(RCAN(config, scale=8).state_dict()) == (config, 8)
        True
    """
    names = "\n".join(weights)
    blocks = set(re.findall(r"^body\.(\d+)\.body\.(\d+)\.body\.0\.weight$", names, re.M))
    stages = re.findall(r"^tail\.0\.\d\.weight$", names, re.M)
    conv = weights.get("body.0.body.0.body.0.weight")
    squeeze = weights.get("body.0.body.0.body.3.conv_du.0.weight")
    if conv is None or squeeze is None or not stages:
        return None
    features = len(conv) if conv.ndim else 0
    if conv.shape != (features, features, 3, 3) or squeeze.ndim != 4:
        return None
    if not 1 <= len(squeeze) <= features:
        return None
    config = RCANConfig(
        groups=len({group for group, _ in blocks}),
        blocks=len({block for _, block in blocks}),
        features=features,
        reduction=features // len(squeeze),
    )
    scale = 3 if weights[stages[0]].numel() == 81 * features**2 else 2 ** len(stages)
    return config, scale


def official_rcan_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the names of the official code, if they have those of BasicSR's RCAN.

    BasicSR keeps the colour mean in its options; it is set to that of DIV2K, its default. Other
    weights are given back as they are.
    """
    groups = {name.split(".")[1] for name in weights if ".residual_group." in name}
    if "conv_first.weight" not in weights or not groups:
        return weights
    blocks = {name.split(".")[3] for name in weights if ".residual_group." in name}
    renamed = {}
    for name, tensor in weights.items():
        for pattern, official in (
            (r"conv_first\.", "head.0."),
            (r"conv_after_body\.", f"body.{len(groups)}."),
            (r"conv_last\.", "tail.1."),
            (r"upsample\.", "tail.0."),
            (r"(body\.\d+)\.conv\.", rf"\1.body.{len(blocks)}."),
            (r"(body\.\d+)\.residual_group\.(\d+)\.rcab\.", r"\1.body.\2.body."),
            (r"(.*\.body\.3)\.attention\.1\.", r"\1.conv_du.0."),
            (r"(.*\.body\.3)\.attention\.3\.", r"\1.conv_du.2."),
        ):
            name = re.sub(f"^{pattern}", official, name)
        renamed[name] = tensor
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        shift = MeanShift(DIV2K_MEAN, sign)
        renamed |= {f"{name}.weight": shift.weight, f"{name}.bias": shift.bias}
    return renamed


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size of the map."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def upsampler(features: int, scale: int) -> nn.Sequential:
    """Sub-pixel convolutions that enlarge a map of `features` channels `scale` times.

    Raises:
        ValueError: `scale` is not 2, 3, 4 or 8.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, got {scale}")
    factor = 3 if scale == 3 else 2
    stages: list[nn.Module] = []
    for _ in range(round(math.log(scale, factor))):
        stages += [conv3x3(features, factor**2 * features), nn.PixelShuffle(factor)]
    return nn.Sequential(*stages)
