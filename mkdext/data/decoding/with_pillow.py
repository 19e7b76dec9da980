"""JPEG, WebP and BMP files, decoded by Pillow."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, WebPImagePlugin

from mkdext.data.decoding.colours import rgb_of_cmyk
from mkdext.data.decoding.decoded import Decoded, Header, Levels, resolution_chunk, turned_chunks
from mkdext.data.decoding.errors import BadImageError
from mkdext.data.decoding.exif import upright, without_orientation
from mkdext.data.decoding.formats import Format


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG file, also the first picture of a camera's several."""

    def getexif(self) -> Image.Exif:
        # Pillow looks for a resolution there, and warns of what it cannot read.
        return Image.Exif()


_READERS: dict[Format, type[ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}


def pillow_header(file: BinaryIO, format: Format) -> Header:
    """What is said before the pixels."""
    image = _opened(file, format)
    return Header(f"{format} {image.mode}", *image.size)


def decode_with_pillow(file: BinaryIO, format: Format) -> Decoded:
    """Decode a picture.

    Raises:
        BadImageError: It is animated.
    """
    image = _opened(file, format)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise BadImageError(f"holds {frames} pages or frames; save one as a still image")
    image.load()
    icc_profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        levels, icc_profile = rgb_of_cmyk(image, icc_profile), None
    else:
        levels = _levels(image)
    orientation, exif = without_orientation(image.info.get("exif", b""))
    has_resolution = "dpi" in image.info and image.info.get("jfif_unit", 1) in (1, 2)
    chunks = resolution_chunk(*image.info["dpi"]) if has_resolution else {}
    return Decoded(
        upright(levels, orientation),
        icc_profile or None,
        exif or None,
        turned_chunks(chunks, orientation),
    )


def _opened(file: BinaryIO, format: Format) -> ImageFile.ImageFile:
    file.seek(0)
    # Not by `Image.open`, which warns of large pictures by the filters of the whole process.
    return _READERS[format](file)


def _levels(image: ImageFile.ImageFile) -> Levels:
    if image.mode == "P":
        colours = len(image.palette.palette) // len(image.palette.mode) if image.palette else 0
        if np.asarray(image).max() >= colours:
            raise BadImageError("cannot be decoded (a pixel has a colour that its palette lacks)")
    if image.mode not in ("L", "RGB", "RGBA"):
        levels = np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
    else:
        levels = np.asarray(image)
    return levels if levels.ndim == 3 else levels[..., None]
