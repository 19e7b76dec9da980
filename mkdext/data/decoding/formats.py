"""Which format a file is of, by its first bytes."""

from __future__ import annotations

from typing import Literal

from mkdext.data.decoding.errors import BadImageError

Format = Literal["PNG", "JPEG", "WebP", "BMP", "TIFF"]

FIRST_BYTES = 32

_OURS: tuple[tuple[bytes, Format], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_RAW = "camera's raw"
_OTHERS = (
    (b"GIF8", "GIF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"\0\0\1\0", "icon"),
    (b"\x8aMNG", "MNG"),
    (b"P5", "PGM"),
    (b"P6", "PPM"),
    (b"gimp xcf", "GIMP"),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"IIU\0", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"MMOR", _RAW),
    (b"FOVb", _RAW),
)
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": _RAW}


def format_of(first: bytes) -> Format:
    """The format of a file.

    Args:
        first: Its first `FIRST_BYTES` bytes.

    Raises:
        BadImageError: It is empty, of another format, or no picture.
    """
    if not first:
        raise BadImageError("is empty (0 bytes)")
    if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return "WebP"
    other = next((name for begin, name in _OTHERS if first.startswith(begin)), None)
    if first[4:8] == b"ftyp":
        other = _BRANDS.get(first[8:12], "HEIC")
    if first[8:10] == b"CR" and first[:2] in (b"II", b"MM"):
        other = _RAW
    if other is not None:
        raise BadImageError(f"is a {other} file; convert it to PNG, TIFF or JPEG")
    ours = next((name for begin, name in _OURS if first.startswith(begin)), None)
    if ours is None:
        raise BadImageError("not an image of a known format, whatever its name says")
    return ours
