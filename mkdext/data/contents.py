"""What is in a folder of photographs or in a store."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from pathlib import Path

from torch import Tensor

from mkdext.data.decoding import read_header
from mkdext.data.duplicates import Fingerprint, fingerprint
from mkdext.data.folders import find_images, find_low_resolution, find_other_pictures
from mkdext.data.images import BadImage, Progress, check_images
from mkdext.data.store import is_store, read_store


@dataclasses.dataclass(frozen=True)
class Contents:
    """The photographs of a folder or store, in the order of their names."""

    folder: Path
    sizes: list[tuple[int, int]]
    """Width and height of each usable photograph."""
    kinds: Counter[str]
    """How many there are of each format and mode, such as `PNG RGB`."""
    fingerprints: list[Fingerprint]
    """Of each usable photograph."""
    bad: list[BadImage]
    """Files that cannot be used, or photographs of a store whose pixels have changed."""
    low_resolution: list[Path] = dataclasses.field(default_factory=list)
    """Files that seem to be small versions of others."""
    other_formats: list[Path] = dataclasses.field(default_factory=list)
    """Files that seem to be pictures of formats that are not read."""


def read_contents(folder: Path, progress: Progress = iter) -> Contents:
    """Decode every file of a folder, or read all of a store.

    Args:
        folder: Folder of image files, or a store, of which the high-resolution versions count.
        progress: Wraps the iteration over the files, to show how far it has come.

    Raises:
        ValueError: The folder is missing or empty, or the store cannot be opened.

    Example:
        >>> from mkdext.data import builtin_photographs
        >>> contents = read_contents(builtin_photographs("train")[0].parent)
        >>> contents.kinds["PNG RGB"] > 3
        True
    """
    if is_store(folder):
        return _of_store(folder, progress)
    found: dict[Path, tuple[tuple[int, int], str, Fingerprint]] = {}
    lock = threading.Lock()

    def look(path: Path, image: Tensor) -> None:
        height, width = image.shape[1:]
        facts = (width, height), read_header(path).kind, fingerprint(path, image)
        with lock:
            found[path] = facts

    paths = find_images(folder)
    good, bad = check_images(paths, progress=progress, use=look)
    facts = [found[path] for path in good]
    return Contents(
        folder,
        [size for size, _, _ in facts],
        Counter(kind for _, kind, _ in facts),
        [mark for _, _, mark in facts],
        bad,
        find_low_resolution(folder, paths),
        find_other_pictures(folder),
    )


def _of_store(folder: Path, progress: Progress) -> Contents:
    pairs = read_store(folder)
    sizes, marks, bad = [], [], []
    for pair, _ in zip(pairs, progress([pair.path for pair in pairs]), strict=True):
        if not pair.is_intact():
            bad.append(BadImage(pair.path, "has changed since it was written"))
            continue
        high = pair.pair()[1]
        sizes.append((high.shape[2], high.shape[1]))
        marks.append(fingerprint(pair.path, high))
    return Contents(folder, sizes, Counter({"stored RGB": len(sizes)}), marks, bad)
