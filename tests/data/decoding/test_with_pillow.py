"""JPEG, WebP and BMP files."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mkdext.data import BadImageError, read_image
from mkdext.inference import read_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def picture() -> Image.Image:
    y, x = np.mgrid[:40, :56]
    waves = np.stack([np.sin(x / 5), np.sin(y / 7), np.sin((x + y) / 3)], -1)
    return Image.fromarray((127 + 100 * waves).astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_read_alike_by_both_readers(
    tmp_path: Path, picture: Image.Image, mode: str, options: dict[str, int]
) -> None:
    path = tmp_path / "a.jfif"
    picture.convert(mode).save(path, "JPEG", **options)
    expected = np.asarray(Image.open(path)).reshape(40, 56, -1)
    assert np.array_equal(read_picture(path).levels, expected)
    colours = np.broadcast_to(expected, (40, 56, 3))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), colours)


@pytest.mark.parametrize(
    "profile",
    [None, SRGB, SRGB[:200], b"not a profile"],
    ids=["none", "of other colours", "cut", "no profile"],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_inks_with_an_unfit_profile_are_read_as_without_one_by_both_readers(
    tmp_path: Path, picture: Image.Image, name: str, profile: bytes | None
) -> None:
    picture.convert("CMYK").save(tmp_path / name, icc_profile=profile)
    with Image.open(tmp_path / name) as file:
        expected = np.asarray(file.convert("RGB"))
    result = read_picture(tmp_path / name)
    assert np.array_equal(result.levels, expected)
    assert result.icc_profile is None
    assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("mode", "profile", "fits"),
    [
        ("RGB", SRGB, True),
        ("RGB", SRGB[:300], False),
        ("RGB", b"not a profile", False),
        ("L", SRGB, False),
    ],
)
def test_only_a_profile_that_fits_is_kept(
    tmp_path: Path, picture: Image.Image, mode: str, profile: bytes, fits: bool
) -> None:
    picture.convert(mode).save(tmp_path / "a.jpg", icc_profile=profile)
    assert read_picture(tmp_path / "a.jpg").icc_profile == (profile if fits else None)


def test_a_profile_of_greys_fits_grey_pictures_only(tmp_path: Path, picture: Image.Image) -> None:
    profile = grey_profile()
    for mode, kept in (("L", profile), ("RGB", None)):
        picture.convert(mode).save(tmp_path / "a.jpg", icc_profile=profile)
        assert read_picture(tmp_path / "a.jpg").icc_profile == kept


def grey_profile() -> bytes:
    """A colour profile of greys: a white point and a straight tone curve."""
    d50 = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    tags = ((b"wtpt", b"XYZ \0\0\0\0" + d50), (b"kTRC", b"curv" + bytes(8)))
    table, values = struct.pack(">I", len(tags)), b""
    for name, value in tags:
        table += name + struct.pack(">2I", 128 + 4 + 12 * len(tags) + len(values), len(value))
        values += value
    size = struct.pack(">I", 128 + len(table) + len(values))
    head = size + bytes(4) + struct.pack(">I", 0x02100000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    head += bytes(28) + d50
    return head.ljust(128, b"\0") + table + values


def test_the_resolution_of_a_jpeg_is_kept(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.jpg", dpi=(300, 150))
    picture.save(tmp_path / "b.jpg")
    pixels_per_metre = struct.pack(">IIB", 11811, 5906, 1)
    assert read_picture(tmp_path / "a.jpg").chunks == {"pHYs": pixels_per_metre}
    assert read_picture(tmp_path / "b.jpg").chunks == {}


def test_damaged_notes_of_a_camera_are_no_reason_to_warn(
    tmp_path: Path, picture: Image.Image
) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + bytes(range(40))
    picture.save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert read_picture(tmp_path / "a.jpg").levels.shape == (40, 56, 3)
        assert read_image(tmp_path / "a.jpg").shape == (3, 40, 56)
    assert not seen


def test_a_jpeg_of_12_bits_is_refused(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.jpg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[content.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImageError, match="cannot be decoded"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_orientation_of_the_camera_is_applied_and_other_notes_kept(
    tmp_path: Path, picture: Image.Image, name: str
) -> None:
    notes = Image.Exif()
    notes[0x0112], notes[0x010F], notes[0x0131] = 6, "a camera", "a program"
    picture.save(tmp_path / name, exif=notes, **({"lossless": True} if "webp" in name else {}))
    result = read_picture(tmp_path / name)
    assert np.array_equal(result.levels, np.rot90(np.asarray(Image.open(tmp_path / name)), -1))
    assert result.exif is not None
    kept = Image.Exif()
    kept.load(result.exif)
    assert dict(kept) == {0x010F: "a camera", 0x0131: "a program"}


def bmp(path: Path, bits: int, data: bytes, height: int, masks: bytes = b"", kind: int = 0) -> None:
    """Two pixels wide."""
    size = 56 if masks else 40
    header = struct.pack("<IiiHHIIiiII", size, 2, height, 1, bits, kind, len(data), 0, 0, 0, 0)
    start = 14 + size
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    path.write_bytes(head + header + masks + data)


def test_bmp_rows_may_run_down_or_up_with_or_without_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    pixels = np.array([[[1, 2, 3, 4], [5, 6, 7, 8]], [[9, 10, 11, 12], [13, 14, 15, 16]]], np.uint8)
    rgba = pixels[..., [2, 1, 0, 3]]
    bmp(path, 32, pixels.tobytes(), height=-2)
    assert np.array_equal(read_picture(path).levels, rgba[..., :3])
    bmp(path, 32, pixels.tobytes(), height=2)
    assert np.array_equal(read_picture(path).levels, rgba[::-1, :, :3])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    bmp(path, 32, pixels.tobytes(), -2, masks, kind=3)
    assert np.array_equal(read_picture(path).levels, rgba)
    with pytest.raises(BadImageError, match="transparent"):
        read_image(path)


def test_16_bit_bmp_spans_all_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    masks = struct.pack("<4I", 0xF800, 0x7E0, 0x1F, 0)
    bmp(path, 16, struct.pack("<2H", 0xFFFF, 0xF800), 1, masks, kind=3)
    assert read_picture(path).levels.tolist() == [[[255, 255, 255], [255, 0, 0]]]
    bmp(path, 16, struct.pack("<2H", 0x7FFF, 0x7C00), 1)
    assert read_picture(path).levels.tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_a_run_length_encoded_bmp_is_read(tmp_path: Path) -> None:
    palette = b"".join(struct.pack("<4B", 3 * i % 256, i, 255 - i, 0) for i in range(256))
    rows = bytes([2, 7, 0, 0, 2, 9, 0, 1])
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 54 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start)
    (tmp_path / "a.bmp").write_bytes(head + header + palette + rows)
    expected = [[[246, 9, 27]] * 2, [[248, 7, 21]] * 2]
    assert read_picture(tmp_path / "a.bmp").levels.tolist() == expected
