"""What the readers of all formats return."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy.typing as npt

Levels = npt.NDArray[Any]
"""uint8 or uint16 `[H, W, channels]`: grey, grey and alpha, RGB or RGBA."""


class Header(NamedTuple):
    """What a file says of its picture before any pixel."""

    kind: str
    """Format and mode, such as `PNG RGB` or `TIFF L;16`."""
    width: int
    """In pixels, as stored."""
    height: int


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A picture as it is in its file, but upright."""

    levels: Levels
    icc_profile: bytes | None = None
    """Meaning of the colours, as the file has it: unfit or damaged, perhaps."""
    exif: bytes | None = None
    """The camera's notes from their TIFF header on, without orientation."""
    chunks: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """What PNG has chunks for: gAMA, cHRM, sRGB, cICP, mDCV, cLLI, pHYs, by name."""


def resolution_chunk(x: float, y: float) -> dict[str, bytes]:
    """The chunk of a resolution in dots per inch, if it is one."""
    per_metre = [round(dots / 0.0254) for dots in (x, y)]
    if not all(0 < number < 2**31 for number in per_metre):
        return {}
    return {"pHYs": struct.pack(">IIB", *per_metre, 1)}


def turned_chunks(chunks: Mapping[str, bytes], orientation: int) -> dict[str, bytes]:
    """Chunks of a picture whose width and height change places if the orientation asks for it."""
    turned = dict(chunks)
    if orientation >= 5 and "pHYs" in turned:
        x, y, unit = struct.unpack(">IIB", turned["pHYs"])
        turned["pHYs"] = struct.pack(">IIB", y, x, unit)
    return turned
