"""Training pairs: random patches of photographs, high and low resolution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_WORKERS = 4  # threads that make batches ahead; one is enough unless photographs must be decoded


class Patches(Protocol):
    """Images from which square parts can be taken, as of `ImagePairs`."""

    scale: int

    def __len__(self) -> int:
        """Number of images."""

    def patch(
        self, index: int, size: int, place: tuple[float, float], key: int = 0
    ) -> tuple[Tensor, ...]:
        """As `ImagePairs.patch`: uint8, one version of the part after the other."""


class Sampler(ABC):
    """Batches that are a function of the seed and the step alone."""

    scale: int
    """Downscaling factor."""

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The batch of one step, the same whenever it is asked for."""

    def batches(self, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches of steps `first` to `last - 1` in order, made ahead by background threads."""
        ahead = 2 * _WORKERS
        with ThreadPoolExecutor(_WORKERS) as pool:
            waiting: deque[Future[tuple[Tensor, ...]]] = deque()
            try:
                for step in range(first, last):
                    waiting.append(pool.submit(self.batch, step))
                    if len(waiting) > ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


class PatchSampler(Sampler):
    """Batches of random crops, flips and rotations.

    Every photograph is as likely as any other, and so is every place in it.

    Example:
        >>> from mkdext.data import ImagePairs, builtin_photographs
        >>> pairs = ImagePairs(builtin_photographs("validation"), scale=4)
        >>> sampler = PatchSampler(pairs, scale=4, patch_size=24, batch_size=2, seed=0)
        >>> low, high = sampler.batch(step=1000)
        >>> low.shape, high.shape
        (torch.Size([2, 3, 24, 24]), torch.Size([2, 3, 96, 96]))
    """

    def __init__(
        self,
        pairs: Patches,
        scale: int,
        patch_size: int,
        batch_size: int,
        seed: int,
        stream: int = 0,
        rows: slice = slice(None),
    ) -> None:
        """Sample `batch_size` patches of `patch_size` low-resolution pixels a step.

        Args:
            pairs: What to take them from.
            scale: Downscaling factor.
            patch_size: Width and height in low-resolution pixels.
            batch_size: Number of patches.
            seed: What they are drawn from.
            stream: Which of several independent series of random numbers.
            rows: Those of the batch that are made here, where several processes share it.

        Raises:
            ValueError: There is no photograph, `scale` is not that of `pairs`, a size is not
                positive, or the seed is negative.
        """
        if not len(pairs):
            raise ValueError("PatchSampler: pairs must hold at least one photograph")
        if scale != pairs.scale:
            raise ValueError(f"PatchSampler: scale must be {pairs.scale} as in pairs, got {scale}")
        if min(patch_size, batch_size) < 1 or seed < 0:
            raise ValueError(
                "PatchSampler: patch_size and batch_size must be positive and seed not negative, "
                f"got {patch_size}, {batch_size} and {seed}"
            )
        self.pairs = pairs
        self.scale = scale
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.seed = seed
        self.stream = stream
        self.rows = range(batch_size)[rows]

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The batch of one step, the same whenever it is asked for.

        Returns:
            What `patch` gives, cut at the same place, turned and flipped in the same way, float32
            in [0, 1]: of pairs `low` `[B, 3, p, p]` and `high` `[B, 3, scale*p, scale*p]`, B being
            the number of `rows`.

        Raises:
            BadImageError: A file cannot be read any more, or a stored photograph has changed.
            ValueError: A photograph is smaller than the patch.
        """
        counter = [0, 0, self.stream, step]
        random = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
        size = self.batch_size
        indices, places = random.integers(len(self.pairs), size=size), random.random((size, 2))
        flips, turns = random.integers(2, size=size), random.integers(4, size=size)
        keys = random.integers(2**63 - 1, size=size)
        # numpy, because torch's threads would compete with those of the training.
        sides: list[npt.NDArray[np.float32]] = []
        count = len(self.rows)
        for row, i in enumerate(self.rows or [0]):
            place, key = tuple(places[i]), int(keys[i])
            patches = self.pairs.patch(int(indices[i]), self.patch_size, place, key)
            sides = sides or [np.empty((count, *p.shape), np.float32) for p in patches]
            for batch, patch in zip(sides, patches if count else (), strict=count > 0):
                levels = patch.numpy()[:, :, ::-1] if flips[i] else patch.numpy()
                np.divide(np.rot90(levels, turns[i], (1, 2)), np.float32(255), out=batch[row])
        return tuple(map(torch.from_numpy, sides))
