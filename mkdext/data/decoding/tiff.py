"""TIFF files as scanners, cameras and microscopes write them, decoded exactly or refused.

tifffile reads what a file says of itself; strips and tiles are put together here, each only if it
is as long as it must be.
"""

from __future__ import annotations

import logging
import math
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from mkdext.data.decoding.colours import rgb_of_cmyk
from mkdext.data.decoding.decoded import Decoded, Header, Levels, resolution_chunk, turned_chunks
from mkdext.data.decoding.errors import BadImageError
from mkdext.data.decoding.exif import upright
from mkdext.data.decoding.tiff_codecs import JPEG, WITH_PREDICTOR, decompressed, jpeg_levels

# What it cannot make sense of it logs, to the terminal if nobody listens.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
_CHANNELS = {_WHITE_IS_ZERO: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _INKS: 4, _YCBCR: 3}
_MODES = {_WHITE_IS_ZERO: "L", _GREY: "L", _RGB: "RGB", _PALETTE: "P", _INKS: "CMYK", _YCBCR: "RGB"}
_REDUCED, _MASK = 1, 4  # bits of what a page is for
_PREMULTIPLIED, _ALPHA = 1, 2  # what a further channel is for
_DOTS = {2: 1.0, 3: 2.54}  # per inch, by unit


class _Layout(NamedTuple):
    """How the pixels of a page are stored."""

    width: int
    height: int
    bits: int
    channels: int
    photometric: int
    is_planar: bool
    part: tuple[int, int]
    """Rows and columns of a tile, or of a strip but the last."""


def tiff_header(file: BinaryIO) -> Header:
    """What is said before the pixels."""
    page = _page(file)
    layout = _layout(page)
    mode = _MODES[layout.photometric]
    return Header(f"TIFF {mode}{';16' * (layout.bits == 16)}", layout.width, layout.height)


