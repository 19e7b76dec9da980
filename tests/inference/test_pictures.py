from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from mkdext.data import BadImageError
from mkdext.inference import PNGWriter, picture_size, read_picture


def pattern(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """Every level differs from its neighbours, all are at least 1."""
    highest = np.iinfo(dtype).max
    random = np.random.default_rng(0)
    return random.integers(1, highest, (12, 9, channels)).astype(dtype)


def save_png(path: Path, levels: np.ndarray) -> None:
    height, width, channels = levels.shape
    with PNGWriter(path, width, height, channels, levels.itemsize * 8) as file:
        file.write(levels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_kind_of_png_comes_back_as_it_was(tmp_path: Path, channels: int, dtype: type) -> None:
    path, levels = tmp_path / "picture.png", pattern(channels, dtype)
    save_png(path, levels)
    picture = read_picture(path)
    assert picture.levels.dtype == dtype
    assert np.array_equal(picture.levels, levels)
    assert picture.has_alpha == (channels in (2, 4))
    again = picture.like(picture.colours(), picture.alpha())
    assert np.array_equal(again, levels)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_16_bit_colours_of_a_tiff_are_not_cut_to_8(
    tmp_path: Path, byteorder: str, compression: str | None
) -> None:
    path, levels = tmp_path / "picture.tif", pattern(3, np.uint16)
    tifffile.imwrite(path, levels, byteorder=byteorder, photometric="rgb", compression=compression)
    assert np.array_equal(read_picture(path).levels, levels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_orientation_of_the_camera_is_applied_and_forgotten(
    tmp_path: Path, orientation: int, dtype: type
) -> None:
    levels = pattern(3, dtype)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    path = tmp_path / "picture.png"
    with PNGWriter(
        path, 9, 12, 3, levels.itemsize * 8, None, exif.tobytes().removeprefix(b"Exif\0\0")
    ) as file:
        file.write(levels)
    upright = {
        1: levels,
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: levels.transpose(1, 0, 2),
        6: levels[::-1].transpose(1, 0, 2),
        7: levels[::-1, ::-1].transpose(1, 0, 2),
        8: levels.transpose(1, 0, 2)[::-1],
    }[orientation]
    picture = read_picture(path)
    assert np.array_equal(picture.levels, upright)
    assert picture.exif is not None
    kept = Image.Exif()
    kept.load(b"Exif\0\0" + picture.exif)
    assert dict(kept) == {0x010F: "a camera"}
    assert len(picture.exif) == len(exif.tobytes().removeprefix(b"Exif\0\0"))


def test_a_palette_becomes_colour_with_its_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(pattern(3)).quantize(8)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert read_picture(tmp_path / "opaque.png").levels.shape == (12, 9, 3)
    levels = read_picture(tmp_path / "clear.png").levels
    assert np.array_equal(levels[..., 3] == 0, np.asarray(image) == 0)


def test_cmyk_becomes_rgb_and_loses_its_profile_of_inks(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    picture = read_picture(tmp_path / "red.jpg")
    assert picture.icc_profile is None
    red, green, blue = picture.levels[4, 4]
    assert red > 240 and max(green, blue) < 15


def test_the_profile_of_the_colours_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pattern(3)).save(tmp_path / "picture.jpg", icc_profile=profile)
    assert read_picture(tmp_path / "picture.jpg").icc_profile == profile


def test_colours_under_full_transparency_do_not_matter(tmp_path: Path) -> None:
    levels = pattern(4)
    levels[:, 4:, 3] = 0
    other = levels.copy()
    other[:, 4:, :3] = 255
    colours = []
    for number, version in enumerate((levels, other)):
        save_png(tmp_path / f"{number}.png", version)
        colours.append(read_picture(tmp_path / f"{number}.png").colours())
    assert torch.equal(*colours)
    seen = torch.from_numpy(levels[:, :4, :3].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(colours[0][:, :, :4], seen)


def test_grey_is_three_equal_colours_and_comes_back_grey(tmp_path: Path) -> None:
    save_png(tmp_path / "grey.png", pattern(1))
    picture = read_picture(tmp_path / "grey.png")
    colours = picture.colours()
    assert colours.shape == (3, 12, 9) and torch.equal(colours[0], colours[2])
    tinted = torch.tensor([0.6, 0.5, 0.4]).view(3, 1, 1).expand(3, 2, 2)
    assert picture.like(tinted, None).shape == (2, 2, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "cannot be read"),
        ("empty.png", "is empty"),
        ("text.png", "not an image"),
        ("cut.png", "cannot be decoded"),
        ("pages.tif", "holds 2 pages"),
        ("float.tif", "has signed, 32-bit or floating-point pixels"),
        ("bomb.png", "has more than 178956970 pixels"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    image = Image.fromarray(pattern(3))
    if name == "empty.png":
        path.touch()
    elif name == "text.png":
        path.write_text("dear reader")
    elif name == "cut.png":
        image.resize((200, 200)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif name == "pages.tif":
        image.save(path, save_all=True, append_images=[image])
    elif name == "float.tif":
        image.convert("F").save(path)
    elif name == "bomb.png":
        with PNGWriter(path, 50_000, 50_000, 3, 8) as file:
            file.write(np.zeros((1, 50_000, 3), np.uint8))
    with pytest.raises(BadImageError, match=message):
        read_picture(path)


def test_the_size_is_told_without_decoding(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "black.png")
    whole = (tmp_path / "black.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])
    assert picture_size(tmp_path / "cut.png") == (300, 200)
