"""A teacher's feature maps on disk, so that a heavy teacher runs once for each of a set of crops.

A cache is a folder of two files:

- `maps.bin`: one row for each crop, in order: the teacher's map at each point, `[C, h, w]` in
  `dtype`, and then the CRC-32 of the crop's low-resolution pixels in 4 bytes;
- `cache.json`: `made_from`, all that decides the rows, and `crops`, how many of them are complete.

Maps have the teacher's size or the student's, whichever is smaller.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mkdext._system.files import locked, write_json
from mkdext._system.reading import entry, read_json, require_file
from mkdext.data import BICUBIC, ImagePairs, LowImages, PatchSampler
from mkdext.models import MapShape, check_points, resized
from mkdext.models.handling import layout, unwrapped
from mkdext.training.teacher import Taught, Teacher

PICTURES = "pictures"
"""Folder beside the maps for the teacher's pictures, which `teacher_pictures` keeps."""

WITHOUT_DEGRADATION = {"degradation": BICUBIC.name}
"""What a folder of a version that knew no other degradation was made with."""

_CHECKSUM_BYTES = 4
_DIGEST_CROPS = 16  # whose pixels stand for all photographs when a cache is opened
_TOLERANCE = 1e-2  # relative; one network on other hardware is nearer, another network farther
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

Progress = Callable[[Sequence[int]], Iterable[int]]
"""Wraps an iteration over first crops of batches, to show how far it has come."""


