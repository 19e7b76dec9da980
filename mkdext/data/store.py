"""Stores: decoded photographs in one file, from which patches are read without decoding.

A store is a folder of two files:

- `pixels.u8`: for each photograph the levels of its high-resolution version, uint8 `[3, H, W]`, and
  then those of its low-resolution version, `[3, H/scale, W/scale]`, one photograph after the other;
- `store.json`: `format`, `version`, `scale` and `photographs`, a list in the order of their names,
  each with `name` (its path below the folder that it came from), `height` and `width` of the
  high-resolution version, `offset` of its first byte, `crc32` of its bytes, and `files`: size in
  bytes and time of change in nanoseconds of the file, or the two files, that it was made from.

`store.json` is written last. Until then `unfinished.jsonl` stands in its place: the same header in
the first line, then one line for each photograph in `pixels.u8`.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mkdext.data.images import find_images

PIXELS = "pixels.u8"
INDEX = "store.json"
JOURNAL = "unfinished.jsonl"

_FORMAT, _VERSION = "mkdext store", 1

Levels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a store knows of one photograph."""

    name: str
    height: int
    width: int
    offset: int
    crc32: int
    files: list[list[int]]

    def high_bytes(self) -> int:
        """Size of the high-resolution version."""
        return 3 * self.height * self.width

    def end(self, scale: int) -> int:
        """First byte after the photograph."""
        return self.offset + self.high_bytes() + self.high_bytes() // scale**2


@dataclasses.dataclass(frozen=True, eq=False)
class StoredPair:
    """A photograph of a store with its low-resolution version.

    Its pixels are read from the disk when they are used, and are kept by the operating system as
    long as it has memory to spare.
    """

    path: Path
    """The store's folder and the photograph's name; there is no such file."""
    lr: Levels
    """`[3, h, w]`, not to be written to."""
    hr: Levels
    """`[3, scale*h, scale*w]`, not to be written to."""
    crc32: int
    """Of the bytes of `hr` and `lr` when they were written."""
    lr_is_given: bool
    """Whether `lr` was read from a file, not made from `hr`."""

    def pair(self) -> tuple[Tensor, Tensor]:
        """Copies of `lr` and `hr`."""
        return torch.from_numpy(self.lr.copy()), torch.from_numpy(self.hr.copy())

    def is_intact(self) -> bool:
        """Whether the pixels are those that were written; reads them all."""
        return checksum(self.hr, self.lr) == self.crc32


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, finished or not."""
    return any((folder / name).exists() for name in (INDEX, JOURNAL))


def read_store(folder: Path, scale: int | None = None) -> list[StoredPair]:
    """Open a store; no pixel is read yet.

    Args:
        folder: What `prepare_store` wrote.
        scale: The factor that is needed; none: any.

    Returns:
        The photographs, in the order in which `find_images` lists the folder they came from.

    Raises:
        ValueError: `folder` is no store, is unfinished, damaged or truncated, is of another format
            or of another scale.

    Example:
        >>> import tempfile
        >>> from mkdext.data import prepare_store
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (9, 8)).save(folder / "black.png")
        >>> store = prepare_store(folder, folder / "store", scale=2, workers=1).folder
        >>> [(pair.path.name, pair.lr.shape, pair.hr.shape) for pair in read_store(store)]
        [('black.png', (3, 4, 4), (3, 8, 8))]
    """
    stored_scale, entries = read_index(folder)
    if scale not in (None, stored_scale):
        raise ValueError(
            f"store {folder} is for scale {stored_scale}, not {scale}: prepare another with "
            f"--scale {scale}"
        )
    pixels = map_pixels(folder / PIXELS)
    expected = max(entry.end(stored_scale) for entry in entries)
    if len(pixels) != expected:
        raise ValueError(
            f"store {folder} is damaged: {PIXELS} must have {expected} bytes, got {len(pixels)}; "
            "delete the store and prepare it again"
        )
    return [stored_pair(folder, entry, stored_scale, pixels) for entry in entries]


def find_photographs(folder: Path, scale: int) -> list[Path] | list[StoredPair]:
    """What `ImagePairs` takes from a folder of image files or from a store, sorted by name.

    Args:
        folder: Either of them.
        scale: Downscaling factor.

    Raises:
        ValueError: As `find_images`, or as `read_store`.

    Example:
        >>> from mkdext.data import builtin_photographs
        >>> len(find_photographs(builtin_photographs("validation")[0].parent, scale=4)) > 3
        True
    """
    return read_store(folder, scale) if is_store(folder) else find_images(folder)


def read_index(folder: Path) -> tuple[int, list[Entry]]:
    """Scale and entries of a finished store.

    Raises:
        ValueError: As `read_store`, without a look at the pixels.
    """
    path = folder / INDEX
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        if (folder / JOURNAL).exists():
            raise ValueError(
                f"store {folder} is unfinished: the command that began it goes on with it"
            ) from None
        raise ValueError(f"{folder} is not a store: it has no {INDEX}") from None
    except OSError as error:
        raise ValueError(f"store {folder} cannot be read: {error.strerror}") from None
    except ValueError:  # neither text nor JSON
        content = None
    scale = check_header(folder, content)
    try:
        entries = [Entry(**entry) for entry in content["photographs"]]
        if not entries or not all(_is_possible(entry, scale) for entry in entries):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"store {folder} is damaged: {INDEX} has no list of photographs; delete the store and "
            "prepare it again"
        ) from None
    return scale, entries


def header(scale: int) -> dict[str, Any]:
    """What an index and a journal begin with."""
    return {"format": _FORMAT, "version": _VERSION, "scale": scale}


def check_header(folder: Path, content: object) -> int:
    """The scale in a header.

    Raises:
        ValueError: It is not the header of a store that this version reads.
    """
    if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
        raise ValueError(f"{folder} is not a store of mkdext, or its index is damaged")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"store {folder} is of version {content.get('version')!r}, this mkdext reads "
            f"version {_VERSION}: prepare it again"
        )
    scale = content.get("scale")
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"store {folder} is damaged: its scale is {scale!r}")
    return scale


def map_pixels(path: Path) -> Levels:
    """The bytes of a file as an array that is read where it is looked at.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # the system maps no empty file
        return np.empty(0, np.uint8)
    except OSError as error:
        raise ValueError(f"store {path.parent} has no readable {PIXELS}: {error}") from None
    return np.frombuffer(mapped, np.uint8)


def stored_pair(folder: Path, entry: Entry, scale: int, pixels: Levels) -> StoredPair:
    """Views of the pixels of one entry."""
    middle, end = entry.offset + entry.high_bytes(), entry.end(scale)
    high = pixels[entry.offset : middle].reshape(3, entry.height, entry.width)
    low = pixels[middle:end].reshape(3, entry.height // scale, entry.width // scale)
    return StoredPair(folder / entry.name, low, high, entry.crc32, len(entry.files) > 1)


def checksum(hr: Levels, lr: Levels) -> int:
    """CRC-32 of the bytes of a photograph, as they stand in a store."""
    return zlib.crc32(lr.ravel().data, zlib.crc32(hr.ravel().data))


def _is_possible(entry: Entry, scale: int) -> bool:
    sides = (entry.height, entry.width)
    return (
        isinstance(entry.name, str)
        and isinstance(entry.files, list)
        and all(isinstance(side, int) and side >= scale and side % scale == 0 for side in sides)
        and all(isinstance(number, int) and number >= 0 for number in (entry.offset, entry.crc32))
    )
