"""Photographs in high and low resolution, and low-resolution pictures alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mkdext.data.decoding import BadImageError
from mkdext.data.degradation.base import Degradation, Levels, drawn_by, drawn_for
from mkdext.data.degradation.fixed import BICUBIC
from mkdext.data.fitting import fitted, mirrored, whole_cells
from mkdext.data.images import BadImage, Progress, check_images, read_image, too_small
from mkdext.data.imresize import imresize
from mkdext.data.store import StoredPair

Pair = tuple[Tensor, Tensor]
"""A photograph `(low, high)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`."""


class GivenPair(NamedTuple):
    """Files of a photograph and of its low-resolution version."""

    low: Path
    path: Path
    """Of the photograph."""
    crop: bool = False
    """Whether both may be cut to what they share where their sizes do not fit."""


Photograph = Path | StoredPair | GivenPair
"""A file, both versions in a store, or both in files."""


class ImagePairs(Sequence[Pair]):
    """Photographs with their low-resolution versions: of a store, of files, or made.

    Item `i` is `(low, high)`: uint8 `[3, h, w]` and `[3, scale*h, scale*w]`. Where `low` is not
    given, a degradation makes it; decoded pairs stay in memory until it is used up, and what does
    not fit is decoded each time. Of stored photographs only the patches asked for are read, but for
    the first one of each, before which all of it is compared with its checksum. Several threads may
    share one object.

    Example:
        >>> from mkdext.data import builtin_photographs
        >>> low, high = ImagePairs(builtin_photographs("validation"), scale=4)[0]
        >>> low.shape, high.shape
        (torch.Size([3, 128, 128]), torch.Size([3, 512, 512]))
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        scale: int,
        cache_bytes: int = 2 << 30,
        degradation: Degradation = BICUBIC,
        pad_to: int = 0,
    ) -> None:
        """Take the photographs as they are; nothing is read yet.

        Args:
            photographs: Files, what `read_store` returns for this scale, or both versions in files.
            scale: Downscaling factor.
            cache_bytes: Memory for decoded pairs.
            degradation: What makes low-resolution versions where none are given. Those in a store
                are given, or made by MATLAB's bicubic, and then serve for that alone.
            pad_to: Width and height, a multiple of the scale, up to which photographs that are
                smaller are mirrored at the right and the bottom.
        """
        self.paths = [p if isinstance(p, Path) else p.path for p in photographs]
        self._stored = {p.path: p for p in photographs if isinstance(p, StoredPair)}
        self._given = {p.path: p for p in photographs if isinstance(p, GivenPair)}
        self.scale = scale
        self.degradation = degradation
        self.pad_to = pad_to
        self.padded: set[Path] = set()
        """Those of the photographs decoded so far that were mirrored."""
        self._free_bytes = cache_bytes
        self._is_full = False
        self._cache: dict[Path, tuple[Levels | None, Levels]] = {}
        self._drawn: dict[Path, Levels] = {}
        self._lock = threading.Lock()

    @classmethod
    def checked(
        cls,
        photographs: Sequence[Photograph],
        scale: int,
        minimum_side: int = 1,
        progress: Progress = iter,
        cache_bytes: int = 2 << 30,
        check_stored: bool = False,
        degradation: Degradation = BICUBIC,
        pad: bool = False,
    ) -> tuple[ImagePairs, list[BadImage]]:
        """Check files as `check_images` does, keeping in memory what it decodes.

        Of stored photographs, which were checked when they were stored, only the size is looked at;
        their pixels when they are first used, unless that shall be now.

        Args:
            photographs: As for `ImagePairs`.
            scale: Downscaling factor.
            minimum_side: Smallest width and height, in pixels, that is large enough.
            progress: Wraps the iteration over the files, to show how far it has come.
            cache_bytes: Memory for decoded pairs.
            check_stored: Whether pixels of stored photographs are compared with their checksums.
            degradation: What makes low-resolution versions where none are given.
            pad: Whether smaller photographs are mirrored up to `minimum_side`, a multiple of the
                scale, if they have `scale` pixels at least.

        Returns:
            The pairs of the usable photographs, and the others.
        """
        needed = scale if pad else minimum_side
        pairs = cls(photographs, scale, cache_bytes, degradation, minimum_side if pad else 0)
        files = [path for path in pairs.paths if path not in pairs._stored]
        bad = check_images(files, needed, progress, pairs._keep)[1] if files else []
        for stored in pairs._stored.values():
            height, width = stored.high.shape[1:]
            if min(height, width) < pairs.pad_to:
                pairs.padded.add(stored.path)
            if reason := too_small(height, width, needed):
                bad.append(BadImage(stored.path, reason, is_small=True))
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

    @property
    def made_by(self) -> str:
        """What tells low-resolution versions from others of the same photographs."""
        return "given" if self._given else self.degradation.identity

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        """The pair `(low, high)` of photograph `index`; degraded at random, always in the same way.

        Raises:
            BadImageError: A file cannot be read, or the stored photograph has changed.
        """
        path = self.paths[index]
        low, high = self._levels(path)
        if low is None:
            low = self._drawn.get(path)
        if low is None:
            low = self.degradation.low(high, self.scale, drawn_for(path.name))
            if self.degradation.is_random and self._takes(low.size):
                self._drawn[path] = low
        return _tensor(low), _tensor(high)

    def patch(self, index: int, size: int, place: tuple[float, float], key: int = 0) -> Pair:
        """A square part of pair `index`, without making the whole pair when memory is full.

        Args:
            index: Which photograph.
            size: Width and height in low-resolution pixels.
            place: Row and column, 0 for the first possible one to just under 1 for the last.
            key: From what a random degradation is drawn, at least 0 and below 2^128.

        Returns:
            `(low, high)`, uint8 `[3, size, size]` and `[3, scale*size, scale*size]`.

        Raises:
            BadImageError: A file cannot be read, or the stored photograph has changed.
            ValueError: The photograph is smaller than the patch.
        """
        path, scale = self.paths[index], self.scale
        low, high = self._levels(path)
        top, left = _corner(path, high.shape, size, place, scale)
        part = _square(high, top * scale, left * scale, size * scale)
        if low is None:
            low = self.degradation.part(high, scale, (top, left), size, drawn_by(key))
        else:
            low = _square(low, top, left, size)
        return _tensor(low), _tensor(part)

    def _levels(self, path: Path) -> tuple[Levels | None, Levels]:
        """Both versions of a photograph; none of the first: it is made each time."""
        if path in self._stored:
            stored = self._stored[path]
            with _naming(path):
                stored.require_intact()
            is_there = stored.low_is_given or self.degradation is BICUBIC
            return self._padded(stored.low if is_there else None, stored.high)
        if path in self._cache:
            return self._cache[path]
        with _naming(path):
            return self._keep(path, read_image(path))

    def _keep(self, path: Path, high: Tensor) -> tuple[Levels | None, Levels]:
        """What `_levels` gives of a file that was decoded, kept where there is memory for it.

        Raises:
            BadImageError: The low-resolution version that is given cannot be used.
        """
        low: Levels | None = None
        if path in self._given:
            given = self._given[path]
            try:
                sides = fitted(read_image(given.low), high, self.scale, given.crop)
            except BadImageError as error:
                raise BadImageError(f"its low-resolution version {given.low} {error}") from None
            low, levels = (side.numpy() for side in sides)
        else:
            levels = whole_cells(high, self.scale).numpy()
        if min(levels.shape[1:]) < self.pad_to:
            self.padded.add(path)
        low, levels = self._padded(low, levels)
        if low is None and not self._is_full:
            low = self._fixed(levels)
        if not self._is_full and self._takes(levels.size + (0 if low is None else low.size)):
            self._cache[path] = low, levels
        return low, levels

    def _padded(self, low: Levels | None, high: Levels) -> tuple[Levels | None, Levels]:
        side = self.pad_to
        if min(high.shape[1:]) >= side:
            return low, high
        # Not of what is continued: at its end it would be another than a store has.
        low = self._fixed(high) if low is None else low
        return None if low is None else mirrored(low, side // self.scale), mirrored(high, side)

    def _fixed(self, high: Levels) -> Levels | None:
        """The low-resolution version; none: it is drawn at random each time."""
        if self.degradation.is_random:
            return None
        return self.degradation.low(high, self.scale, drawn_for(""))

    def _takes(self, size: int) -> bool:
        """Whether there is memory for so many bytes more, which are then taken."""
        with self._lock:
            if size > self._free_bytes:
                self._is_full = True
                return False
            self._free_bytes -= size
            return True


class LowImages(Sequence[Tensor]):
    """Low-resolution pictures of which there is no larger version, uint8 `[3, h, w]`.

    Decoded pictures stay in memory until it is used up. Several threads may share one object.
    """

    def __init__(
        self, paths: Sequence[Path], scale: int, cache_bytes: int = 2 << 30, pad_to: int = 0
    ) -> None:
        """Take the pictures as they are; nothing is read yet.

        Args:
            paths: Files.
            scale: By which a network enlarges them.
            cache_bytes: Memory for decoded pictures.
            pad_to: Width and height up to which smaller ones are mirrored at the right and the
                bottom.
        """
        self.paths = list(paths)
        self.scale = scale
        self.pad_to = pad_to
        self.padded: set[Path] = set()
        """Those of the pictures decoded so far that were mirrored."""
        self._free_bytes = cache_bytes
        self._cache: dict[Path, Levels] = {}
        self._lock = threading.Lock()

    @classmethod
    def checked(
        cls,
        paths: Sequence[Path],
        scale: int,
        minimum_side: int,
        progress: Progress = iter,
        pad: bool = False,
    ) -> tuple[LowImages, list[BadImage]]:
        """Check files as `check_images` does, keeping in memory what it decodes.

        Args:
            paths: Files.
            scale: By which a network enlarges them.
            minimum_side: Smallest width and height, in pixels, that is large enough.
            progress: Wraps the iteration over the files, to show how far it has come.
            pad: Whether smaller ones are mirrored up to that.

        Returns:
            The usable pictures, and the others.
        """
        images = cls(paths, scale, pad_to=minimum_side if pad else 0)
        needed = 1 if pad else minimum_side
        images.paths, bad = check_images(images.paths, needed, progress, images._keep)
        return images, bad

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    @property
    def made_by(self) -> str:
        """As that of `ImagePairs`."""
        return "given"

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        """Picture `index`.

        Raises:
            BadImageError: The file cannot be read.
        """
        return torch.from_numpy(self._levels(index))

    def patch(
        self, index: int, size: int, place: tuple[float, float], key: int = 0
    ) -> tuple[Tensor]:
        """A square part of picture `index`, as that of `ImagePairs`; `key` is not looked at.

        Raises:
            BadImageError: The file cannot be read.
            ValueError: The picture is smaller than the patch.
        """
        levels = self._levels(index)
        corner = _corner(self.paths[index], levels.shape, size, place, 1)
        return (torch.from_numpy(_square(levels, *corner, size)),)

    def _levels(self, index: int) -> Levels:
        path = self.paths[index]
        if path in self._cache:
            return self._cache[path]
        with _naming(path):
            return self._keep(path, read_image(path))

    def _keep(self, path: Path, low: Tensor) -> Levels:
        if min(low.shape[1:]) < self.pad_to:
            self.padded.add(path)
        levels = mirrored(low.numpy(), self.pad_to)
        with self._lock:
            if levels.size <= self._free_bytes:
                self._free_bytes -= levels.size
                self._cache[path] = levels
        return levels


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


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except BadImageError as error:
        raise BadImageError(f"{path}: {error}") from None


def _corner(
    path: Path, shape: Sequence[int], size: int, place: tuple[float, float], scale: int
) -> tuple[int, int]:
    """First row and column of a patch, in low-resolution pixels."""
    height, width = shape[1] // scale, shape[2] // scale
    if min(height, width) < size:
        raise ValueError(
            f"{path}: {shape[2]}x{shape[1]} pixels are too few for patches of {size} "
            f"low-resolution pixels at scale {scale}"
        )
    return int(place[0] * (height - size + 1)), int(place[1] * (width - size + 1))


def _square(image: Levels, top: int, left: int, size: int) -> Levels:
    return image[:, top : top + size, left : left + size]


def _tensor(levels: Levels) -> Tensor:
    """A tensor, of a copy where the levels are those of a store."""
    return torch.from_numpy(levels if levels.flags.writeable else levels.copy())
