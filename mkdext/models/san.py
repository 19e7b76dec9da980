"""SAN: second-order attention network (Dai et al., CVPR 2019).

Parameter names are those of the official code, so that official checkpoints load, also those that
its forward pass never uses.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext.models.blocks import MeanShiftedNetwork, channel_weights, check_sizes, conv3x3
from mkdext.models.channels import Channels, of_pair
from mkdext.models.registry import register
from mkdext.models.weights.shapes import count_numbers, is_conv, out_channels, upsampler_scale

_ITERATIONS = 5
_LARGEST_SIDE = 1000
_SMALLEST_TRACE = 1e-8
_UNUSED_REDUCTION = 8


@dataclasses.dataclass(frozen=True)
class SANConfig:
    """Size of a SAN."""

    groups: int
    """Number of residual attention groups in the body."""
    blocks: int
    """Number of residual blocks in a group."""
    features: int
    """Channels of every feature map of the body."""
    reduction: int = 16
    """Channels of a group divided by those of its attention bottleneck."""
    non_local_reduction: int = 8
    """Channels of a group divided by those that are compared in the non-local blocks."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)
        if self.features < _UNUSED_REDUCTION:
            raise ValueError(
                f"SANConfig: features must be at least {_UNUSED_REDUCTION}, got {self.features}"
            )


def covariance(x: Tensor) -> Tensor:
    """Covariance of the channels over all pixels: `[B, C, H, W]` -> `[B, C, C]`.

    Example:
        >>> covariance(torch.rand(2, 4, 5, 6)).shape
        torch.Size([2, 4, 4])
    """
    flat = x.flatten(2)
    centred = flat - flat.mean(dim=2, keepdim=True)
    return centred @ centred.transpose(1, 2) / flat.shape[2]


def matrix_square_root(matrices: Tensor) -> Tensor:
    """Square roots by five Newton-Schulz steps (Li et al., CVPR 2018), differentiable any often.

    As the steps are few, the roots of eigenvalues far below the trace come out too small, which is
    what official checkpoints were trained with. The root of a matrix of zeros is zero.

    Args:
        matrices: Symmetric and positive semi-definite, `[B, C, C]`.

    Returns:
        The roots, `[B, C, C]`.

    Example:
        >>> matrix_square_root(torch.diag(torch.tensor([4.0, 4.0]))[None]).round(decimals=3)
        tensor([[[2., 0.],
                 [0., 2.]]])
    """
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(dim=-1).clamp(min=_SMALLEST_TRACE)
    trace = trace[..., None, None]
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    root, inverse = matrices / trace, identity
    for _ in range(_ITERATIONS):
        correction = (3 * identity - inverse @ root) / 2
        root, inverse = root @ correction, correction @ inverse
    return root * trace.sqrt()


