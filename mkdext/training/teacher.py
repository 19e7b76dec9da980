"""The teacher at work: its feature maps, fit for comparison with the student's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mkdext._system.plugins import error_in_words
from mkdext.models import WHOLE, features_at, forward_with_features, resized
from mkdext.models.handling import copy_with_tensors
from mkdext.models.maps import map_in, size_inside


class Taught(NamedTuple):
    """What a teacher makes of a batch."""

    maps: list[Tensor]
    """Its feature maps at the distillation points, `[B, C, h, w]` of the student's sizes,
    float32, without gradient."""
    picture: Tensor | None
    """`[B, 3, scale*h, scale*w]`; none: it was not asked for."""


class Teacher:
    """A network that runs forward only, and no further than it is needed.

    It sees the low-resolution image; a subclass may see more.

    It runs without gradient. (Not in `torch.inference_mode`: that was not faster, and tensors that
    a network keeps for later, a mask or a grid of coordinates, would be of no use to a student of
    the same code.)
    """

    name: ClassVar[str] = "teacher"
    """What its scores are called."""

    def __init__(
        self,
        network: nn.Module,
        points: Sequence[str] = (),
        sizes: Sequence[tuple[int, int]] = (),
        dtype: torch.dtype = torch.float32,
        picture: tuple[int, int] | None = None,
    ) -> None:
        """Take a network in evaluation mode.

        Args:
            network: The network.
            points: Names of sub-modules that `check_points` accepts.
            sizes: Height and width of the student's map at each point.
            dtype: What to compute in, float32 or, by autocast, bfloat16.
            picture: Height and width of the enlarged picture, where that is imitated too.
        """
        self.network = network
        self.points = list(points)
        self.dtype = dtype
        self.gives_picture = picture is not None
        # The picture is the map of the whole network, after those of the points.
        self.taps = [*points, *[WHOLE] * self.gives_picture]
        self.sizes = [*sizes, *([picture] if picture else [])]
        self._maps: Callable[[Tensor], list[Tensor]] = lambda image: features_at(
            network, self.taps, image
        )

    def source(self, low: Tensor, high: Tensor) -> Tensor:
        """Which of the two images the network takes."""
        return low

    def __call__(self, low: Tensor, high: Tensor) -> Taught:
        """What the network makes of photographs.

        Args:
            low: `[B, 3, h, w]` in [0, 1].
            high: `[B, 3, scale*h, scale*w]` in [0, 1].
        """
        with torch.no_grad():
            return self.taught(self.own_maps(self.source(low, high)))

    @torch.no_grad()
    def enlarged(self, low: Tensor) -> Taught:
        """What the network makes of images of which there is no larger one, with the picture.

        Args:
            low: `[B, 3, h, w]` in [0, 1].
        """
        picture, maps = forward_with_features(self.network, self.points, low)
        return Taught(self._fitted(maps), picture)

    @torch.no_grad()
    def own_maps(self, image: Tensor) -> list[Tensor]:
        """The map at each tap, of the size that the network gives it, as computed."""
        with computing_in(self.dtype, image):
            return self._maps(image)

    def taught(self, own_maps: Sequence[Tensor]) -> Taught:
        """The same from `own_maps`, whatever size and dtype these are kept in."""
        maps = self._fitted(own_maps)
        return Taught(maps[: len(self.points)], maps[-1] if self.gives_picture else None)

    def _fitted(self, maps: Sequence[Tensor]) -> list[Tensor]:
        floats = [f.float() for f in maps]
        return [f.contiguous() for f in resized(floats, self.sizes[: len(maps)])]

    def compile(self, low: Tensor, high: Tensor) -> None:
        """Compile what follows for batches like `low` and `high`, and run it once.

        Raises:
            ValueError: It cannot be compiled.
        """
        compiled = torch.compile(_Tapped(self.network, self.taps), dynamic=False)
        before, self._maps = self._maps, compiled
        try:
            self(low, high)
        except Exception as error:  # The compiler's errors have no common type.
            self._maps = before
            raise ValueError(
                f"`teacher_compile`: the teacher cannot be compiled: {error_in_words(error)}"
            ) from error


def computing_in(dtype: torch.dtype, image: Tensor) -> contextlib.AbstractContextManager[object]:
    """Let a network compute in `dtype`, by autocast, what it computes of `image`."""
    # Meta tensors have no autocast.
    if dtype == torch.float32 or image.is_meta:
        return contextlib.nullcontext()
    return torch.autocast(image.device.type, dtype)


class _Tapped(nn.Module):
    """A network whose result is its feature maps, so that a compiler drops what follows them."""

    def __init__(self, network: nn.Module, points: Sequence[str]) -> None:
        super().__init__()
        # Hooks that a compiler sees stay for good; those of the user's network do not.
        self.network = copy_with_tensors(network, lambda tensor: tensor)
        self.points = list(points)
        self.maps: dict[str, Tensor] = {}
        for name in points:
            self.network.get_submodule(name).register_forward_hook(self._tap(name))

    def _tap(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            feature = map_in(output, self.size)
            assert feature is not None, f"{name!r} is no point that `check_points` accepts"
            self.maps[name] = feature.clone(memory_format=torch.contiguous_format)

        return hook

    def forward(self, low: Tensor) -> list[Tensor]:
        self.size = size_inside(self.network, low)
        self.network(low)
        maps, self.maps = self.maps, {}
        return [maps[name] for name in self.points]
