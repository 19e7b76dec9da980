"""Degradations by one kernel: MATLAB's bicubic, and those of Pillow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from mkdext.data.degradation.base import Degradation, Levels
from mkdext.data.imresize import imresize


class Bicubic(Degradation):
    """MATLAB's bicubic `imresize`, on 8-bit levels."""

    name = "bicubic"
    margin = 2

    def low(self, high: Levels, scale: int, random: np.random.Generator) -> Levels:
        """Reduce; nothing is drawn."""
        writable = high if high.flags.writeable else high.copy()
        low: Levels = imresize(torch.from_numpy(writable), 1 / scale).numpy()
        return low


class OfPillow(Degradation):
    """A kernel of Pillow, stretched by the scale, so that it averages over what it leaves out."""

    def __init__(self, name: str, kernel: Image.Resampling, margin: int) -> None:
        """Take the kernel, and how many low-resolution pixels it reaches to each side."""
        self.name = name
        self.kernel = kernel
        self.margin = margin

    def low(self, high: Levels, scale: int, random: np.random.Generator) -> Levels:
        """Reduce; nothing is drawn."""
        height, width = high.shape[1:]
        image = Image.fromarray(np.ascontiguousarray(high.transpose(1, 2, 0)))
        reduced = image.resize((width // scale, height // scale), self.kernel)
        return np.ascontiguousarray(np.asarray(reduced).transpose(2, 0, 1))


BICUBIC = Bicubic()
FIXED: Mapping[str, Degradation] = {
    each.name: each
    for each in (
        BICUBIC,
        OfPillow("bilinear", Image.Resampling.BILINEAR, 1),
        OfPillow("area", Image.Resampling.BOX, 1),
        OfPillow("lanczos", Image.Resampling.LANCZOS, 3),
    )
}