class SOCA(nn.Module):
    """Second-order channel attention: channels are scaled by what their covariances tell."""

    def __init__(self, features: int, reduction: int) -> None:
        """Make the attention of `features` channels."""
        super().__init__()
        self.conv_du = channel_weights(features, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`, `[B, C, H, W]`, by its inner 1000x1000 pixels."""
        root = matrix_square_root(covariance(_centre(x)))
        scale: Tensor = self.conv_du(root.mean(dim=1)[..., None, None])
        return x * scale


def _centre(x: Tensor) -> Tensor:
    for dim in (2, 3):
        size = min(x.shape[dim], _LARGEST_SIDE)
        x = x.narrow(dim, (x.shape[dim] - size) // 2, size)
    return x


class NonLocal(nn.Module):
    """Non-local block: adds to each pixel a mean of all, weighted by likeness."""

    def __init__(self, features: int, compared: int) -> None:
        """Make the block, which does nothing until `W` is trained."""
        super().__init__()
        self.g = nn.Conv2d(features, compared, 1)
        self.theta = nn.Conv2d(features, compared, 1)
        self.phi = nn.Conv2d(features, compared, 1)
        self.W = nn.Conv2d(compared, features, 1)
        nn.init.zeros_(self.W.weight)
        assert self.W.bias is not None
        nn.init.zeros_(self.W.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        query, key, value = (
            layer(x).flatten(2).transpose(1, 2) for layer in (self.theta, self.phi, self.g)
        )
        mixed = attention(query, key, value).transpose(1, 2)
        weighted: Tensor = self.W(mixed.reshape(*mixed.shape[:2], *x.shape[2:]))
        return weighted + x


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """For each query the mean of the values, weighted by the softmax of its products with the keys.

    While no gradient is recorded, a fused kernel is used that never holds the `[N, N]` weights.

    Args:
        query: `[B, N, C]`.
        key: `[B, N, C]`.
        value: `[B, N, C]`.

    Returns:
        `[B, N, C]`, differentiable any number of times.
    """
    if torch.is_grad_enabled():
        # The fused kernel cannot be differentiated twice.
        return (query @ key.transpose(1, 2)).softmax(dim=-1) @ value
    # It takes heads as second dimension, and channels next to each other in memory.
    query, key, value = (t.contiguous().unsqueeze(1) for t in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)


class RegionNonLocal(nn.Module):
    """The same non-local block on each quarter of a map."""

    def __init__(self, config: SANConfig) -> None:
        """Make the block."""
        super().__init__()
        # Official checkpoints hold an attention that no forward pass uses.
        self.soca = SOCA(config.features, _UNUSED_REDUCTION)
        self.non_local = NonLocal(config.features, config.features // config.non_local_reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        rows = []
        for half in x.tensor_split((x.shape[2] // 2,), dim=2):
            quarters: tuple[Tensor, ...] = half.tensor_split((x.shape[3] // 2,), dim=3)
            # A map of one row or column has empty quarters.
            rows.append(torch.cat([self.non_local(q) if q.numel() else q for q in quarters], 3))
        return torch.cat(rows, dim=2)


class _FullQuarters(nn.Module):
    """The same on maps of at least two rows and columns, without a condition on their size."""

    def __init__(self, non_local: NonLocal) -> None:
        super().__init__()
        self.non_local = non_local

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        halves = [
            torch.cat((self.non_local(half[..., :width]), self.non_local(half[..., width:])), dim=3)
            for half in (x[:, :, :height], x[:, :, height:])
        ]
        return torch.cat(halves, dim=2)


class ResBlock(nn.Module):
    """Residual block: convolution, ReLU, convolution, plus input."""

    def __init__(self, features: int) -> None:
        """Make the block."""
        super().__init__()
        self.conv_first = nn.Sequential(
            conv3x3(features, features), nn.ReLU(inplace=True), conv3x3(features, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        residual: Tensor = self.conv_first(x)
        return residual + x


class LSRAG(nn.Module):
    """Local-source residual attention group: blocks, second-order attention, plus input."""

    def __init__(self, config: SANConfig) -> None:
        """Make the group."""
        super().__init__()
        self.rcab = nn.ModuleList(ResBlock(config.features) for _ in range(config.blocks))
        self.soca = SOCA(config.features, config.reduction)
        self.conv_last = conv3x3(config.features, config.features)
        # Official checkpoints hold a factor that no forward pass uses.
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        residual = x
        for block in self.rcab:
            residual = block(residual)
        attended: Tensor = self.conv_last(self.soca(residual))
        return attended + x


@register(
    {
        # MKD Table 5.
        "san-t": SANConfig(groups=20, blocks=10, features=64),
        "san-s": SANConfig(groups=4, blocks=1, features=16, reduction=4),
    }
)
class SAN(MeanShiftedNetwork):
    """Second-order attention network: `[B, 3, h, w]` -> `[B, 3, scale*h, scale*w]`, in [0, 1].

    Every pixel of a quarter of the image is compared with every other: time grows with the square
    of the number of pixels, and memory too while gradients are recorded.

    Example:
        >>> model = SAN(SANConfig(groups=4, blocks=1, features=16, reduction=4), scale=4)
        >>> model(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 48, 40])
    """

    config: SANConfig
    part_count = "groups"
    rows: ClassVar[Mapping[str, str]] = {"RG": "groups", "RG.*.rcab": "blocks"}

    def add_body(self) -> None:
        """Make the groups and the non-local block."""
        self.gamma = nn.Parameter(torch.zeros(1))
        self.RG = nn.ModuleList(LSRAG(self.config) for _ in range(self.config.groups))
        # Official checkpoints hold a convolution that no forward pass uses.
        self.conv_last = conv3x3(self.config.features, self.config.features)
        self.non_local = RegionNonLocal(self.config)

    def deep_features(self, shallow: Tensor) -> Tensor:
        """Run the groups between two passes of the non-local block."""
        source = self.non_local(shallow)
        x = source
        for group in self.RG:
            x = group(x) + self.gamma * source
        deep: Tensor = self.non_local(x)
        return deep

    def stages(self) -> list[str]:
        """Names of the groups."""
        return [f"RG.{group}" for group in range(self.config.groups)]

    def channels(self, layer: str) -> Channels:
        """As in the frame, those inside of the blocks, and those that are compared."""
        channels, config = super().channels(layer), self.config
        compared = config.features // config.non_local_reduction
        match layer.split("."):
            case ["non_local", "non_local", "theta" | "phi"]:
                return channels._replace(writes={"compared": compared})
            case ["non_local", "non_local", "g"]:
                return channels._replace(writes={"mixed": compared})
            case ["non_local", "non_local", "W"]:
                return channels._replace(reads={"mixed": compared})
            case ["non_local", "soca", *_]:
                return of_pair(layer, channels, config.features // _UNUSED_REDUCTION)
            case [*_, "conv_du", _]:
                return of_pair(layer, channels, config.features // config.reduction)
            case [*_, "conv_first", _]:
                return of_pair(layer, channels, config.features)
        return channels

    def for_export(self) -> nn.Module:
        """A copy that compares quarters which are never empty."""
        network = copy.deepcopy(self)
        network.non_local = _FullQuarters(network.non_local.non_local)  # type: ignore[assignment]
        return network

    @classmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[SANConfig, int] | None:
        """Size and scale of the SAN that `weights` seem to be of; none if they are of no SAN."""
        conv = weights.get("RG.0.rcab.0.conv_first.0.weight")
        features = out_channels(conv)
        squeezed = out_channels(weights.get("RG.0.soca.conv_du.0.weight"))
        compared = out_channels(weights.get("non_local.non_local.g.weight"))
        scale = upsampler_scale(weights, r"tail\.0\.\d\.weight", features)
        if scale is None or not is_conv(conv, features, features, 3):
            return None
        if not (1 <= min(squeezed, compared) <= max(squeezed, compared) <= features):
            return None
        if features < _UNUSED_REDUCTION:
            return None
        config = SANConfig(
            groups=count_numbers(weights, r"RG\.(\d+)\.conv_last\.weight"),
            blocks=count_numbers(weights, r"RG\.\d+\.rcab\.(\d+)\.conv_first\.0\.weight"),
            features=features,
            reduction=features // squeezed,
            non_local_reduction=features // compared,
        )
        return config, scale
