"""Pictures of one scene side by side, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mkdext._system.files import atomic_write

STRIP_SIDE = 160
"""Width and height of each picture of a strip, in high-resolution pixels."""


def save_strip(path: Path, pictures: Mapping[str, Tensor]) -> None:
    """Write the centres of several pictures of one scene side by side, as a PNG.

    Args:
        path: File to write.
        pictures: uint8 `[3, H, W]` by name, in the order from left to right; smaller ones, such as
            the low-resolution image, are enlarged without interpolation to the size of the largest.
    """
    height, width = max(tuple(p.shape[1:]) for p in pictures.values())
    side = min(STRIP_SIDE, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    columns = [
        functional.interpolate(p[None], size=(height, width), mode="nearest-exact")[0]
        for p in pictures.values()
    ]
    strip = torch.cat([c[:, top : top + side, left : left + side] for c in columns], dim=2)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        Image.fromarray(strip.permute(1, 2, 0).numpy()).save(file, "png")


def save_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Write batches of pictures as the rows of a PNG.

    Args:
        path: File to write.
        rows: uint8 `[B, 3, h, w]`; smaller ones are enlarged without interpolation.
    """
    size = tuple(max(row.shape[axis] for row in rows) for axis in (2, 3))
    large = [functional.interpolate(row, size=size, mode="nearest-exact") for row in rows]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in large], dim=1)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        Image.fromarray(sheet.permute(1, 2, 0).cpu().numpy()).save(file, "png")
