"""Enlarging a picture in parts, so that a bound of memory is kept."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mkdext._system.memory import LiveBytes
from mkdext.ops.conv2d import stock_convolutions

GLOBAL_OVERLAP = 32
"""Margin, in low-resolution pixels, for networks that look at the whole picture."""

Upscaler = Callable[[Tensor], Tensor]
"""Maps `[1, C, h, w]` to `[1, C, scale*h, scale*w]`."""

_STRIP = (8, 321)  # of the probe: long enough for every local network here, and cheap
_ROUNDING = 1e-3
_SMALLEST_TILE = 16
_WORKSPACE = 1.6  # what a forward pass takes is its tensors and oneDNN's copies of them


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a picture is cut: each tile is computed with a margin and put down without it."""

    height: int
    """Rows of a tile, in low-resolution pixels."""
    width: int
    """Columns of a tile."""
    overlap: int
    """Margin at each side."""

    def rows(self, height: int) -> list[slice]:
        """Rows of the tiles of a picture of `height` low-resolution pixels, from the top."""
        return _parts(height, self.height)

    def columns(self, width: int) -> list[slice]:
        """Columns of the tiles of a picture of `width` low-resolution pixels, from the left."""
        return _parts(width, self.width)

    def count(self, height: int, width: int) -> int:
        """Number of tiles of a picture."""
        return len(self.rows(height)) * len(self.columns(width))


@dataclasses.dataclass(frozen=True)
class Costs:
    """Bytes that a forward pass takes: a linear function of the pixels of its input."""

    fixed: float
    """Bytes for any input."""
    per_pixel: float
    """Bytes for each low-resolution pixel."""

    def of(self, height: int, width: int) -> float:
        """Bytes for an input of this size."""
        return self.fixed + self.per_pixel * height * width


def forward_costs(model: nn.Module) -> Costs:
    """What a forward pass of `model` takes, found by two passes, if possible without numbers.

    Of a network that runs at no usual size nothing is known: it is taken to need nothing.
    """
    # Whatever a user's network may raise.
    with contextlib.suppress(Exception, SystemExit):
        return _forward_costs(copy.deepcopy(model).to("meta"), torch.device("meta"))
    with contextlib.suppress(Exception, SystemExit):
        return _forward_costs(model, _device_of(model))
    return Costs(0.0, 0.0)


def _forward_costs(model: nn.Module, device: torch.device) -> Costs:
    sides = (32, 96)
    peaks = []
    for side in sides:
        low = torch.zeros(1, 3, side, side, device=device)
        with torch.inference_mode(), LiveBytes() as memory:
            model(low)
        peaks.append(_WORKSPACE * memory.peak)
    per_pixel = (peaks[1] - peaks[0]) / (sides[1] ** 2 - sides[0] ** 2)
    return Costs(max(0.0, peaks[0] - per_pixel * sides[0] ** 2), per_pixel)


