"""Picture files, decoded exactly or refused: PNG, JPEG, WebP, BMP and TIFF."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mkdext.data.decoding.colours import profile_fits
from mkdext.data.decoding.decoded import Decoded, Header, Levels
from mkdext.data.decoding.errors import BadImageError, told_as_bad_image
from mkdext.data.decoding.formats import FIRST_BYTES, Format, format_of
from mkdext.data.decoding.png import decode_png, png_header
from mkdext.data.decoding.tiff import decode_tiff, tiff_header
from mkdext.data.decoding.with_pillow import decode_with_pillow, pillow_header

__all__ = [
    "BadImageError",
    "Decoded",
    "Header",
    "Levels",
    "decode",
    "profile_fits",
    "read_header",
]


def read_header(path: Path) -> Header:
    """What a picture is, without decoding it.

    Raises:
        BadImageError: The file is missing, unreadable, or no picture.
    """
    with told_as_bad_image(), _opened(path) as (file, format):
        return _header(file, format)


def decode(path: Path, most_pixels: float) -> Decoded:
    """Decode a picture.

    A palette and inks become RGB, levels of less than 8 bits become those of 8, a camera's
    orientation is applied. Channels of a TIFF that it does not say to be colour or alpha are left
    out. Damaged notes beside the pixels (a camera's, of text, profiles) do not count.

    Args:
        path: The file.
        most_pixels: Pixels up to which it is decoded at all.

    Raises:
        BadImageError: The file is missing, unreadable, no regular file, no picture, damaged, too
            large, of several pages or frames, or its levels are neither whole numbers of 1, 2, 4, 8
            or 16 bits nor sure to be understood.
    """
    with told_as_bad_image(), _opened(path) as (file, format):
        header = _header(file, format)
        if header.width * header.height > most_pixels:
            raise BadImageError(
                f"has more than {most_pixels} pixels; cut it into smaller photographs"
            )
        if format == "PNG":
            return decode_png(file)
        if format == "TIFF":
            return decode_tiff(file)
        return decode_with_pillow(file, format)


def _header(file: BinaryIO, format: Format) -> Header:
    if format == "PNG":
        return png_header(file)
    if format == "TIFF":
        return tiff_header(file)
    return pillow_header(file, format)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Format]]:
    # A pipe is opened without waiting for its writer, to be refused; Windows has none in folders.
    at_once = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | at_once)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadImageError("is a pipe or a device, not a file")
        yield file, format_of(file.read(FIRST_BYTES))
