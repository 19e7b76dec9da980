"""What every degradation is asked for."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.uint8]

_MEASURING = 0x6D6B64  # key of the random numbers by which photographs to measure on are degraded


class Degradation(ABC):
    """Makes the low-resolution version of a photograph."""

    name: str
    """By which users know it."""
    is_random = False
    """Whether it draws anything at random."""
    margin: int
    """How many low-resolution pixels around a part are made too, so that the part is as it would be
    in the whole photograph, or nearly so where it is drawn at random."""

    @abstractmethod
    def low(self, high: Levels, scale: int, random: np.random.Generator) -> Levels:
        """The low-resolution version of a photograph.

        Args:
            high: uint8 `[3, scale*h, scale*w]`.
            scale: Downscaling factor.
            random: What is drawn from.

        Returns:
            uint8 `[3, h, w]`.
        """

    @property
    def label(self) -> str:
        """How it is called where a network was measured with it."""
        return f"{self.name}, fixed seed" if self.is_random else self.name

    @property
    def identity(self) -> str:
        """What tells it from every other."""
        return self.name

    def part(
        self,
        high: Levels,
        scale: int,
        corner: tuple[int, int],
        size: int,
        random: np.random.Generator,
    ) -> Levels:
        """A square of the low-resolution version, made of the pixels that it depends on alone.

        Args:
            high: uint8 `[3, scale*h, scale*w]`, all of the photograph.
            scale: Downscaling factor.
            corner: First row and column of the square.
            size: Its width and height in low-resolution pixels.
            random: What is drawn from.

        Returns:
            uint8 `[3, size, size]`.
        """
        # At random, so that the blocks of a JPEG do not always begin where the square does.
        shifts = random.integers(8, size=2) if self.is_random else (0, 0)
        first = [max(c - self.margin - int(s), 0) for c, s in zip(corner, shifts, strict=True)]
        rows, columns = (
            slice(f * scale, (c + size + self.margin) * scale)
            for f, c in zip(first, corner, strict=True)
        )
        low = self.low(high[:, rows, columns], scale, random)
        top, left = (c - f for c, f in zip(corner, first, strict=True))
        return low[:, top : top + size, left : left + size]


def drawn_by(key: int) -> np.random.Generator:
    """Random numbers for one sample of a training."""
    return np.random.Generator(np.random.Philox(key=key))


def drawn_for(name: str) -> np.random.Generator:
    """Random numbers for a photograph to measure on: always the same, whatever is beside it.

    Example:
        >>> bool(drawn_for("a.png").random() == drawn_for("a.png").random())
        True
    """
    key = [_MEASURING, zlib.crc32(name.encode())]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
