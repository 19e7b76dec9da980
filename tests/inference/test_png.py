from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mkdext.inference import PNGWriter


def levels(channels: int, bits: int) -> np.ndarray:
    """Smooth and rough rows, so that every filter of PNG is the best for some."""
    y, x = np.mgrid[:40, :33]
    random = np.random.default_rng(0).integers(0, 2**bits, (40, 33, channels))
    smooth = (x * 7 + (y // 2) * 31)[..., None] * np.arange(1, channels + 1)
    mixed = np.where((y % 10 < 4)[..., None], random, smooth % 2**bits)
    return mixed.astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pillow_reads_what_was_written_row_by_row(tmp_path: Path, channels: int) -> None:
    path, picture = tmp_path / "picture.png", levels(channels, 8)
    with PNGWriter(path, 33, 40, channels, 8) as file:
        for first, last in ((0, 1), (1, 17), (17, 40)):
            file.write(picture[first:last])
    with Image.open(path) as image:
        assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        assert np.array_equal(np.asarray(image).reshape(picture.shape), picture)


def test_16_bits_are_written_whole(tmp_path: Path) -> None:
    path, picture = tmp_path / "picture.png", levels(1, 16)
    with PNGWriter(path, 33, 40, 1, 16) as file:
        file.write(picture)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), picture[..., 0])


def test_profile_and_exif_are_found_by_pillow(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    notes = Image.Exif()
    notes[0x010F] = "a camera"
    exif = notes.tobytes().removeprefix(b"Exif\0\0")
    with PNGWriter(path, 33, 40, 3, 8, profile, exif) as file:
        file.write(levels(3, 8))
    with Image.open(path) as image:
        assert image.info["icc_profile"] == profile
        assert image.getexif()[0x010F] == "a camera"


def test_a_photograph_takes_about_the_room_that_pillow_gives_it(tmp_path: Path) -> None:
    from mkdext.data import builtin_photographs, read_image

    picture = read_image(builtin_photographs("validation")[0])[:, :128, :160]
    rows = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    with PNGWriter(tmp_path / "ours.png", 160, 128, 3, 8) as file:
        file.write(rows)
    theirs = io.BytesIO()
    Image.fromarray(rows).save(theirs, "png")
    assert (tmp_path / "ours.png").stat().st_size < 1.1 * len(theirs.getvalue())
