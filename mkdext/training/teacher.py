"""The teacher at work: its feature maps, fit for comparison with the student's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mkdext._system.plugins import in_words
from mkdext.models import features_at, resized
from mkdext.models.handling import copy_with_tensors
from mkdext.training.precision import computing_in


class Teacher:
    """A network that runs forward only, and no further than its last distillation point.

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
        points: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take a network in evaluation mode.

        Args:
            network: The network.
            points: Names of sub-modules that `check_points` accepts.
            sizes: Height and width of the student's map at each point.
            dtype: What to compute in, float32 or, by autocast, bfloat16.
        """
        self.network = network
        self.points = list(points)
        self.sizes = list(sizes)
        self.dtype = dtype
        self._maps: Callable[[Tensor], list[Tensor]] = lambda image: features_at(
            network, self.points, image
        )

    def source(self, lr: Tensor, hr: Tensor) -> Tensor:
        """Which of the two images the network takes."""
        return lr

    def __call__(self, lr: Tensor, hr: Tensor) -> list[Tensor]:
        """Feature maps `[B, C, H, W]` of the student's sizes, float32, without gradient.

        Args:
            lr: `[B, 3, h, w]` in [0, 1].
            hr: `[B, 3, scale*h, scale*w]` in [0, 1].
        """
        with torch.no_grad():
            return self.fitted(self.own_maps(self.source(lr, hr)))

    @torch.no_grad()
    def own_maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the sizes that the network gives them, as computed."""
        with computing_in(self.dtype, image):
            return self._maps(image)

    def fitted(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of any size and dtype, in float32 and of the student's sizes."""
        return [f.contiguous() for f in resized([f.float() for f in maps], self.sizes)]

    def compile(self, lr: Tensor, hr: Tensor) -> None:
        """Compile what follows for batches like `lr` and `hr`, and run it once.

        Raises:
            ValueError: It cannot be compiled.
        """
        compiled = torch.compile(_Tapped(self.network, self.points), dynamic=False)
        before, self._maps = self._maps, compiled
        try:
            self(lr, hr)
        except Exception as error:  # The compiler's errors have no common type.
            self._maps = before
            raise ValueError(
                f"`teacher_compile`: the teacher cannot be compiled: {in_words(error)}"
            ) from error


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

    def _tap(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            self.maps[name] = output.clone(memory_format=torch.contiguous_format)

        return hook

    def forward(self, lr: Tensor) -> list[Tensor]:
        self.network(lr)
        maps, self.maps = self.maps, {}
        return [maps[name] for name in self.points]
