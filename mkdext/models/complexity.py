"""Parameters and operations of a network."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mkdext.models.blocks import MeanShift
from mkdext.models.handling import count_parameters

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Complexity:
    """Size of a network and work that it does on one image."""

    parameters: int
    """Trained numbers, also of layers that never run."""
    paper_parameters: int
    """Numbers in the convolutions that run, and in the fixed colour shifts."""
    paper_flops: int
    """Operations as thop 0.0.31 counts them."""
    macs: int
    """Multiplications with addition in all convolutions and matrix products."""


def complexity(model: nn.Module, size: int = 512) -> Complexity:
    """Count parameters and operations, by a pass without numbers that takes no memory.

    Args:
        model: Maps `[1, 3, size, size]` to an image.
        size: Width and height of the input.

    Raises:
        ValueError: `size` is less than 1.

    Example:
        >>> from mkdext.models import create_model
        >>> complexity(create_model("edsr-s", scale=4)).paper_flops / 1e9
        19.579011072
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    model = copy.deepcopy(model).to("meta").eval()
    count = _PaperCount()
    for module in model.modules():
        if isinstance(module, (*_CONVOLUTIONS, nn.AdaptiveAvgPool2d)):
            module.register_forward_hook(count)
    image = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as products:
        model(image)
    shifts = [module for module in model.modules() if isinstance(module, MeanShift)]
    return Complexity(
        parameters=count_parameters(model),
        paper_parameters=sum(
            tensor.numel()
            for module in {*count.convolutions, *shifts}
            for tensor in module.state_dict().values()
        ),
        paper_flops=count.flops,
        macs=products.get_total_flops() // 2,
    )


class _PaperCount:
    """Forward hook that counts a layer as thop 0.0.31 does."""

    def __init__(self) -> None:
        self.flops = 0
        self.convolutions: set[nn.Module] = set()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.AdaptiveAvgPool2d):
            additions = args[0].shape[2:].numel() // output.shape[2:].numel()
            self.flops += output.numel() * (additions + 1)
            return
        self.convolutions.add(module)
        numbers = sum(p.numel() for p in module.parameters())
        self.flops += output.shape[2:].numel() * numbers
