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
import functools
import mmap
import os
import reprlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mkdext._system.reading import entry, read_json, require_file
from mkdext.data.decoding import BadImageError
from mkdext.data.folders import find_high_resolution

PIXELS = "pixels.u8"
INDEX = "store.json"
JOURNAL = "unfinished.jsonl"

_FORMAT, _VERSION = "mkdext store", 1
_FIX = "delete the store and prepare it again"
_LONGEST_SIDE, _MOST_OFFSET = 1 << 24, 1 << 60

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
    low: Levels
    """`[3, h, w]`, not to be written to."""
    high: Levels
    """`[3, scale*h, scale*w]`, not to be written to."""
    crc32: int
    """Of the bytes of `high` and `low` when they were written."""
    low_is_given: bool
    """Whether `low` was read from a file, not made from `high`."""

    def pair(self) -> tuple[Tensor, Tensor]:
        """Copies of `low` and `high`."""
        return torch.from_numpy(self.low.copy()), torch.from_numpy(self.high.copy())

    def is_intact(self) -> bool:
        """Whether the pixels are those that were written; reads them all."""
        return checksum(self.high, self.low) == self.crc32

    def require_intact(self) -> None:
        """Check, once, that the pixels are those that were written.

        Raises:
            BadImageError: They are not.
        """
        if not self._was_intact:
            raise BadImageError(f"has changed since it was written; {_FIX}")

    @functools.cached_property
    def _was_intact(self) -> bool:
        return self.is_intact()


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, finished or not."""
    return any(os.path.exists(folder / name) for name in (INDEX, JOURNAL))


def read_store(folder: Path, scale: int | None = None) -> list[StoredPair]:
    """Open a store; no pixel is read yet.

    Args:
        folder: What `prepare_store` wrote.
        scale: The factor that is needed; default: any.

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
        >>> [(pair.path.name, pair.low.shape, pair.high.shape) for pair in read_store(store)]
        [('black.png', (3, 4, 4), (3, 8, 8))]
    """
    stored_scale, entries = read_index(folder)
    if scale not in (None, stored_scale):
        raise ValueError(
            f"store {folder} is for scale {stored_scale}, not {scale}: prepare another with "
            f"`scale` {scale}"
        )
    pixels = map_pixels(folder / PIXELS)
    expected = max(entry.end(stored_scale) for entry in entries)
    if len(pixels) != expected:
        raise ValueError(
            f"store {folder} is damaged: {PIXELS} must have {expected} bytes, got {len(pixels)}; "
            f"{_FIX}"
        )
    return [stored_pair(folder, entry, stored_scale, pixels) for entry in entries]


def find_photographs(
    folder: Path, scale: int, low: Path | None = None, low_flag: str | None = None
) -> list[Path] | list[StoredPair]:
    """What `ImagePairs` takes from a folder of image files or from a store, sorted by name.

    Args:
        folder: Either of them.
        scale: Downscaling factor.
        low: As `find_high_resolution` takes it, for a folder.
        low_flag: Likewise.

    Raises:
        ValueError: As `find_high_resolution`, or as `read_store`.

    Example:
        >>> from mkdext.data import builtin_photographs
        >>> len(find_photographs(builtin_photographs("validation")[0].parent, scale=4)) > 3
        True
    """
    if is_store(folder):
        return read_store(folder, scale)
    return find_high_resolution(folder, low, low_flag)


def require_made(
    photographs: Sequence[Path] | Sequence[StoredPair], folder: Path, degradation: str
) -> None:
    """Check that low-resolution versions are to be made, where another degradation is asked for.

    Raises:
        ValueError: They were given to the store.
    """
    if are_given(photographs):
        raise ValueError(
            f"`degradation` {degradation}: store {folder} has low-resolution versions that were "
            "given to it; leave one of them out"
        )


def are_given(photographs: Sequence[Path] | Sequence[StoredPair]) -> bool:
    """Whether low-resolution versions were given to a store."""
    return any(isinstance(p, StoredPair) and p.low_is_given for p in photographs)


def read_index(folder: Path) -> tuple[int, list[Entry]]:
    """Scale and entries of a finished store.

    Raises:
        ValueError: As `read_store`, without a look at the pixels.
    """
    if not os.path.lexists(folder / INDEX):
        if os.path.exists(folder / JOURNAL):
            raise ValueError(f"store {folder} is unfinished: the command that began it finishes it")
        raise ValueError(f"{folder} is not a store: it has no {INDEX}")
    try:
        content = read_json(folder / INDEX, INDEX)
    except ValueError as error:
        raise ValueError(f"store {folder} is damaged: {error}; {_FIX}") from None
    scale = check_header(folder, content)
    try:
        listed = entry(content, "photographs", list, INDEX)
        if not listed:
            raise ValueError(f"{INDEX} lists no photograph")
        return scale, [parse_entry(item, scale, f"photograph {i}") for i, item in enumerate(listed)]
    except ValueError as error:
        raise ValueError(f"store {folder} is damaged: {error}; {_FIX}") from None


def parse_entry(content: object, scale: int, what: str = "entry") -> Entry:
    """An entry of an index or a journal.

    Args:
        content: What the file holds.
        scale: Of the store.
        what: Begins the message.

    Raises:
        ValueError: It is none, or its numbers are impossible.
    """
    files = entry(content, "files", list, what)
    if not 1 <= len(files) <= 2 or not all(_is_state(file) for file in files):
        raise ValueError(f"{what}: 'files' must hold size and time of one or two files")
    numbers = {
        name: entry(content, name, int, what) for name in ("height", "width", "offset", "crc32")
    }
    for name in ("height", "width"):
        if not scale <= numbers[name] <= _LONGEST_SIDE or numbers[name] % scale:
            raise ValueError(
                f"{what}: {name!r} must be a multiple of {scale} up to {_LONGEST_SIDE}, "
                f"got {reprlib.repr(numbers[name])}"
            )
    for name, end in (("offset", _MOST_OFFSET), ("crc32", 1 << 32)):
        if not 0 <= numbers[name] < end:
            got = reprlib.repr(numbers[name])
            raise ValueError(f"{what}: {name!r} must be from 0 to {end - 1}, got {got}")
    return Entry(entry(content, "name", str, what), **numbers, files=files)


def header(scale: int) -> dict[str, Any]:
    """What an index and a journal begin with."""
    return {"format": _FORMAT, "version": _VERSION, "scale": scale}


def check_header(folder: Path, content: object) -> int:
    """The scale in a header.

    Raises:
        ValueError: It is not the header of a store that this version reads.
    """
    if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
        raise ValueError(
            f"{folder} is not a store of mkdext, or its index is damaged: give another folder, or "
            f"{_FIX}"
        )
    if content.get("version") != _VERSION:
        version = reprlib.repr(content.get("version"))
        raise ValueError(
            f"store {folder} is of version {version}, this mkdext reads version {_VERSION}: "
            "prepare it again"
        )
    scale = content.get("scale")
    if not isinstance(scale, int) or isinstance(scale, bool) or not 1 <= scale <= _LONGEST_SIDE:
        raise ValueError(f"store {folder} is damaged: its scale is {reprlib.repr(scale)}; {_FIX}")
    return scale


def map_pixels(path: Path) -> Levels:
    """The bytes of a file as an array that is read where it is looked at.

    Raises:
        ValueError: The file cannot be read.
    """
    require_file(path, f"store {path.parent} has no readable {PIXELS}, which")
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # the system maps no empty file
        return np.empty(0, np.uint8)
    except OSError as error:
        raise ValueError(
            f"store {path.parent} has no readable {PIXELS} ({error.strerror}); {_FIX}"
        ) from None
    return np.frombuffer(mapped, np.uint8)


def stored_pair(folder: Path, entry: Entry, scale: int, pixels: Levels) -> StoredPair:
    """Views of the pixels of one entry."""
    middle, end = entry.offset + entry.high_bytes(), entry.end(scale)
    high = pixels[entry.offset : middle].reshape(3, entry.height, entry.width)
    low = pixels[middle:end].reshape(3, entry.height // scale, entry.width // scale)
    return StoredPair(folder / entry.name, low, high, entry.crc32, len(entry.files) > 1)


def checksum(high: Levels, low: Levels) -> int:
    """CRC-32 of the bytes of a photograph, as they stand in a store."""
    return zlib.crc32(low.ravel().data, zlib.crc32(high.ravel().data))


def _is_state(file: object) -> bool:
    return (
        isinstance(file, list)
        and len(file) == 2
        and all(isinstance(number, int) and not isinstance(number, bool) for number in file)
    )