@torch.inference_mode()
def reach(model: nn.Module) -> int | None:
    """How far from an input pixel the output of a network changes with it.

    It is found by changing a column of a random strip, with every ReLU let through.

    Args:
        model: Maps `[1, 3, h, w]` to an image.

    Returns:
        The distance in low-resolution pixels; none if it is the whole picture, because of global
        pooling or attention, or more than 160 pixels, or if a pixel's place counts, because of
        strides or windows.

    Example:
        >>> from mkdext.models import create_model
        >>> reach(create_model("edsr-s", scale=4)), reach(create_model("rcan-a", scale=4))
        (12, None)
    """
    if any(isinstance(module, nn.AdaptiveAvgPool2d) for module in model.modules()):
        return None
    height, width = _STRIP
    low = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    changed = low.clone()
    changed[..., width // 2] = 1 - changed[..., width // 2]
    try:
        model = _with_open_gates(model)
        # Winograd's tiles carry the rounding of a change further than the change.
        with stock_convolutions():
            before, after, moved = (
                model(image.to(_device_of(model))) for image in (low, changed, low[..., 1:])
            )
        return _distance(before, after, moved, width)
    except (Exception, SystemExit):  # Whatever a user's network may raise at so few rows.
        return None


def _distance(before: Tensor, after: Tensor, moved: Tensor, width: int) -> int | None:
    """How far a change in the middle column of an image reaches; none: as `reach`."""
    scale = before.shape[-1] // width
    columns = (before != after).flatten(0, 2).any(dim=0).nonzero()
    if not len(columns):
        return 0
    first, last = int(columns.min()) // scale, int(columns.max()) // scale
    distance = max(width // 2 - first, last - width // 2)
    if distance >= width // 2:
        return None
    change = (moved - before[..., scale:])[..., (distance + 2) * scale :].abs().max()
    return distance if change <= _ROUNDING * before.abs().max() else None


def plan_tiles(
    size: tuple[int, int], costs: Costs, overlap: int, scale: int, sr_bytes: int, available: float
) -> Tiling:
    """The fewest tiles with which a picture can be enlarged in the memory there is.

    Args:
        size: Height and width of the picture in low-resolution pixels.
        costs: Of the network.
        overlap: Margin of a tile at each side, in low-resolution pixels.
        scale: Enlargement factor.
        sr_bytes: Bytes of a finished pixel; a row of tiles is kept.
        available: Bytes that may be used.

    Raises:
        ValueError: Even the smallest tiles need more.
    """
    height, width = size
    # From the whole picture on, one more part of the longer side at a time.
    for parts in range(1, math.ceil(max(size) / _SMALLEST_TILE) + 1):
        side = math.ceil(max(size) / parts)
        tiling = Tiling(min(side, height), min(side, width), overlap)
        needed = costs.of(min(side + 2 * overlap, height), min(side + 2 * overlap, width))
        needed += tiling.height * width * scale**2 * sr_bytes
        if needed <= available:
            return tiling
    raise ValueError(
        f"tiles of {side} pixels with a margin of {overlap} need {needed / 2**20:.0f} MiB beside "
        f"what is in use, got {max(available, 0) / 2**20:.0f} MiB"
    )


def enlarge_in_tiles(upscale: Upscaler, image: Tensor, tiling: Tiling, scale: int) -> Tensor:
    """Enlarge an image tile by tile.

    Args:
        upscale: Maps `[1, C, h, w]` to `[1, C, scale*h, scale*w]`.
        image: `[C, H, W]`.
        tiling: How it is cut.
        scale: Enlargement factor.

    Returns:
        `[C, scale*H, scale*W]`, float32.

    Example:
        >>> nearest = lambda image: nn.functional.interpolate(image, scale_factor=3)
        >>> image = torch.rand(3, 20, 24)
        >>> tiled = enlarge_in_tiles(nearest, image, Tiling(7, 9, overlap=0), scale=3)
        >>> torch.equal(tiled, nearest(image[None])[0])
        True
    """
    channels, height, width = image.shape
    enlarged = torch.empty(channels, height * scale, width * scale)
    for rows in tiling.rows(height):
        for columns in tiling.columns(width):
            part = enlarge_tile(upscale, image, rows, columns, scale, tiling.overlap)
            enlarged[
                :,
                rows.start * scale : rows.stop * scale,
                columns.start * scale : columns.stop * scale,
            ] = part
    return enlarged


@torch.inference_mode()
def enlarge_tile(
    upscale: Upscaler, image: Tensor, rows: slice, columns: slice, scale: int, overlap: int
) -> Tensor:
    """Enlarge a part of an image, computed with a margin that is then cut off.

    Args:
        upscale: Maps `[1, C, h, w]` to `[1, C, scale*h, scale*w]`.
        image: `[C, H, W]`.
        rows: Which of its rows.
        columns: Which of its columns.
        scale: Enlargement factor.
        overlap: Margin at each side, in low-resolution pixels, where the image goes on.

    Returns:
        `[C, scale*h, scale*w]`.

    Example:
        >>> bicubic = lambda image: nn.functional.interpolate(image, scale_factor=2, mode="bicubic")
        >>> image = torch.rand(1, 20, 24)
        >>> part = enlarge_tile(bicubic, image, slice(8, 16), slice(0, 12), scale=2, overlap=3)
        >>> torch.allclose(part, bicubic(image[None])[0, :, 16:32, :24])
        True
    """
    height, width = image.shape[1:]
    top, left = max(rows.start - overlap, 0), max(columns.start - overlap, 0)
    bottom, right = min(rows.stop + overlap, height), min(columns.stop + overlap, width)
    enlarged = upscale(image[None, :, top:bottom, left:right])[0]
    return enlarged[
        :,
        (rows.start - top) * scale : (rows.stop - top) * scale,
        (columns.start - left) * scale : (columns.stop - left) * scale,
    ]


def _with_open_gates(model: nn.Module) -> nn.Module:
    """A copy in which a change passes every ReLU, also those that are shut for one picture."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.5))
    return model


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _parts(length: int, part: int) -> list[slice]:
    return [slice(first, min(first + part, length)) for first in range(0, length, part)]
