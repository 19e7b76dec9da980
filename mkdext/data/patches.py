"""Training pairs: random patches of photographs, high and low resolution."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mkdext.data.images import read_image
from mkdext.data.imresize import imresize

Pair = tuple[Tensor, Tensor]


class ImagePairs(Sequence[Pair]):
    """Photographs with their low-resolution versions, made by MATLAB's bicubic on 8-bit levels.

    Item `i` is `(lr, hr)`: uint8 `[3, h, w]` and `[3, scale*h, scale*w]`. Decoded pairs stay in
    memory up to a limit, the least recently used make room.
    """

    def __init__(self, paths: Sequence[Path], scale: int, cache_bytes: int = 2 << 30) -> None:
        """Take the files as they are; they were checked before."""
        self.paths = list(paths)
        self.scale = scale
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cache: OrderedDict[int, Pair] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        """The pair `(lr, hr)` of photograph `index`."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        pair = make_pair(read_image(self.paths[index]), self.scale)
        with self._lock:
            if index not in self._cache:
                self._cache[index] = pair
                self._cached_bytes += _bytes(pair)
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])
        return pair


class PatchSampler:
    """Batches of random crops, flips and rotations, a function of the seed and the step alone."""

    def __init__(
        self, pairs: Sequence[Pair], scale: int, patch_size: int, batch_size: int, seed: int
    ) -> None:
        """Sample `batch_size` patches of `patch_size` low-resolution pixels a step."""
        self.pairs = pairs
        self.scale = scale
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, step: int) -> Pair:
        """The batch of one step, the same whenever it is asked for.

        Returns:
            `lr` `[B, 3, p, p]` and `hr` `[B, 3, scale*p, scale*p]`, float32 in [0, 1].
        """
        random = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, step]))
        patches = [self._patch(random) for _ in range(self.batch_size)]
        lr, hr = (torch.stack(side).float() / 255 for side in zip(*patches, strict=True))
        return lr, hr

    def batches(self, first: int, last: int) -> Iterator[Pair]:
        """The batches of steps `first` to `last - 1`, made ahead by a background thread."""
        ahead = 4
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting: list[Future[Pair]] = []
            try:
                for step in range(first, last + ahead):
                    if step < last:
                        waiting.append(pool.submit(self.batch, step))
                    if step >= first + ahead:
                        yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def _patch(self, random: np.random.Generator) -> Pair:
        lr, hr = self.pairs[int(random.integers(len(self.pairs)))]
        size, scale = self.patch_size, self.scale
        top = int(random.integers(lr.shape[1] - size + 1))
        left = int(random.integers(lr.shape[2] - size + 1))
        flip, turns = bool(random.integers(2)), int(random.integers(4))
        lr = lr[:, top : top + size, left : left + size]
        hr = hr[:, top * scale : (top + size) * scale, left * scale : (left + size) * scale]
        return _turned(lr, flip, turns), _turned(hr, flip, turns)


def make_pair(hr: Tensor, scale: int) -> Pair:
    """Cut `hr` to a multiple of `scale` and downscale it.

    Args:
        hr: uint8 `[3, H, W]`.
        scale: Downscaling factor.

    Returns:
        `(lr, hr)`, uint8 `[3, H // scale, W // scale]` and `[3, scale*h, scale*w]`.
    """
    height, width = (size // scale * scale for size in hr.shape[1:])
    hr = hr[:, :height, :width].contiguous()
    return imresize(hr, 1 / scale), hr


def _turned(patch: Tensor, flip: bool, turns: int) -> Tensor:
    return torch.rot90(patch.flip(2) if flip else patch, turns, (1, 2))


def _bytes(pair: Pair) -> int:
    return sum(side.numel() for side in pair)