class FixedCrops(PatchSampler):
    """Batches of a fixed set of crops, a function of the seed and the step alone.

    Crop `i` is one random patch, turned, flipped and degraded for good; it depends on the seed and
    on `i`.
    """

    def __init__(
        self,
        pairs: ImagePairs | LowImages,
        scale: int,
        patch_size: int,
        batch_size: int,
        seed: int,
        crops: int,
        rows: slice = slice(None),
    ) -> None:
        """Take `crops` crops of `patch_size` low-resolution pixels, `batch_size` of them a step."""
        super().__init__(pairs, scale, patch_size, batch_size, seed, rows=rows)
        self.crops = crops
        self.made_by = pairs.made_by
        self._single = PatchSampler(pairs, scale, patch_size, 1, seed)

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Which crops the `rows` of a step's batch are, `[B]`."""
        random = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 1, step]))
        return random.integers(self.crops, size=self.batch_size)[self.rows.start : self.rows.stop]

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The batch of one step."""
        return self.take(self.indices(step))

    def take(self, indices: Iterable[int]) -> tuple[Tensor, ...]:
        """Some of the crops as a batch."""
        sides = zip(*(self._single.batch(int(index)) for index in indices), strict=True)
        return tuple(map(torch.cat, sides))


class TeacherCache:
    """The feature maps of a teacher for `FixedCrops`, in a folder."""

    def __init__(
        self, folder: Path, teacher: Teacher, crops: FixedCrops, device: torch.device
    ) -> None:
        """Take a folder that may hold such a cache or part of it; nothing is read yet."""
        self.folder = folder
        self.teacher = teacher
        self.crops = crops
        self.device = device
        self.shapes = stored_shapes(teacher, crops.patch_size)
        self.row_bytes = row_bytes(self.shapes, teacher.dtype)
        self._rows: npt.NDArray[np.uint8] | None = None

    def fill(self, progress: Progress = iter) -> None:
        """Compute the rows that are missing; what is complete stays, however this ends.

        Raises:
            ValueError: The folder is not usable or in use, holds the maps of another teacher, other
                photographs or options, or the disk is too small.
            OSError: Writing failed; the same call goes on.
        """
        self._require_no_others()
        with locked(self.folder, "`teacher_cache`", "training"):
            made_from = self._made_from()
            done = self._complete_rows(made_from)
            crops, batch = self.crops.crops, self.crops.batch_size
            self._require_space(crops - done)
            with (self.folder / "maps.bin").open("ab") as file:
                # What a process that was stopped has left of a row.
                file.truncate(done * self.row_bytes)
                for first in progress(range(done, crops, batch)):
                    last = min(first + batch, crops)
                    file.write(self._compute(first)[: last - first].tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                    index = {"made_from": made_from, "crops": last}
                    write_json(self.folder / "cache.json", index)
        shape = (crops, self.row_bytes)
        self._rows = np.memmap(self.folder / "maps.bin", np.uint8, "r", shape=shape)

    def rows(self, step: int, low: Tensor) -> Tensor:
        """The teacher's maps for the batch of a step as they are kept, in the processor's memory.

        Args:
            step: Which batch of the crops.
            low: That batch, `[B, 3, p, p]`.

        Returns:
            For `taught`, uint8 `[B, row_bytes]`.

        Raises:
            ValueError: The crops are not those that the teacher saw.
        """
        if self._rows is None:
            raise ValueError("TeacherCache: fill() must come before rows()")
        rows = self._rows[self.crops.indices(step)]
        if not np.array_equal(rows[:, -_CHECKSUM_BYTES:], _checksums(low)):
            raise self._stale("photographs have changed")
        return torch.from_numpy(rows)

    def taught(self, rows: Tensor) -> Taught:
        """What the teacher makes of a batch, of what `rows` gives, on the device of the rows."""
        return self.teacher.taught(list(self._maps_of(rows)))

    def _maps_of(self, rows: Tensor) -> Iterator[Tensor]:
        begin = 0
        for shape in self.shapes:
            end = begin + _map_bytes(shape, self.teacher.dtype)
            levels = rows[:, begin:end].contiguous()
            yield levels.view(self.teacher.dtype).reshape(len(rows), *shape)
            begin = end

    def _compute(self, first: int) -> npt.NDArray[np.uint8]:
        """The rows of a whole batch of crops, because a compiled teacher takes no other."""
        low, *_ = self.crops.take(range(first, first + self.crops.batch_size))
        on_device = low.to(self.device, memory_format=layout(self.teacher.network))
        maps = resized(
            [m.float() for m in self.teacher.own_maps(on_device)],
            [shape[1:] for shape in self.shapes],
        )
        columns = [
            feature.to(self.teacher.dtype).cpu().contiguous().view(torch.uint8).flatten(1).numpy()
            for feature in maps
        ]
        return np.concatenate([*columns, _checksums(low)], axis=1)

    def _made_from(self) -> dict[str, Any]:
        digest = hashlib.sha256(str(len(self.crops.pairs)).encode())
        for side in self.crops.take(range(_DIGEST_CROPS)):
            digest.update(side.numpy().tobytes())
        return {
            "teacher": digest_of(self.teacher.network),
            "points": self.teacher.taps,
            "maps": [list(shape) for shape in self.shapes],
            "dtype": _DTYPES[self.teacher.dtype],
            "photographs": digest.hexdigest(),
            "degradation": self.crops.made_by,
            "scale": self.crops.scale,
            "patch_size": self.crops.patch_size,
            "seed": self.crops.seed,
        }

    def _require_no_others(self) -> None:
        if not self.folder.is_dir() or (self.folder / "cache.json").exists():
            return
        # A lock or a file that was not finished may be there.
        names = (path.name for path in self.folder.iterdir())
        known = ("maps.bin", PICTURES)
        others = [name for name in names if name not in known and not name.startswith(".")]
        if others:
            raise ValueError(
                f"`teacher_cache` {self.folder} holds something else ({others[0]}); "
                "name a new folder"
            )

    def _complete_rows(self, made_from: dict[str, Any]) -> int:
        """Rows that are there and right."""
        index = self.folder / "cache.json"
        if not index.exists():
            return 0
        maps = self.folder / "maps.bin"
        try:
            there = read_json(index, index.name)
            before = entry(there, "made_from", dict, index.name)
            done = entry(there, "crops", int, index.name)
            require_file(maps, maps.name)
            size = maps.stat().st_size
        except (OSError, ValueError) as error:
            raise self._stale(f"it is damaged ({error})") from None
        before = WITHOUT_DEGRADATION | before
        differences = [name for name in made_from if before.get(name) != made_from[name]]
        if differences:
            raise self._stale(differences_in_words(before, made_from, differences))
        if done < 1 or size < done * self.row_bytes:
            raise self._stale(f"it is damaged ({maps.name} is too short)")
        # The code of a network can change while its weights stay.
        stored = np.memmap(maps, np.uint8, "r", shape=(1, self.row_bytes))
        both = (torch.from_numpy(np.array(row)) for row in (stored, self._compute(0)[:1]))
        for old, new in zip(*map(self._maps_of, both), strict=True):
            gap = (old.float() - new.float()).norm()
            if not gap <= _TOLERANCE * new.float().norm():
                raise self._stale("the teacher computes something else now")
        return done

    def _stale(self, reason: str) -> ValueError:
        return stale(self.folder, reason)

    def _require_space(self, rows: int) -> None:
        needed, free = rows * self.row_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"`teacher_cache` {self.folder} needs {needed / 1e9:.2f} GB for {rows} crops, "
                f"{free / 1e9:.2f} GB are free; lower `teacher_cache_crops` or `patch_size`"
            )


def stored_shapes(teacher: Teacher, patch_size: int) -> list[MapShape]:
    """Shapes of the maps in a cache: the teacher's, or the student's size where that is smaller."""
    own = check_points(teacher.network, teacher.taps, patch_size)
    return [
        MapShape(shape.channels, min(shape.height, height), min(shape.width, width))
        for shape, (height, width) in zip(own, teacher.sizes, strict=True)
    ]


def row_bytes(shapes: Iterable[MapShape], dtype: torch.dtype) -> int:
    """Bytes that one crop takes up in a cache."""
    return sum(_map_bytes(shape, dtype) for shape in shapes) + _CHECKSUM_BYTES


def stale(folder: Path, reason: str) -> ValueError:
    """The error that what a folder keeps of a teacher is of no use."""
    return ValueError(
        f"`teacher_cache` {folder} does not fit: {reason}; name another folder, or delete this one "
        "to compute it again"
    )


def digest_of(network: nn.Module) -> str:
    """Class and SHA-256 of the weights of a network, which tell it from another.

    Example:
        >>> digest_of(nn.Identity())
        'Identity of weights e3b0c44298fc1c14'
    """
    network = unwrapped(network)
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{type(network).__name__} of weights {digest.hexdigest()[:16]}"


def _map_bytes(shape: MapShape, dtype: torch.dtype) -> int:
    return shape.channels * shape.height * shape.width * dtype.itemsize


def _checksums(low: Tensor) -> npt.NDArray[np.uint8]:
    """CRC-32 of each image, `[B, 4]`."""
    images = low.cpu().contiguous().numpy()
    sums = np.array([zlib.crc32(image.tobytes()) for image in images], "<u4")
    return sums.view(np.uint8).reshape(len(images), _CHECKSUM_BYTES)


def differences_in_words(before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> str:
    """What is not as it was in what a cache was made from."""
    if "photographs" in names and len(names) > 1:
        # They follow from the seed and the sizes of the crops.
        names = [name for name in names if name != "photographs"]
    if list(names) == ["photographs"]:
        return "photographs have changed"
    return ", ".join(f"{name} was {before.get(name)}, now {now[name]}" for name in names)
