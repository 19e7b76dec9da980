"""Parts of the networks as their papers' equations have them, on weights by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]


def conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A convolution that keeps the size."""
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def sub_pixel(weights: Weights, name: str, x: Tensor, scale: int) -> Tensor:
    """Convolutions, each followed by a rearrangement of channels to pixels."""
    factor = 3 if scale == 3 else 2
    for stage in range({2: 1, 3: 1, 4: 2, 8: 3}[scale]):
        x = conv(weights, f"{name}.{2 * stage}", x)
        n, c, h, w = x.shape
        x = x.view(n, c // factor**2, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3)
        x = x.reshape(n, c // factor**2, factor * h, factor * w)
    return x


def frame(weights: Weights, scale: int, lr: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
    """EDSR's head, skip and tail around a body."""
    mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=lr.dtype).view(1, 3, 1, 1)
    shallow = conv(weights, "head.0", 255 * (lr - mean))
    large = sub_pixel(weights, "tail.0", body(shallow) + shallow, scale)
    return conv(weights, "tail.1", large) / 255 + mean


def channel_weights(weights: Weights, name: str, z: Tensor) -> Tensor:
    """RCAN eq. 8: two layers on one number a channel, `[B, C, 1, 1]`."""
    return torch.sigmoid(conv(weights, f"{name}.2", conv(weights, f"{name}.0", z).clamp(min=0)))


def with_random_weights(model: nn.Module, spread: float = 0.2) -> nn.Module:
    """The network in float64, no number left at zero, whatever its initialisation does."""
    torch.manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=spread)
        for name, shift in model.named_buffers():
            if name.endswith("_mean.bias"):  # It was stored in float32.
                mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=shift.dtype)
                shift.copy_(shift.sign() * 255 * mean)
    return model
