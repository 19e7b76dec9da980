"""What a user's network takes and gives, as far as it differs from the networks here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mkdext.models.weights.rgb_range import DIV2K_MEAN

ColoursName = Literal[1, 255, "-1..1", "1-bgr", "255-bgr", "1-mean", "255-mean", "1-to-255"]
"""Names of `COLOURS`."""


@dataclasses.dataclass(frozen=True)
class Colours:
    """Which numbers stand for colours."""

    white: float = 1.0
    """White, where nothing is subtracted."""
    less: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Red, green and blue that are subtracted before, as shares of white."""
    is_bgr: bool = False
    """Whether blue comes first."""
    white_given: float | None = None
    """White in its results, if that is another."""

    def to_network(self, image: Tensor) -> Tensor:
        """Colours in [0, 1] as the network takes them."""
        if any(self.less):
            image = image - self._less(image)
        if self.white != 1:
            image = image * self.white
        return image.flip(1) if self.is_bgr else image

    def from_network(self, image: Tensor) -> Tensor:
        """What the network gives, in [0, 1]."""
        if self.is_bgr:
            image = image.flip(1)
        white = self.white_given or self.white
        if white != 1:
            image = image / white
        return image + self._less(image) if any(self.less) else image

    def _less(self, image: Tensor) -> Tensor:
        less = torch.tensor(self.less, dtype=image.dtype, device=image.device)
        return less[: image.shape[1], None, None]


COLOURS: Mapping[ColoursName, Colours] = {
    1: Colours(),
    255: Colours(255.0),
    "-1..1": Colours(2.0, less=(0.5, 0.5, 0.5)),
    "1-bgr": Colours(is_bgr=True),
    "255-bgr": Colours(255.0, is_bgr=True),
    "1-mean": Colours(less=DIV2K_MEAN),
    "255-mean": Colours(255.0, less=DIV2K_MEAN),
    "1-to-255": Colours(white_given=255.0),
}
"""What networks are trained for, the usual first."""

IN_WORDS: Mapping[ColoursName, str] = {
    1: "colours from 0 to 1",
    255: "colours from 0 to 255",
    "-1..1": "colours from -1 to 1",
    "1-bgr": "colours from 0 to 1 in the order blue, green, red",
    "255-bgr": "colours from 0 to 255 in the order blue, green, red",
    "1-mean": "colours from 0 to 1 less the mean of DIV2K",
    "255-mean": "colours from 0 to 255 less the mean of DIV2K",
    "1-to-255": "colours from 0 to 1, and gives them from 0 to 255",
}
assert COLOURS.keys() == IN_WORDS.keys() == set(get_args(ColoursName))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Which heights and widths a network takes; others are padded, and its result is cut."""

    multiple_of: int = 1
    minimum: int = 1
    is_square: bool = False

    def fitting(self, height: Any, width: Any) -> tuple[Any, Any]:
        """The smallest height and width that the network takes and that hold these."""
        # Without a branch on numbers: exporters follow what is computed.
        sides = [side + self._missing(side) for side in (height, width)]
        if self.is_square:
            sides = [max(sides)] * 2
        return sides[0], sides[1]

    def _missing(self, side: Any) -> Any:
        lacking = -side % self.multiple_of
        if self.minimum == 1:
            return lacking
        least = -(-self.minimum // self.multiple_of) * self.multiple_of
        return max(least - side, lacking)

    def padded(self, image: Tensor) -> Tensor:
        """The image `[B, C, h, w]` with mirrored pixels below and at the right."""
        if self == Sizes():
            return image
        height, width = image.shape[2:]
        rows, columns = self.fitting(height, width)
        for dim, (side, wanted) in ((2, (height, rows)), (3, (width, columns))):
            image = _mirrored(image, dim, side, wanted)
        return image


def _mirrored(image: Tensor, dim: int, side: Any, wanted: Any) -> Tensor:
    """The image with `wanted` rows or columns, the last of which mirror those before them."""
    index = torch.arange(wanted, device=image.device)
    period = 2 * side - 2 if side > 1 else 1
    index = index % period
    return image.index_select(dim, torch.minimum(index, period - index) if side > 1 else index * 0)


Call = Callable[[nn.Module, Tensor], Any]
"""How a network is called with images."""


@dataclasses.dataclass(frozen=True)
class Interface:
    """What a network takes and gives."""

    channels: int = 3
    """1: Y, 3: colours."""
    enlarged: bool = False
    """Whether it sharpens images that were enlarged before."""
    colours: Colours = Colours()
    sizes: Sizes = Sizes()
    first_of_several: bool = False
    """Whether its picture is the first of several results."""
    one_by_one: bool = False
    """Whether it fails on several images at once."""
    call: Call | None = None
    """How it is called, if by more than its image."""

    def run(self, network: nn.Module, image: Tensor, scale: int) -> Tensor:
        """What a network makes of images, all as it is usual here.

        Args:
            network: The network.
            image: `[B, channels, h, w]` in [0, 1], which stays as it is.
            scale: Enlargement factor.
        """
        if self.one_by_one and len(image) > 1:
            return torch.cat([self.run(network, each, scale) for each in torch.split(image, 1)])
        height, width = image.shape[2:]
        given = self.sizes.padded(self.colours.to_network(image))
        # Code of others may work in place on what it is given, and know no other layout.
        given = given.clone(memory_format=torch.contiguous_format)
        made = self.call(network, given) if self.call else network(given)
        picture: Tensor = picture_in(made, self.channels) if self.first_of_several else made
        if self.sizes != Sizes():
            factor = 1 if self.enlarged else scale
            picture = picture[..., : height * factor, : width * factor]
        return self.colours.from_network(picture)


def picture_in(result: Any, channels: int) -> Any:
    """The first picture in what a network gives, or that as it is where there is none.

    Example:
        >>> picture_in([torch.rand(2, 7), torch.rand(1, 3, 4, 4)], channels=3).shape
        torch.Size([1, 3, 4, 4])
    """
    if isinstance(result, Mapping):
        result = tuple(result.values())
    if isinstance(result, tuple | list):
        for inner in result:
            if isinstance(inner, Tensor) and inner.ndim == 4 and inner.shape[1] == channels:
                return inner
    return result
