"""Photographs that occur twice, above all among those to train on and those to test on.

A photograph is recognized by the signs of its lowest spatial frequencies: its luma is averaged to
32x32 pixels whatever its size, transformed by a two-dimensional discrete cosine transform, and of
the 16x16 lowest coefficients all but the mean are kept as -1, 0 (less than one level) or 1. The
similarity of two photographs is the cosine between these vectors. Mirroring changes the sign of odd
frequencies and a quarter turn changes rows with columns, so that all eight orientations in which a
training sees its patches are compared at no cost.

It finds a photograph again after re-encoding (JPEG of quality 20), resizing to a quarter, a change
of brightness, contrast or colour, conversion to grey, mirroring, quarter turns, and cropping of one
per cent of each side. It does not find smaller crops, rotations by other angles, or photographs
with hardly anything in them (less than 64 coefficients), which would be confused with each other.
Other views of the same scene may be found and may not.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

SIMILAR = 0.5
"""Cosine from which two photographs count as near-duplicates."""

_PIXELS, _FREQUENCIES = 32, 16
_LEAST_COEFFICIENTS = 64
_BLOCK = 1 << 22  # similarities that are in memory at a time

Signs = npt.NDArray[np.int8]


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a photograph is recognized by."""

    path: Path
    digest: bytes
    """Of size and pixels: equal for exact duplicates, in whatever files."""
    signs: Signs
    """Of the lowest frequencies, `[16, 16]`."""


@dataclasses.dataclass(frozen=True)
class Duplicate:
    """Two photographs that are the same."""

    first: Path
    second: Path
    similarity: float
    """At most 1."""
    is_exact: bool
    """Whether every pixel is equal."""


def fingerprint(path: Path, image: Tensor) -> Fingerprint:
    """Recognize a photograph.

    Args:
        path: What it is called.
        image: uint8 `[3, H, W]`.

    Example:
        >>> import torch
        >>> fingerprint(Path("blank"), torch.zeros(3, 40, 50, dtype=torch.uint8)).signs.any()
        np.False_
    """
    levels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    digest = hashlib.sha256(repr(levels.shape).encode())
    digest.update(levels.data)
    luma = Image.fromarray(levels).convert("L").convert("F")
    small = np.asarray(luma.resize((_PIXELS, _PIXELS), Image.Resampling.BOX))
    position = (2 * np.arange(_PIXELS) + 1) * np.pi / (2 * _PIXELS)
    cosines = np.cos(np.arange(_FREQUENCIES)[:, None] * position)
    cosines *= np.sqrt(2 / _PIXELS)
    coefficients = cosines @ small @ cosines.T
    coefficients[0, 0] = 0
    signs = np.sign(coefficients) * (np.abs(coefficients) >= 1)
    return Fingerprint(path, digest.digest(), signs.astype(np.int8))


def find_duplicates(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None = None
) -> list[Duplicate]:
    """Photographs of `first` that are also in `second`, or twice in `first` if there is no second.

    Returns:
        Each pair once, in the order of `first`.

    Example:
        >>> from mkdext.data import builtin_photographs, read_image
        >>> path = builtin_photographs("validation")[1]
        >>> cat = fingerprint(path, read_image(path))
        >>> tac = fingerprint(Path("mirrored"), read_image(path).flip(2))
        >>> [(d.second.name, d.is_exact) for d in find_duplicates([cat], [tac])]
        [('mirrored', False)]
    """
    others = first if second is None else second
    if not first or not others:
        return []
    turned = np.stack([_vectors([_turned(f.signs, turn) for f in others]) for turn in range(8)])
    columns = turned.reshape(-1, turned.shape[-1]).T
    digests = np.array([f.digest for f in others])
    found = []
    rows = max(1, _BLOCK // columns.shape[1])
    for begin in range(0, len(first), rows):
        block = first[begin : begin + rows]
        similarities = _vectors([f.signs for f in block]) @ columns
        best = similarities.reshape(len(block), 8, len(others)).max(axis=1)
        exact = np.array([f.digest for f in block])[:, None] == digests
        pairs = np.argwhere((best >= SIMILAR) | exact)
        for i, j in pairs.tolist():
            if second is None and j <= begin + i:
                continue
            similarity = 1.0 if exact[i, j] else float(best[i, j])
            duplicate = Duplicate(block[i].path, others[j].path, similarity, bool(exact[i, j]))
            found.append(duplicate)
    return found


def _turned(signs: Signs, turn: int) -> Signs:
    """The signs of one of the eight orientations of a photograph."""
    odd = np.where(np.arange(_FREQUENCIES) % 2, -1, 1).astype(np.int8)
    if turn & 1:
        signs = signs * odd
    if turn & 2:
        signs = signs * odd[:, None]
    return signs.T if turn & 4 else signs


def _vectors(signs: Sequence[Signs]) -> npt.NDArray[np.float32]:
    """Vectors of unit length `[N, 256]`; zeros for photographs with too little in them."""
    vectors = np.stack(signs).reshape(len(signs), -1).astype(np.float32)
    counts = np.abs(vectors).sum(axis=1, keepdims=True)
    lengths = np.where(counts >= _LEAST_COEFFICIENTS, np.sqrt(counts), np.inf)
    unit: npt.NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return unit
