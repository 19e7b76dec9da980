"""PNG files, whose chunks are looked through here; Pillow decodes the pixels alone.

So nothing that a chunk says beside the pixels, however large or damaged, stands in the way, no
damage of the pixels goes unseen, and transparency counts for every depth.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import PngImagePlugin

from mkdext.data.decoding.decoded import Decoded, Header, Levels, turned_chunks
from mkdext.data.decoding.errors import BadImageError
from mkdext.data.decoding.exif import upright, without_orientation

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = ("IHDR", "PLTE", "IDAT", "IEND")
_KEPT = {"gAMA": 4, "cHRM": 32, "sRGB": 1, "cICP": 4, "mDCV": 24, "cLLI": 8, "pHYs": 9}
"""Chunks that say how the picture is meant, and their sizes."""
_READ = {*_KEPT, "tRNS", "iCCP", "eXIf", "acTL"}
_MOST_BYTES = 64 << 20  # of a chunk beside the pixels, and of a profile
_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


def png_header(file: BinaryIO) -> Header:
    """What is said before the pixels."""
    file.seek(len(_SIGNATURE))
    name, content = next(_chunks(file))
    if name != "IHDR" or len(content) != 13:
        raise BadImageError("cannot be decoded (it does not begin with a header)")
    width, height, depth, colour = struct.unpack_from(">IIBB", content)
    mode = _MODES.get(colour)
    if mode is None or width < 1 or height < 1:
        raise BadImageError("cannot be decoded (its header is impossible)")
    return Header(f"PNG {mode}{';16' * (depth == 16)}", width, height)


def decode_png(file: BinaryIO) -> Decoded:
    """Decode a picture.

    Raises:
        BadImageError: It is damaged, cut off or animated.
    """
    file.seek(len(_SIGNATURE))
    pixels = [_SIGNATURE]
    chunks: dict[str, bytes] = {}
    for name, content in _chunks(file):
        if name in _PIXELS:
            pixels.append(_chunk(name, content))
        chunks.setdefault(name, content)
    animation = chunks.get("acTL", b"")
    if len(animation) == 8 and (frames := int.from_bytes(animation[:4], "big")) > 1:
        raise BadImageError(f"holds {frames} pages or frames; save one as a still image")
    levels = _with_transparency(_levels(b"".join(pixels)), chunks)
    orientation, exif = without_orientation(chunks.get("eXIf", b""))
    kept = {
        name: chunks[name] for name, size in _KEPT.items() if len(chunks.get(name, b"")) == size
    }
    return Decoded(
        upright(levels, orientation),
        _profile(chunks.get("iCCP", b"")),
        exif or None,
        turned_chunks(kept, orientation),
    )


def _chunks(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the chunks that matter; damaged ones beside the pixels are left out."""
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        name = kind.decode("latin-1")
        matters = kind[:1].isupper()
        if not kind.isalpha() or (matters and name not in _PIXELS):
            raise BadImageError(f"cannot be decoded (it has a chunk {name!r})")
        if not matters and (name not in _READ or size > _MOST_BYTES):
            file.seek(size + 4, io.SEEK_CUR)
            continue
        content, check = file.read(size), file.read(4)
        if len(content) < size or len(check) < 4:
            if matters and name != "IEND":
                raise BadImageError("cannot be decoded (it is cut off in the middle of its pixels)")
            return
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            if matters or name == "tRNS":
                raise BadImageError(f"cannot be decoded (its {name} chunk has the wrong checksum)")
            continue
        yield name, content
        if name == "IEND":
            return


def _chunk(name: str, content: bytes) -> bytes:
    body = name.encode() + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _levels(pixels: bytes) -> Levels:
    """Levels of one channel for grey and for the numbers of a palette's colours."""
    file = PngImagePlugin.PngImageFile(io.BytesIO(pixels))
    raw_mode = file.tile[0][3] if file.tile else ""
    if raw_mode == "LA;16B":
        # Its four bytes a pixel are declared as four channels.
        file.tile = [tile._replace(args="RGBA") for tile in file.tile]
        return np.asarray(file).view(">u2").astype(np.uint16)
    if raw_mode in ("RGB;16B", "RGBA;16B"):
        # Pillow gives the higher byte, and the lower one with the bytes declared in other order.
        again = PngImagePlugin.PngImageFile(io.BytesIO(pixels))
        again.tile = [tile._replace(args=raw_mode[:-1] + "L") for tile in again.tile]
        high, low = np.asarray(file), np.asarray(again)
        whole: Levels = high.astype(np.uint16) << 8 | low
        return whole
    levels: Levels = np.asarray(file.convert("L") if file.mode == "1" else file)
    return levels if levels.ndim == 3 else levels[..., None]


def _with_transparency(levels: Levels, chunks: dict[str, bytes]) -> Levels:
    """Levels with the colours of a palette, and with alpha if a chunk says what is transparent."""
    depth, colour = chunks["IHDR"][8:10]
    transparent = chunks.get("tRNS")
    if colour == 3:
        return _of_palette(levels, chunks.get("PLTE", b""), transparent)
    if transparent is None or colour not in (0, 2):
        return levels
    if len(transparent) != 2 * levels.shape[2]:
        raise BadImageError("cannot be decoded (its tRNS chunk has the wrong size)")
    highest = 2**depth - 1
    key: Any = np.frombuffer(transparent, ">u2") & highest
    white = np.iinfo(levels.dtype).max
    key = key * (white // highest)
    alpha = np.where((levels == key).all(axis=2, keepdims=True), 0, white)
    return np.concatenate((levels, alpha.astype(levels.dtype)), axis=2)


def _of_palette(numbers: Levels, palette: bytes, transparent: bytes | None) -> Levels:
    if len(palette) % 3 or numbers.max() >= len(palette) // 3:
        raise BadImageError("cannot be decoded (a pixel has a colour that its palette lacks)")
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if transparent is not None:
        alpha = np.full((len(colours), 1), 255, np.uint8)
        given = np.frombuffer(transparent[: len(colours)], np.uint8)
        alpha[: len(given), 0] = given
        colours = np.concatenate((colours, alpha), axis=1)
    return colours[numbers[..., 0]]


def _profile(content: bytes) -> bytes | None:
    """The profile of an iCCP chunk, if it is whole."""
    name, _, rest = content.partition(b"\0")
    if not name or rest[:1] != b"\0":
        return None
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(rest[1:], _MOST_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None
