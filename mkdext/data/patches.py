"""Training pairs: random patches of photographs, high and low resolution."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mkdext.data.decoding import BadImageError
from mkdext.data.fitting import whole_cells
from mkdext.data.images import BadImage, Progress, check_images, read_image, too_small
from mkdext.data.imresize import imresize
from mkdext.data.store import Levels, StoredPair

Pair = tuple[Tensor, Tensor]
"""A photograph `(low, high)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`."""

_Image = TypeVar("_Image", Tensor, Levels)

_WORKERS = 4  # threads that make batches ahead; one is enough unless photographs must be decoded


class ImagePairs(Sequence[Pair]):
    """Photographs with their low-resolution versions: of a store, or made of image files.

    Item `i` is `(low, high)`: uint8 `[3, h, w]` and `[3, scale*h, scale*w]`. For files `low` is
    made by MATLAB's bicubic on 8-bit levels; decoded pairs stay in memory until it is used up, and
    what does not fit is decoded each time. Of stored photographs only the patches asked for are
    read, but for the first one of each, before which all of it is compared with its checksum.
    Several threads may share one object.

    Example:
        >>> from mkdext.data import builtin_photographs
        >>> low, high = ImagePairs(builtin_photographs("validation"), scale=4)[0]
        >>> low.shape, high.shape
        (torch.Size([3, 128, 128]), torch.Size([3, 512, 512]))
    """

    def __init__(
        self,
        photographs: Sequence[Path | StoredPair],
        scale: int,
        cache_bytes: int = 2 << 30,
    ) -> None:
        """Take the photographs as they are; nothing is read yet.

        Args:
            photographs: Files, or what `read_store` returns for this scale, or both.
            scale: Downscaling factor.
            cache_bytes: Memory for decoded pairs.
        """
        self.paths = [p if isinstance(p, Path) else p.path for p in photographs]
        self._stored = {p.path: p for p in photographs if isinstance(p, StoredPair)}
        self.scale = scale
        self._free_bytes = cache_bytes
        self._is_full = False
        self._cache: dict[Path, Pair] = {}
        self._lock = threading.Lock()

    @classmethod
    def checked(
        cls,
        photographs: Sequence[Path | StoredPair],
        scale: int,
        minimum_side: int = 1,
        progress: Progress = iter,
        cache_bytes: int = 2 << 30,
        check_stored: bool = False,
    ) -> tuple[ImagePairs, list[BadImage]]:
        """Check files as `check_images` does, keeping in memory what it decodes.

        Of stored photographs, which were checked when they were stored, only the size is looked at;
        their pixels when they are first used, unless that shall be now.

        Args:
            photographs: Files, or what `read_store` returns for this scale, or both.
            scale: Downscaling factor.
            minimum_side: Smallest width and height, in pixels, that is large enough.
            progress: Wraps the iteration over the files, to show how far it has come.
            cache_bytes: Memory for decoded pairs.
            check_stored: Whether pixels of stored photographs are compared with their checksums.

        Returns:
            The pairs of the usable photographs, and the others.
        """
        pairs = cls(photographs, scale, cache_bytes)
        files = [path for path in pairs.paths if path not in pairs._stored]
        bad = check_images(files, minimum_side, progress, pairs._keep)[1] if files else []
        for stored in pairs._stored.values():
            height, width = stored.high.shape[1:]
            if reason := too_small(height, width, minimum_side):
                bad.append(BadImage(stored.path, reason))
            elif check_stored:
                try:
                    stored.require_intact()
                except BadImageError as error:
                    bad.append(BadImage(stored.path, str(error)))
        unusable = {image.path for image in bad}
        pairs.paths = [path for path in pairs.paths if path not in unusable]
        return pairs, bad

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        """The pair `(low, high)` of photograph `index`.

        Raises:
            BadImageError: The file cannot be read, or the stored photograph has changed.
        """
        path = self.paths[index]
        if path in self._stored:
            return self._intact_pair(path).pair()
        if path not in self._cache:
            high = _read(path)
            self._keep(path, high)
            return self._cache.get(path) or make_pair(high, self.scale)
        return self._cache[path]

    def patch(self, index: int, size: int, place: tuple[float, float]) -> Pair:
        """A square part of pair `index`, without making the whole pair when memory is full.

        Args:
            index: Which photograph.
            size: Width and height in low-resolution pixels.
            place: Row and column, 0 for the first possible one to just under 1 for the last.

        Returns:
            `(low, high)`, uint8 `[3, size, size]` and `[3, scale*size, scale*size]`.

        Raises:
            BadImageError: The file cannot be read, or the stored photograph has changed.
            ValueError: The photograph is smaller than the patch.
        """
        path, scale = self.paths[index], self.scale
        if path in self._stored:
            stored = self._intact_pair(path)
            top, left = self._corner(path, stored.high.shape, size, place)
            high_levels = _square(stored.high, top * scale, left * scale, size * scale)
            low_levels = _square(stored.low, top, left, size)
            return torch.from_numpy(low_levels.copy()), torch.from_numpy(high_levels.copy())
        pair = None if self._is_full and path not in self._cache else self[index]
        high = pair[1] if pair else whole_cells(_read(path), scale)
        top, left = self._corner(path, high.shape, size, place)
        high_patch = _square(high, top * scale, left * scale, size * scale)
        low_patch = (
            _square(pair[0], top, left, size) if pair else _low(high, scale, top, left, size)
        )
        return low_patch, high_patch

    def _intact_pair(self, path: Path) -> StoredPair:
        stored = self._stored[path]
        with _naming(path):
            stored.require_intact()
        return stored

    def _corner(
        self, path: Path, shape: Sequence[int], size: int, place: tuple[float, float]
    ) -> tuple[int, int]:
        """First row and column of a patch, in low-resolution pixels."""
        height, width = shape[1] // self.scale, shape[2] // self.scale
        if min(height, width) < size:
            raise ValueError(
                f"{path}: {shape[2]}x{shape[1]} pixels are too few for patches of {size} "
                f"low-resolution pixels at scale {self.scale}"
            )
        return int(place[0] * (height - size + 1)), int(place[1] * (width - size + 1))

    def _keep(self, path: Path, high: Tensor) -> None:
        if self._is_full:
            return
        pair = make_pair(high, self.scale)
        size = sum(side.numel() for side in pair)
        with self._lock:
            if path in self._cache:
                return
            if size > self._free_bytes:
                self._is_full = True
                return
            self._free_bytes -= size
            self._cache[path] = pair


class Patches(Protocol):
    """Images from which square parts can be taken, as of `ImagePairs`."""

    scale: int

    def __len__(self) -> int:
        """Number of images."""

    def patch(self, index: int, size: int, place: tuple[float, float]) -> tuple[Tensor, ...]:
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
        >>> from mkdext.data import builtin_photographs
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
    ) -> None:
        """Sample `batch_size` patches of `patch_size` low-resolution pixels a step.

        Args:
            pairs: What to take them from.
            scale: Downscaling factor.
            patch_size: Width and height in low-resolution pixels.
            batch_size: Number of patches.
            seed: What they are drawn from.
            stream: Which of several independent series of random numbers.

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

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The batch of one step, the same whenever it is asked for.

        Returns:
            What `patch` gives, cut at the same place, turned and flipped in the same way, float32
            in [0, 1]: of pairs `low` `[B, 3, p, p]` and `high` `[B, 3, scale*p, scale*p]`.

        Raises:
            BadImageError: A file cannot be read any more, or a stored photograph has changed.
            ValueError: A photograph is smaller than the patch.
        """
        counter = [0, 0, self.stream, step]
        random = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
        size = self.batch_size
        indices, places = random.integers(len(self.pairs), size=size), random.random((size, 2))
        flips, turns = random.integers(2, size=size), random.integers(4, size=size)
        # numpy, because torch's threads would compete with those of the training.
        sides: list[npt.NDArray[np.float32]] = []
        for i in range(size):
            patches = self.pairs.patch(int(indices[i]), self.patch_size, tuple(places[i]))
            sides = sides or [np.empty((size, *p.shape), np.float32) for p in patches]
            for batch, patch in zip(sides, patches, strict=True):
                levels = patch.numpy()[:, :, ::-1] if flips[i] else patch.numpy()
                np.divide(np.rot90(levels, turns[i], (1, 2)), np.float32(255), out=batch[i])
        return tuple(map(torch.from_numpy, sides))


def make_pair(high: Tensor, scale: int) -> Pair:
    """Cut `high` to a multiple of `scale` and downscale it.

    Args:
        high: uint8 `[3, H, W]`.
        scale: Downscaling factor.

    Returns:
        `(low, high)`, uint8 `[3, H // scale, W // scale]` and `[3, scale*h, scale*w]`, the latter a
        view of the argument.

    Raises:
        ValueError: A side of `high` is shorter than `scale`.

    Example:
        >>> low, high = make_pair(torch.zeros(3, 50, 41, dtype=torch.uint8), scale=4)
        >>> low.shape, high.shape
        (torch.Size([3, 12, 10]), torch.Size([3, 48, 40]))
    """
    if min(high.shape[-2:]) < scale:
        raise ValueError(f"make_pair: high must have {scale} pixels a side, got {list(high.shape)}")
    high = whole_cells(high, scale)
    return imresize(high, 1 / scale), high


def _read(path: Path) -> Tensor:
    with _naming(path):
        return read_image(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except BadImageError as error:
        raise BadImageError(f"{path}: {error}") from None


def _low(high: Tensor, scale: int, top: int, left: int, size: int) -> Tensor:
    """A square of the low-resolution version, from the pixels of `high` it depends on alone."""
    # The kernel reaches less than two low-resolution pixels beyond the one it makes.
    first_row, first_column = max(top - 2, 0), max(left - 2, 0)
    rows = slice(first_row * scale, (top + size + 2) * scale)
    columns = slice(first_column * scale, (left + size + 2) * scale)
    low = imresize(high[:, rows, columns], 1 / scale)
    return _square(low, top - first_row, left - first_column, size)


def _square(image: _Image, top: int, left: int, size: int) -> _Image:
    return image[:, top : top + size, left : left + size]