def decode_tiff(file: BinaryIO) -> Decoded:
    """Decode a picture.

    Raises:
        BadImageError: It is damaged, has several pages, or is stored in a way that is not known.
    """
    page = _page(file)
    layout = _layout(page)
    levels = _levels(file, page, layout)
    profile = _value(page, 34675)
    icc_profile = bytes(profile) if profile is not None else None
    highest = 2**layout.bits - 1
    if layout.photometric == _PALETTE:
        levels = _of_palette(levels, _value(page, 320), highest)
    elif layout.photometric == _INKS:
        image = Image.frombytes("CMYK", (layout.width, layout.height), levels.tobytes())
        levels, icc_profile = rgb_of_cmyk(image, icc_profile), None
    else:
        if layout.photometric == _WHITE_IS_ZERO:
            levels[..., 0] = highest - levels[..., 0]
        if layout.bits < 8:
            levels *= 255 // highest
        levels = _with_alpha(levels, _CHANNELS[layout.photometric], _others(page, layout))
    orientation = _value(page, 274, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    return Decoded(
        upright(levels, orientation),
        icc_profile,
        chunks=turned_chunks(_resolution(page), orientation),
    )


def _page(file: BinaryIO) -> tifffile.TiffPage:
    """The page of the picture itself, which must be the only one beside smaller versions of it."""
    file.seek(0)
    tiff = tifffile.TiffFile(file, name="picture")
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    whole = [page for page in pages if not _value(page, 254, 0) & (_REDUCED | _MASK)]
    # ImageJ writes one page and lets the others follow it.
    images = int((tiff.imagej_metadata or {}).get("images", 1)) if tiff.is_imagej else 1
    if max(len(whole), images) > 1:
        count = max(len(whole), images)
        raise BadImageError(f"holds {count} pages or frames; save one as a still image")
    if not whole or whole[0] is not pages[0]:
        raise BadImageError(
            "starts with a preview, as a camera's raw file does; convert it to PNG, TIFF or JPEG"
        )
    return whole[0]


def _layout(page: tifffile.TiffPage) -> _Layout:
    photometric = _value(page, 262)
    if photometric not in _CHANNELS:
        raise BadImageError(
            "has colours that are neither grey, RGB, a palette nor CMYK; save it as RGB"
        )
    compression, channels = _value(page, 259, 1), _value(page, 277, 1)
    if photometric == _YCBCR and compression != JPEG:
        raise BadImageError("has YCbCr colours without JPEG compression; save it as RGB")
    bits = _all_the_same(_value(page, 258, 1), "bits a channel")
    formats = _all_the_same(_value(page, 339, 1), "kinds of numbers")
    if formats not in (1, 4) or bits > 16:
        raise BadImageError(
            "has signed, 32-bit or floating-point pixels; save it with 8 or 16 bits"
        )
    if bits not in (1, 2, 4, 8, 16) or (bits == 16 and photometric == _INKS):
        raise BadImageError(f"has {bits} bits a channel; save it as RGB with 8 or 16 bits")
    own = _CHANNELS[photometric]
    if channels < own or (photometric in (_PALETTE, _INKS) and channels > own):
        raise BadImageError(f"has {channels} channels where {own} are needed; save it as RGB")
    if photometric == _INKS and _value(page, 332, 1) != 1:
        raise BadImageError("has inks other than CMYK; save it as RGB")
    width, height = _value(page, 256), _value(page, 257)
    if not width or not height or _value(page, 32997, 1) != 1:
        raise BadImageError("has no size, or is three-dimensional")
    if page.is_tiled:
        part = (_value(page, 323), _value(page, 322))
    else:
        part = (min(_value(page, 278, height), height), width)
    if not all(part):
        raise BadImageError("does not give the size of its parts")
    return _Layout(
        width, height, bits, channels, photometric, _value(page, 284, 1) == 2 and channels > 1, part
    )


def _levels(file: BinaryIO, page: tifffile.TiffPage, layout: _Layout) -> Levels:
    """Levels as stored, `[H, W, channels]`."""
    down, across = (
        math.ceil(whole / part)
        for whole, part in zip((layout.height, layout.width), layout.part, strict=True)
    )
    planes = layout.channels if layout.is_planar else 1
    offsets, counts = page.dataoffsets, page.databytecounts
    parts = planes * down * across
    if not len(offsets) == len(counts) == parts:
        raise BadImageError(f"cannot be decoded (it has {len(offsets)} parts, not {parts})")
    levels = np.empty(
        (layout.height, layout.width, layout.channels), np.uint16 if layout.bits == 16 else np.uint8
    )
    places = ((p, y, x) for p in range(planes) for y in range(down) for x in range(across))
    for (plane, y, x), offset, count in zip(places, offsets, counts, strict=True):
        file.seek(offset)
        stored = file.read(count) if offset > 0 else b""
        if not stored or len(stored) < count:
            raise BadImageError(
                "cannot be decoded (it is cut off, or parts of its pixels are missing)"
            )
        top, left = y * layout.part[0], x * layout.part[1]
        rows = layout.part[0] if page.is_tiled else min(layout.part[0], layout.height - top)
        part = _part(stored, page, layout, rows)
        place = levels[top : top + rows, left : left + layout.part[1]]
        if layout.is_planar:
            place = place[..., plane : plane + 1]
        place[...] = part[: place.shape[0], : place.shape[1]]
    return levels


def _part(stored: bytes, page: tifffile.TiffPage, layout: _Layout, rows: int) -> Levels:
    """Levels of a strip or tile."""
    columns = layout.part[1]
    channels = 1 if layout.is_planar else layout.channels
    compression, fill_order = _value(page, 259, 1), _value(page, 266, 1)
    if compression == JPEG:
        if (
            channels != layout.channels
            or layout.bits != 8
            or layout.photometric in (_INKS, _PALETTE)
        ):
            raise BadImageError("is compressed by JPEG in an unknown way; save it as PNG")
        tables, sampling = _value(page, 347), _value(page, 530, (2, 2))
        shape = (rows, columns, channels)
        return jpeg_levels(stored, shape, layout.photometric, tables, sampling)
    row_bytes = math.ceil(columns * channels * layout.bits / 8)
    options = _value(page, 292 if compression == 3 else 293, 0)
    raw = decompressed(stored, compression, fill_order, rows, row_bytes, columns, options)
    values = np.frombuffer(raw, np.uint8).reshape(rows, row_bytes)
    if layout.bits < 8:
        values = _unpacked(values, layout.bits)[:, : columns * channels]
    elif layout.bits == 16:
        values = values.view(f"{page.parent.byteorder}u2").astype(np.uint16)
    part: Levels = values.reshape(rows, columns, channels)
    predictor = _value(page, 317, 1)
    if predictor == 1:
        return part
    if predictor != 2 or compression not in WITH_PREDICTOR or layout.bits < 8:
        raise BadImageError("is compressed with an unknown predictor; save it as PNG")
    return np.cumsum(part, axis=1, dtype=part.dtype)


def _unpacked(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Numbers of less than 8 bits, the first in the highest bits."""
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    unpacked = values[..., None] >> shifts & np.uint8(2**bits - 1)
    return unpacked.reshape(len(values), -1)


def _of_palette(numbers: Levels, given: Any, highest: int) -> Levels:
    entries = np.asarray(() if given is None else given, np.uint16)
    if entries.size != 3 * (highest + 1):
        raise BadImageError("cannot be decoded (its palette has the wrong size)")
    palette: Levels = entries.reshape(3, -1).T
    if palette.max() < 256:  # as some programs write it
        palette = palette.astype(np.uint8)
    elif not (palette & 255).any() or not (palette % 257).any():
        palette = (palette >> 8).astype(np.uint8)
    return palette[numbers[..., 0]]


def _others(page: tifffile.TiffPage, layout: _Layout) -> list[int]:
    """What each channel beside the colours is for."""
    count = layout.channels - _CHANNELS[layout.photometric]
    given = _value(page, 338)
    if given is None:
        # Programs that do not say it mean alpha by a single one.
        return [_ALPHA] if count == 1 else [0] * count
    kinds = list(given) if isinstance(given, tuple) else [int(given)]
    if len(kinds) != count:
        raise BadImageError("cannot be decoded (it describes other channels than it has)")
    return kinds


def _with_alpha(levels: Levels, own: int, others: list[int]) -> Levels:
    """The first `own` channels, and the first of the others that is opacity."""
    place = next((i for i, kind in enumerate(others) if kind in (_PREMULTIPLIED, _ALPHA)), None)
    colours = levels[..., :own]
    if place is None:
        return colours
    alpha = levels[..., own + place, None]
    if others[place] == _PREMULTIPLIED:
        white = np.iinfo(levels.dtype).max
        whole = np.rint(colours * (white / np.maximum(alpha, 1)))
        colours = np.minimum(whole, white).astype(levels.dtype)
    return np.concatenate((colours, alpha), axis=2)


def _resolution(page: tifffile.TiffPage) -> dict[str, bytes]:
    dots = _DOTS.get(_value(page, 296, 2))
    x, y = (_value(page, tag) for tag in (282, 283))
    if dots is None or not all(isinstance(side, tuple) and side[1] for side in (x, y)):
        return {}
    return resolution_chunk(x[0] / x[1] * dots, y[0] / y[1] * dots)


def _value(page: Any, tag: int, default: Any = None) -> Any:
    """What a tag holds."""
    found = page.tags.get(tag)
    return default if found is None else found.value


def _all_the_same(values: Any, what: str) -> int:
    kinds = set(values) if isinstance(values, tuple) else {values}
    if len(kinds) != 1:
        raise BadImageError(f"has channels of different {what}; save it as RGB with 8 or 16 bits")
    return int(kinds.pop())
