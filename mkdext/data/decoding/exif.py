"""The one note of a camera that changes a picture: which way it was held."""

from __future__ import annotations

import struct

import numpy as np

from mkdext.data.decoding.decoded import Levels

_ORIENTATION = 0x0112
_PREFIX = b"Exif\0\0"  # in JPEG, and in some WebP files


def without_orientation(exif: bytes) -> tuple[int, bytes]:
    """Take the orientation out of notes.

    Args:
        exif: The notes, from the TIFF header on or with the prefix of JPEG.

    Returns:
        1 to 8, and the notes from the TIFF header on, with everything else where it was. What is
        no such note, or damaged, has orientation 1 and comes back as it is.
    """
    exif = exif.removeprefix(_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is None or struct.unpack_from(f"{order}H", exif, 2) != (42,):
            return 1, exif
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        end = start + 2 + 12 * count
        if end + 4 > len(exif):
            return 1, exif
        for place in range(start + 2, end, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _ORIENTATION:
                # What follows in the directory moves up, what it points to stays.
                fewer = struct.pack(f"{order}H", count - 1)
                directory = exif[start + 2 : place] + exif[place + 12 : end + 4]
                rest = exif[start + 2 + len(directory) + 12 :]
                notes = exif[:start] + fewer + directory + bytes(12) + rest
                return value if 1 <= value <= 8 else 1, notes
    except struct.error:
        pass
    return 1, exif


def upright(levels: Levels, orientation: int) -> Levels:
    """Turn and mirror `[H, W, channels]` as an orientation asks for."""
    if orientation >= 5:
        levels = levels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        levels = levels[::-1]
    if orientation in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    return np.ascontiguousarray(levels)
