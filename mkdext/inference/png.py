"""PNG files of 8 or 16 bits a channel, written a few rows at a time.

Pillow writes no colours of 16 bits and wants the whole picture in memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from mkdext.data import Levels

_BLOCK_BYTES = 1 << 18
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey and alpha, RGB, RGBA


class PNGWriter:
    """Writes a picture from its first row to its last, as a context manager.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> with PNGWriter(path, width=3, height=2, channels=1, bits=16) as file:
        ...     file.write(np.zeros((2, 3, 1), np.uint16))
        >>> path.read_bytes()[1:4]
        b'PNG'
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        channels: int,
        bits: int,
        icc_profile: bytes | None = None,
        exif: bytes | None = None,
        chunks: Mapping[str, bytes] | None = None,
    ) -> None:
        """Begin the file.

        Args:
            path: File to write.
            width: Pixels in a row.
            height: Rows.
            channels: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
            bits: 8 or 16 a channel.
            icc_profile: Meaning of the colours.
            exif: The camera's notes, from the TIFF header on.
            chunks: Names and contents of other chunks about colours and resolution.
        """
        self._file = path.open("wb")
        self._type = np.dtype(np.uint8 if bits == 8 else ">u2")
        self._step = channels * self._type.itemsize
        self._above = np.zeros((1, width * self._step), np.uint8)
        self._compress = zlib.compressobj()
        self._file.write(_SIGNATURE)
        header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0)
        self._chunk(b"IHDR", header)
        for name, content in (chunks or {}).items():
            self._chunk(name.encode(), content)
        if icc_profile is not None:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
        if exif is not None:
            self._chunk(b"eXIf", exif)

    def __enter__(self) -> PNGWriter:
        """Nothing is left to do."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the file; after an error, where it is."""
        if error is None:
            self._chunk(b"IDAT", self._compress.flush())
            self._chunk(b"IEND", b"")
        self._file.close()

    def write(self, levels: Levels) -> None:
        """Append rows, uint8 or uint16 `[rows, width, channels]`."""
        rows = np.ascontiguousarray(levels, self._type).view(np.uint8).reshape(len(levels), -1)
        # Few at a time, because filtering takes several times their memory.
        count = max(1, _BLOCK_BYTES // rows.shape[1])
        for first in range(0, len(rows), count):
            filtered = self._filtered(rows[first : first + count])
            self._chunk(b"IDAT", self._compress.compress(filtered))

    def _filtered(self, rows: npt.NDArray[np.uint8]) -> bytes:
        """Each row less what PNG's filter 1, 2 or 4 predicts, by whichever leaves least."""
        above = np.concatenate((self._above, rows[:-1]))
        self._above = rows[-1:]
        left, corner = (
            np.pad(bytes_[:, : -self._step], ((0, 0), (self._step, 0))) for bytes_ in (rows, above)
        )
        filtered = np.stack((rows - left, rows - above, rows - _paeth(left, above, corner)))
        size = np.abs(filtered.view(np.int8).astype(np.int16)).sum(axis=2)
        best = size.argmin(axis=0)
        numbers = np.array([1, 2, 4], np.uint8)[best]
        chosen = filtered[best, np.arange(len(rows))]
        return np.concatenate((numbers[:, None], chosen), axis=1).tobytes()

    def _chunk(self, name: bytes, content: bytes) -> None:
        if name == b"IDAT" and not content:
            return
        self._file.write(struct.pack(">I", len(content)) + name + content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))


def _paeth(
    left: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8], corner: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Whichever of three neighbours is nearest to `left + above - corner`, the first if several."""
    a, b, c = (bytes_.astype(np.int16) for bytes_ in (left, above, corner))
    to_left, to_above, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest = np.where(to_above <= to_corner, above, corner)
    is_left = (to_left <= to_above) & (to_left <= to_corner)
    return np.where(is_left, left, nearest)
