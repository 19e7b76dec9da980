"""Photographs in another size than usual, of which only a network knows a larger version."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from mkdext.data.imresize import imresize
from mkdext.data.pairs import ImagePairs, Pair

Direction = Literal["in", "out"]


class Zoomed:
    """Low-resolution images in which the photographs are larger or smaller than usual.

    "out" reduces the low-resolution version by 2 once more. "in" takes the high-resolution version
    itself at scales 2 and 3, reduced by 2 at scale 4 and by 4 at scale 8: twice the usual size, at
    scale 3 three times.

    Example:
        >>> from mkdext.data import builtin_photographs
        >>> pairs = ImagePairs(builtin_photographs("validation"), scale=4)
        >>> [tuple(Zoomed(pairs, way).image(0).shape[1:]) for way in ("in", "out")]
        [(256, 256), (64, 64)]
    """

    def __init__(self, pairs: ImagePairs, direction: Direction) -> None:
        """Take the photographs and where to go."""
        self.pairs = pairs
        self.scale = pairs.scale
        self.direction = direction
        self._reduction = self.scale // 2 if direction == "in" else 2

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.pairs)

    def image(self, index: int) -> Tensor:
        """All of photograph `index`, uint8 `[3, h, w]`."""
        return self._of(self.pairs[index])

    def patch(
        self, index: int, size: int, place: tuple[float, float], key: int = 0
    ) -> tuple[Tensor]:
        """A square part of it.

        Args:
            index: Which photograph.
            size: Width and height.
            place: Row and column, 0 for the first possible one to just under 1 for the last.
            key: As for `ImagePairs`.

        Returns:
            uint8 `[3, size, size]`.

        Raises:
            BadImageError: The file cannot be read, or the stored photograph has changed.
            ValueError: The photograph is smaller than the patch.
        """
        needed = size * self._reduction
        if self.direction == "in":
            needed = math.ceil(needed / self.scale)
        return (self._of(self.pairs.patch(index, needed, place, key))[:, :size, :size],)

    def _of(self, pair: Pair) -> Tensor:
        low, high = pair
        return imresize(high if self.direction == "in" else low, 1 / self._reduction)
