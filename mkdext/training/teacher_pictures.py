"""A teacher's pictures of whole images on disk, so that it runs once whatever is cut of them later.

A cache is a folder of `teacher.json`, which tells whose pictures they are, and a store
(`mkdext.data.store`) for each pool of images, in which the teacher's picture has the place of the
high-resolution version.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mkdext._system.files import locked, write_json
from mkdext._system.processes import processes
from mkdext._system.reading import read_json
from mkdext.data import BICUBIC, ImagePairs, StoredPair, read_store
from mkdext.data.store import INDEX, PIXELS, checksum, map_pixels, stored_pair
from mkdext.data.store_writer import StoreWriter, written_store
from mkdext.models.handling import layout
from mkdext.training.teacher import Teacher, computing_in
from mkdext.training.teacher_cache import (
    PICTURES,
    WITHOUT_DEGRADATION,
    differences_in_words,
    digest_of,
    stale,
)
from mkdext.training.validation import picture

_LOOKED_AT = 16  # images that stand for all when a pool is opened
_TOLERANCE = 0.5  # levels on average; one network on other hardware is nearer

Progress = Callable[[str, Sequence[int]], Iterable[int]]
"""Given a title, wraps an iteration over images, to show how far it has come."""


class Pool(NamedTuple):
    """Images that a teacher enlarges."""

    name: str
    """Of its folder."""
    images: Sequence[str]
    """What each is called."""
    image: Callable[[int], Tensor]
    """One of them, uint8 `[3, h, w]`."""


class TeacherPictures:
    """What a teacher makes of pools of images, in 8-bit levels, in a folder."""

    def __init__(
        self,
        folder: Path,
        teacher: Teacher,
        scale: int,
        device: torch.device,
        progress: Progress = lambda title, missing: missing,
        made_by: str = BICUBIC.name,
    ) -> None:
        """Take a folder that may hold such pictures; nothing is read yet.

        Args:
            folder: Which one.
            teacher: Who enlarges.
            scale: By how much.
            device: Where it computes.
            progress: Shows how far a computation has come.
            made_by: What made the low-resolution versions of photographs.
        """
        self.folder = folder / PICTURES
        self.teacher = teacher
        self.scale = scale
        self.device = device
        self.progress = progress
        self.made_by = made_by

    def of(self, pool: Pool) -> ImagePairs:
        """Compute the pictures that are missing; what is complete stays, however this ends.

        Returns:
            Pairs of an image and the teacher's picture of it.

        Raises:
            ValueError: The folder is not usable or in use, holds pictures of another teacher or of
                other images.
            NonFiniteError: A picture is not finite.
            OSError: Writing failed; the same call goes on.
        """
        with processes().in_turn("the teacher's pictures"):
            return self._of(pool)

    def _of(self, pool: Pool) -> ImagePairs:
        folder = self.folder / pool.name
        if not (folder / INDEX).exists():
            with locked(self.folder, "`teacher_cache`", "training"):
                self._require_same_teacher()
                with written_store(folder, self.scale, "`teacher_cache`") as store:
                    self._fill(store, pool)
        self._require_same_teacher()
        try:
            pairs = read_store(folder, self.scale)
        except ValueError as error:
            raise stale(self.folder.parent, f"it is damaged ({error})") from None
        if len(pairs) != len(pool.images):
            raise self._other_images(f"{pool.name} was {len(pairs)}, now {len(pool.images)}")
        self._check(pairs, pool)
        return ImagePairs(pairs, self.scale)

    def _fill(self, store: StoreWriter, pool: Pool) -> None:
        entries, folder = list(store.done), store.folder
        if entries:
            pixels = map_pixels(folder / PIXELS)
            done = [stored_pair(folder, entry, self.scale, pixels) for entry in entries]
            self._check(done, pool)
        missing = range(len(entries), len(pool.images))
        for index in self.progress(f"the teacher's pictures, {pool.name}", missing):
            low = pool.image(index).contiguous()
            levels = self._enlarged(low).contiguous().numpy(), low.numpy()
            state = [[low.numel(), zlib.crc32(levels[1].data)]]
            name = _name(index, pool)
            entries.append(store.append(name, *levels, checksum(*levels), state))
        store.finish(entries)

    def _enlarged(self, low: Tensor) -> Tensor:
        def upscale(image: Tensor) -> Tensor:
            image = image.to(self.device, memory_format=layout(self.teacher.network))
            with computing_in(self.teacher.dtype, image):
                enlarged: Tensor = self.teacher.network(image)
            return enlarged.float()

        return picture(upscale, low)

    def _require_same_teacher(self) -> None:
        index = self.folder / "teacher.json"
        now: dict[str, Any] = {
            "teacher": digest_of(self.teacher.network),
            "dtype": str(self.teacher.dtype).removeprefix("torch."),
            "scale": self.scale,
            "degradation": self.made_by,
        }
        if not index.exists():
            if any(path.is_dir() for path in self.folder.iterdir()):
                raise stale(self.folder.parent, f"it is damaged ({index.name} is missing)")
            write_json(index, now)
            return
        try:
            before = WITHOUT_DEGRADATION | dict(read_json(index, index.name))
        except (TypeError, ValueError) as error:
            raise stale(self.folder.parent, f"it is damaged ({error})") from None
        names = [name for name in now if before.get(name) != now[name]]
        if names:
            raise stale(self.folder.parent, differences_in_words(before, now, names))

    def _check(self, pairs: Sequence[StoredPair], pool: Pool) -> None:
        """Check that pictures are of these images and this teacher, as far as that is cheap."""
        for index, pair in enumerate(pairs):
            name = pair.path.relative_to(self.folder / pool.name).as_posix()
            if index >= len(pool.images) or name != _name(index, pool):
                raise self._other_images(f"{name} was one of them")
        for index in range(0, len(pairs), max(1, len(pairs) // _LOOKED_AT)):
            if not torch.equal(torch.tensor(pairs[index].low), pool.image(index)):
                raise self._other_images(f"{pairs[index].path.name} is another")
        # The code of a network can change while its weights stay.
        low, before = min(pairs, key=lambda pair: pair.low.size).pair()
        gap = (self._enlarged(low).float() - before.float()).abs().mean()
        if not gap <= _TOLERANCE:
            raise stale(self.folder.parent, "the teacher computes something else now")

    def _other_images(self, which: str) -> ValueError:
        return stale(self.folder.parent, f"photographs have changed ({which})")


class PicturedPairs:
    """Photographs in low and high resolution, and as the teacher enlarges them."""

    def __init__(self, pairs: ImagePairs, pictures: ImagePairs) -> None:
        """Take the photographs, and what `TeacherPictures` gives for them."""
        self.pairs = pairs
        self.pictures = pictures
        self.scale = pairs.scale

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.pairs)

    def patch(
        self, index: int, size: int, place: tuple[float, float], key: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same part of all three: as `ImagePairs.patch`, then `[3, scale*size, scale*size]`.

        Raises:
            ValueError: The teacher saw another photograph.
        """
        low, high = self.pairs.patch(index, size, place, key)
        seen, shown = self.pictures.patch(index, size, place)
        if not torch.equal(seen, low):
            path = self.pairs.paths[index]
            raise ValueError(f"{path} has changed since the teacher enlarged it for the cache")
        return low, high, shown


def _name(index: int, pool: Pool) -> str:
    """By which an image is known in a store; no two are called the same."""
    return f"{index}/{pool.images[index]}"
