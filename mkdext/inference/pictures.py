"""Pictures with all that belongs to them: grey or colour, alpha, 16 bits, profile, EXIF."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mkdext.data import Levels, decode, profile_fits, read_header

_SPREAD = 32  # pixels, more than what a network's output mostly depends on
_GREY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture, upright."""

    levels: Levels
    """uint8 or uint16 `[H, W, channels]`: grey, grey and alpha, RGB or RGBA."""
    icc_profile: bytes | None
    """Meaning of the colours."""
    exif: bytes | None
    """The camera's notes, without orientation."""
    chunks: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """What else a PNG file says of the colours and the resolution, by the names of its chunks."""

    @property
    def bits(self) -> int:
        """8 or 16, of one channel of one pixel."""
        return self.levels.itemsize * 8

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is opacity."""
        return self.levels.shape[2] in (2, 4)

    @property
    def white(self) -> int:
        """The highest level."""
        return int(2**self.bits - 1)

    def colours(self) -> Tensor:
        """What a network takes: `[3, H, W]` in [0, 1], grey three times.

        Pixels that cannot be seen take their colour from those around them that can, so that what a
        file hides under full transparency does not come to light at the edges.
        """
        levels = self.levels[..., :-1] if self.has_alpha else self.levels
        planes = torch.from_numpy(levels.astype(np.float32) / self.white).permute(2, 0, 1)
        if self.has_alpha:
            planes = _spread(planes, torch.from_numpy(self.levels[..., -1] > 0))
        return planes.expand(3, -1, -1)

    def alpha(self) -> Tensor | None:
        """Opacity `[1, H, W]` in [0, 1]; none if there is no such channel."""
        if not self.has_alpha:
            return None
        return torch.from_numpy(self.levels[None, ..., -1].astype(np.float32) / self.white)

    def like(self, colours: Tensor, alpha: Tensor | None) -> Levels:
        """Levels of the same kind as this picture's.

        Args:
            colours: `[3, h, w]` in [0, 1], clipped.
            alpha: `[1, h, w]` in [0, 1], clipped; none if this picture has none.

        Returns:
            `[h, w, channels]`.
        """
        if self.levels.shape[2] <= 2:
            weights = torch.tensor(_GREY_WEIGHTS).view(3, 1, 1)
            colours = (colours * weights).sum(dim=0, keepdim=True)
        planes = colours if alpha is None else torch.cat((colours, alpha))
        levels = (planes * self.white).round_().clamp_(0, self.white)
        return levels.permute(1, 2, 0).numpy().astype(self.levels.dtype)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as stored, without decoding.

    Raises:
        BadImageError: The file is no picture that can be enlarged.
    """
    return read_header(path)[1:]


def read_picture(path: Path) -> Picture:
    """Decode a picture, by the same reader as photographs to train on.

    A palette becomes RGB, CMYK becomes RGB by its profile if that fits, a camera's orientation is
    applied. A profile that is damaged or not of the picture's colours is left out.

    Raises:
        BadImageError: The file is missing, unreadable, no picture, damaged, of several pages or
            frames, has signed, 32-bit or floating-point pixels, or more than twice
            `PIL.Image.MAX_IMAGE_PIXELS` of them (179 million).
    """
    decoded = decode(path, 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf)
    profile = decoded.icc_profile
    if profile is not None and not profile_fits(profile, decoded.levels.shape[2] <= 2):
        profile = None
    return Picture(decoded.levels, profile, decoded.exif, decoded.chunks)


def _spread(planes: Tensor, visible: Tensor) -> Tensor:
    """Planes `[C, H, W]` whose visible pixels `[H, W]` have grown over the others near them."""
    known = visible[None].float()
    planes = planes * known
    for _ in range(_SPREAD):
        if known.all() or not known.any():
            break
        total = functional.avg_pool2d(torch.cat((planes, known)), 3, stride=1, padding=1)
        mean = total[:-1] / total[-1:].clamp(min=1e-6)
        planes, known = torch.where(known > 0, planes, mean), (total[-1:] > 0).float()
    return planes
