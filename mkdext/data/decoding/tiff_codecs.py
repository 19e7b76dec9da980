"""The compressions of TIFF, undone by zlib and by the libtiff that comes with Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from mkdext.data.decoding.decoded import Levels
from mkdext.data.decoding.errors import BadImageError

JPEG = 7
_NONE, _FAX, _LZW, _PACKBITS, _LZMA, _ZSTD = 1, (2, 3, 4), 5, 32773, 34925, 50000
_DEFLATE = (8, 32946)
WITH_PREDICTOR = (*_DEFLATE, _LZW, _LZMA, _ZSTD)
_YCBCR = 6
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Tiff(TiffImagePlugin.TiffImageFile):
    """A strip or tile, which has no notes of its own."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def decompressed(
    stored: bytes,
    compression: int,
    fill_order: int,
    rows: int,
    row_bytes: int,
    columns: int,
    fax_options: int,
) -> bytes:
    """The bytes of a strip or tile, `rows * row_bytes` of them.

    Raises:
        BadImageError: They are damaged, or the compression is not known.
    """
    needed = rows * row_bytes
    if compression in _FAX:
        name = 292 if compression == 3 else 293
        tags = {266: fill_order, name: fax_options}
        image = _by_libtiff(stored, compression, (rows, columns, 1), 1, tags)
        return np.packbits(np.asarray(image), axis=1).tobytes()
    if fill_order == 2:
        stored = stored.translate(_REVERSED)
    if compression == _NONE:
        raw = stored[:needed]
    elif compression in _DEFLATE:
        # One byte more, so that the checksum at the end is reached.
        raw = zlib.decompressobj().decompress(stored, needed + 1)[:needed]
    elif compression in (_LZW, _PACKBITS, _LZMA, _ZSTD):
        raw = _by_libtiff(stored, compression, (rows, row_bytes, 1), 8, {}).tobytes()
    else:
        raise BadImageError(f"has an unknown compression ({compression}); save it as PNG")
    if len(raw) != needed:
        raise BadImageError("cannot be decoded (a part of its pixels is too short)")
    return raw


def jpeg_levels(
    stored: bytes,
    shape: tuple[int, int, int],
    photometric: int,
    tables: bytes | None,
    sampling: tuple[int, int],
) -> Levels:
    """Levels `[rows, columns, channels]` of a strip or tile that is compressed by JPEG."""
    tags: dict[int, Any] = {262: photometric}
    if tables is not None:
        tags[347] = bytes(tables)
    if photometric == _YCBCR:
        tags[530] = tuple(sampling)
    return np.asarray(_by_libtiff(stored, JPEG, shape, 8, tags)).reshape(shape)


def _by_libtiff(
    stored: bytes, compression: int, shape: tuple[int, int, int], bits: int, tags: dict[int, Any]
) -> Image.Image:
    """Decode a strip or tile as if it were the only one of a file."""
    rows, columns, channels = shape
    tags = {
        256: columns,
        257: rows,
        258: (bits,) * channels,
        259: compression,
        262: 1,
        277: channels,
        278: rows,
        279: len(stored),
        **tags,
    }
    image = _Tiff(io.BytesIO(_one_strip(stored, tags)))
    try:
        image.load()
    except OSError as error:
        raise BadImageError(f"cannot be decoded (a part of its pixels: {error})") from None
    return image


def _one_strip(stored: bytes, tags: dict[int, Any]) -> bytes:
    """A TIFF file of one strip, whose tags are integers, several of them, or bytes."""
    tags = dict(sorted({**tags, 273: 8}.items()))
    directory = 8 + len(stored) + len(stored) % 2
    values_at = directory + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, value in tags.items():
        kind, numbers = (7, value) if isinstance(value, bytes) else (4, value)
        if isinstance(value, tuple):
            kind = 3
        count = 1 if isinstance(numbers, int) else len(numbers)
        if kind == 4:
            content = struct.pack("<I", numbers)
        else:
            content = value if kind == 7 else struct.pack(f"<{count}H", *numbers)
        if len(content) > 4:
            content, values = struct.pack("<I", values_at + len(values)), values + content
            values += b"\0" * (len(values) % 2)
        entries += struct.pack("<HHI", tag, kind, count) + content.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", directory)
    padding = b"\0" * (len(stored) % 2)
    return b"".join(
        (head, stored, padding, struct.pack("<H", len(tags)), entries, bytes(4), values)
    )
