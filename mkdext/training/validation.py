"""Measuring a network on photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypedDict

import torch
from torch import Tensor, nn

from mkdext.data import imresize
from mkdext.metrics import psnr_y, ssim_y, to_uint8

Upscaler = Callable[[Tensor], Tensor]
"""Maps `[1, 3, h, w]` in [0, 1] to `[1, 3, scale*h, scale*w]`."""


class Scores(TypedDict):
    """Means over the photographs of a set."""

    psnr_y: float
    """dB."""
    ssim_y: float
    """At most 1."""


def measure(upscale: Upscaler, pairs: Iterable[tuple[Tensor, Tensor]], scale: int) -> Scores:
    """PSNR and SSIM on Y of what `upscale` makes, rounded to 8-bit levels, border of `scale`.

    Args:
        upscale: A network or `bicubic`.
        pairs: `(lr, hr)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`.
        scale: Enlargement factor.
    """
    results = []
    for lr, hr in pairs:
        sr = picture(upscale, lr)
        results.append((psnr_y(sr, hr, scale), ssim_y(sr, hr, scale)))
    psnr, ssim = (sum(column) / len(results) for column in zip(*results, strict=True))
    return {"psnr_y": psnr, "ssim_y": ssim}


@torch.no_grad()
def picture(upscale: Upscaler, lr: Tensor) -> Tensor:
    """Enlarge one photograph.

    Args:
        upscale: A network or `bicubic`.
        lr: uint8 `[3, h, w]`.

    Returns:
        uint8 `[3, scale*h, scale*w]`.
    """
    device = next(upscale.parameters()).device if isinstance(upscale, nn.Module) else lr.device
    return to_uint8(upscale(lr.to(device)[None].float() / 255)[0]).cpu()


def bicubic(scale: int) -> Upscaler:
    """MATLAB's bicubic enlargement, the least a network must beat."""
    return lambda lr: imresize(lr, scale)
