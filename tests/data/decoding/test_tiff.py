"""TIFF files of every kind, compared with the levels that were written."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from mkdext.data import BadImageError, read_image
from mkdext.inference import picture_size, read_picture

HEIGHT, WIDTH = 24, 20
RGB16 = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
RGB8 = (RGB16 >> 8).astype(np.uint8)
GREY16, GREY8 = RGB16[..., :1], RGB8[..., :1]
SMOOTH = np.stack([np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) * k for k in (1, 2, 3)], -1)
SMOOTH = SMOOTH.astype(np.uint8)
PLANES16, PLANES8 = np.moveaxis(RGB16, 2, 0), np.moveaxis(RGB8, 2, 0)

LZW, PACKBITS, LZMA, ZSTD = 5, 32773, 34925, 50000
NAMES = {LZW: "tiff_lzw", PACKBITS: "packbits", LZMA: "lzma", ZSTD: "zstd", 8: "tiff_adobe_deflate"}


def assert_read_as(path: Path, levels: np.ndarray) -> None:
    """Both readers give the levels, exactly."""
    picture = read_picture(path)
    assert picture.levels.dtype == levels.dtype
    assert np.array_equal(picture.levels, levels)
    eight = levels if levels.dtype == np.uint8 else np.rint(levels / 257).astype(np.uint8)
    alpha = levels.shape[2] in (2, 4)
    if alpha and eight[..., -1].min() < 255:
        with pytest.raises(BadImageError, match="transparent"):
            read_image(path)
        return
    colours = np.broadcast_to(eight[..., : levels.shape[2] - alpha], (*levels.shape[:2], 3))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), colours)


def compressed(rows: np.ndarray, compression: int) -> bytes:
    """Bytes `[rows, bytes of a row]` by the libtiff of Pillow."""
    file = io.BytesIO()
    info = {278: len(rows)}
    Image.fromarray(rows).save(file, "TIFF", compression=NAMES[compression], tiffinfo=info)
    file.seek(0)
    page = tifffile.TiffFile(file).pages[0]
    assert len(page.dataoffsets) == 1
    return file.getvalue()[page.dataoffsets[0] :][: page.databytecounts[0]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (16, 16)},
        {"rowsperstrip": 7},
        {"compression": "deflate"},
        {"compression": "deflate", "predictor": True},
        {"compression": "deflate", "predictor": True, "tile": (16, 32)},
        {"bigtiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["rgb", "planes", "grey"])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_and_grey_are_read_exactly(
    tmp_path: Path, bits: int, kind: str, options: dict[str, object], order: str
) -> None:
    rgb = RGB16 if bits == 16 else RGB8
    stored, levels, kinds = {
        "rgb": (rgb, rgb, {"photometric": "rgb"}),
        "planes": (
            np.moveaxis(rgb, 2, 0),
            rgb,
            {"photometric": "rgb", "planarconfig": "separate"},
        ),
        "grey": (rgb[..., 0], rgb[..., :1], {"photometric": "minisblack"}),
    }[kind]
    tifffile.imwrite(tmp_path / "a.tif", stored, byteorder=order, **kinds, **options)
    assert_read_as(tmp_path / "a.tif", levels)
    assert picture_size(tmp_path / "a.tif") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("compression", [LZW, PACKBITS, LZMA, ZSTD])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tiled", [False, True], ids=["strips", "tiles"])
def test_compressions_that_libtiff_knows_are_undone(
    tmp_path: Path, compression: int, order: str, tiled: bool
) -> None:
    rows, columns = (16, 16) if tiled else (10, WIDTH)

    def parts() -> Iterator[bytes]:
        padded = np.pad(RGB16, ((0, 16), (0, 16), (0, 0)))
        for top in range(0, HEIGHT, rows):
            for left in range(0, WIDTH, columns):
                bottom = top + rows if tiled else min(top + rows, HEIGHT)
                part = padded[top:bottom, left : left + columns].astype(f"{order}u2")
                yield compressed(part.reshape(len(part), -1).view(np.uint8), compression)

    tifffile.imwrite(
        tmp_path / "a.tif",
        parts(),
        shape=RGB16.shape,
        dtype=np.uint16,
        photometric="rgb",
        byteorder=order,
        compression=ZSTD,  # tifffile lacks some of the others
        **({"tile": (16, 16)} if tiled else {"rowsperstrip": rows}),
    )
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags[259].overwrite(compression)
    assert_read_as(tmp_path / "a.tif", RGB16)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_files_of_pillow_are_read_as_they_were(
    tmp_path: Path, compression: str, predictor: int
) -> None:
    info = {317: predictor} if compression != "packbits" else {}
    for levels in (RGB8, GREY8[..., 0], GREY16[..., 0], np.dstack([RGB8, GREY8])):
        image = Image.fromarray(levels)
        image.save(tmp_path / "a.tif", compression=compression, tiffinfo=info)
        assert_read_as(tmp_path / "a.tif", levels if levels.ndim == 3 else levels[..., None])


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr"])
def test_jpeg_in_a_tiff_is_read_as_libtiff_does(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(SMOOTH).resize((200, 150)).convert(mode)
    image.save(tmp_path / "a.tif", compression="jpeg", quality=90, tiffinfo={278: 48})
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert len(tiff.pages[0].dataoffsets) > 1
    with Image.open(tmp_path / "a.tif") as file:
        expected = np.asarray(file.convert("L" if mode == "L" else "RGB"))
    assert_read_as(tmp_path / "a.tif", expected[..., None] if mode == "L" else expected)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits", "raw"])
def test_bilevel_pictures_are_black_and_white(tmp_path: Path, compression: str) -> None:
    image = Image.fromarray(GREY8[..., 0]).convert("1")
    image.save(tmp_path / "a.tif", compression=compression)
    assert_read_as(tmp_path / "a.tif", np.asarray(image)[..., None] * np.uint8(255))


def write(path: Path, tags: dict[int, object], data: bytes) -> None:
    """A TIFF file of one strip, whatever its tags say."""
    tags = {256: WIDTH, 257: HEIGHT, 278: HEIGHT, 279: len(data), 273: 8, 259: 1, **tags}
    entries, values = b"", b""
    start = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        kind, letter = (4, "I") if tag in (256, 257, 273, 278, 279) else (3, "H")
        content = struct.pack(f"<{len(numbers)}{letter}", *numbers)
        if len(content) > 4:
            content, values = struct.pack("<I", start + len(values)), values + content
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4) + values)


def packed(numbers: np.ndarray, bits: int) -> bytes:
    rows = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(rows.reshape(len(numbers), -1), axis=1).tobytes()


@pytest.mark.parametrize("fill_order", [1, 2])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_spans_all_levels(
    tmp_path: Path, bits: int, white_is_zero: bool, fill_order: int
) -> None:
    numbers = GREY8[..., 0] >> (8 - bits)
    data = packed(numbers, bits)
    if fill_order == 2:
        data = np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little")
        data = data.tobytes()
    photometric = 0 if white_is_zero else 1
    write(tmp_path / "a.tif", {258: bits, 262: photometric, 266: fill_order}, data)
    levels = np.rint(numbers / (2**bits - 1) * 255).astype(np.uint8)[..., None]
    assert_read_as(tmp_path / "a.tif", 255 - levels if white_is_zero else levels)


def test_white_is_zero_at_16_bits(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY16[..., 0], photometric="miniswhite")
    assert_read_as(tmp_path / "a.tif", 65535 - GREY16)


@pytest.mark.parametrize("depth", ["8 bits", "8 bits times 257", "8 bits times 256", "16 bits"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_palette_is_read_at_its_own_depth(tmp_path: Path, bits: int, depth: str) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (2**bits, 3))
    entries, levels = {
        "8 bits": (colours, colours.astype(np.uint8)),
        "8 bits times 257": (colours * 257, colours.astype(np.uint8)),
        "8 bits times 256": (colours * 256, colours.astype(np.uint8)),
        "16 bits": (colours * 255 + 3, (colours * 255 + 3).astype(np.uint16)),
    }[depth]
    numbers = GREY8[..., 0] >> (8 - bits)
    tags = {258: bits, 262: 3, 320: tuple(entries.T.ravel().tolist())}
    write(tmp_path / "a.tif", tags, packed(numbers, bits))
    assert_read_as(tmp_path / "a.tif", levels[numbers])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("levels", [RGB8, RGB16, GREY16], ids=["rgb 8", "rgb 16", "grey 16"])
def test_orientation_is_applied_at_every_depth(
    tmp_path: Path, levels: np.ndarray, orientation: int
) -> None:
    tags = [(274, 3, 1, orientation, True)]
    stored = levels if levels.shape[2] == 3 else levels[..., 0]
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb" if stored.ndim == 3 else None, extratags=tags
    )
    turned = {
        1: levels,
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: levels.transpose(1, 0, 2),
        6: np.rot90(levels, -1),
        7: np.rot90(levels, 2).transpose(1, 0, 2),
        8: np.rot90(levels),
    }[orientation]
    assert_read_as(tmp_path / "a.tif", turned)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
def test_further_channels_are_alpha_only_if_the_file_says_so(
    tmp_path: Path, bits: int, planes: str
) -> None:
    rgb = RGB16 if bits == 16 else RGB8
    white, half = np.iinfo(rgb.dtype).max, np.iinfo(rgb.dtype).max // 2
    extra = np.full_like(rgb[..., :1], half)
    extra[0] = white
    four = np.concatenate((rgb, extra), axis=2)
    five = np.concatenate((rgb, rgb[..., :1], extra), axis=2)
    path = tmp_path / "a.tif"

    def save(levels: np.ndarray, kinds: list[str]) -> None:
        stored = np.moveaxis(levels, 2, 0) if planes == "separate" else levels
        options = {"photometric": "rgb", "planarconfig": planes, "extrasamples": kinds}
        tifffile.imwrite(path, stored, **options)

    save(four, ["unassalpha"])
    assert_read_as(path, four)
    save(four, ["unspecified"])
    assert_read_as(path, rgb)
    save(five, ["unspecified", "unassalpha"])
    assert_read_as(path, four)
    dimmed = np.concatenate((np.minimum(rgb, half), extra), axis=2)
    save(dimmed, ["assocalpha"])
    bright = dimmed.copy()
    bright[..., :3] = np.rint(dimmed[..., :3] * (white / extra.astype(np.float64)))
    assert_read_as(path, bright)


def test_grey_with_alpha_and_opaque_alpha(tmp_path: Path) -> None:
    levels = np.concatenate((GREY16, np.full_like(GREY16, 65535)), axis=2)
    tifffile.imwrite(
        tmp_path / "a.tif",
        levels,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    assert_read_as(tmp_path / "a.tif", levels)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({258: 12}, "has 12 bits a channel"),
        ({258: (8, 8, 16), 262: 2, 277: 3}, "different bits a channel"),
        ({258: (5, 6, 5), 262: 2, 277: 3}, "different bits a channel"),
        ({258: 16, 339: 2}, "signed, 32-bit or floating"),
        ({258: 16, 339: 3}, "signed, 32-bit or floating"),
        ({258: 32}, "signed, 32-bit or floating"),
        ({258: (8, 8, 8), 262: 8, 277: 3}, "neither grey, RGB, a palette nor CMYK"),
        ({258: (8, 8, 8), 262: 6, 277: 3}, "YCbCr colours without JPEG"),
        ({258: (16,) * 4, 262: 5, 277: 4}, "has 16 bits a channel"),
        ({258: (8,) * 4, 262: 5, 277: 4, 332: 2}, "inks other than CMYK"),
        ({258: 16, 262: 32803}, "neither grey, RGB, a palette nor CMYK"),
        ({258: 8, 259: 34712}, "has an unknown compression"),
        ({258: 8, 259: 6}, "has an unknown compression"),
        ({258: 8, 317: 3}, "an unknown predictor"),
        ({258: 8, 254: 1}, "starts with a preview"),
        ({258: 8, 273: 100_000}, "parts of its pixels are missing"),
        ({258: 8, 273: 0, 279: 0}, "parts of its pixels are missing"),
        ({258: 8, 278: 2}, "has 1 parts, not 12"),
        ({258: 8, 259: LZW}, "cannot be decoded"),
        ({258: 8, 259: 8}, "cannot be decoded"),
        ({258: 8, 262: 3}, "its palette has the wrong size"),
        ({258: (8, 8, 8), 262: 2, 277: 3, 338: (0, 0)}, "describes other channels"),
        ({258: (8, 8, 8), 262: 2, 277: 3, 257: 4 * HEIGHT, 278: 4 * HEIGHT}, "too short"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, tags: dict[int, object], reason: str
) -> None:
    write(tmp_path / "a.tif", {262: 1, **tags}, bytes(range(256)) * 16)
    for read in (read_picture, read_image):
        with pytest.raises(BadImageError, match=reason):
            read(tmp_path / "a.tif")


def test_values_of_32_bits_and_half_precision_are_refused(tmp_path: Path) -> None:
    nan = np.full((8, 8), np.nan)
    for dtype in (np.float16, np.float32, np.float64):
        tifffile.imwrite(tmp_path / "a.tif", nan.astype(dtype))
        with pytest.raises(BadImageError, match="signed, 32-bit or floating-point"):
            read_picture(tmp_path / "a.tif")


def test_pages_are_told_from_smaller_versions_and_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB16, photometric="rgb")
        file.write(RGB16[::2, ::2], photometric="rgb", subfiletype=1)
    assert_read_as(path, RGB16)
    with tifffile.TiffWriter(path) as file:
        file.write(RGB8, photometric="rgb", subifds=1)
        file.write(RGB8[::2, ::2], photometric="rgb", subfiletype=1)
    assert_read_as(path, RGB8)
    with tifffile.TiffWriter(path) as file:
        file.write(RGB8[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(RGB8, photometric="rgb")
    with pytest.raises(BadImageError, match="starts with a preview"):
        read_picture(path)
    tifffile.imwrite(path, np.stack([RGB8] * 3), photometric="rgb")
    with pytest.raises(BadImageError, match="holds 3 pages"):
        read_picture(path)
    tifffile.imwrite(path, np.stack([GREY16[..., 0]] * 4), imagej=True)
    with pytest.raises(BadImageError, match="holds 4 pages"):
        read_picture(path)


def test_profile_and_resolution_are_kept_and_turn_with_the_picture(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tifffile.imwrite(
        tmp_path / "a.tif",
        RGB8,
        photometric="rgb",
        iccprofile=profile,
        resolution=(300, 150),
        resolutionunit="inch",
        extratags=[(274, 3, 1, 6, True)],
    )
    picture = read_picture(tmp_path / "a.tif")
    assert picture.icc_profile == profile
    assert picture.chunks == {"pHYs": struct.pack(">IIB", 5906, 11811, 1)}


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 6), (255, 0, 0, 0)).save(tmp_path / "a.tif")
    assert_read_as(tmp_path / "a.tif", np.full((6, 8, 3), (0, 255, 255), np.uint8))


def test_damaged_files_are_refused_or_read_and_nothing_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(
        tmp_path / "whole.tif", RGB16, photometric="rgb", compression="deflate", rowsperstrip=8
    )
    whole = np.frombuffer((tmp_path / "whole.tif").read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    for trial in range(150):
        damaged = whole.copy()
        # Most of what is damaged is what the file says of itself.
        end = len(damaged) if trial % 3 == 0 else 300
        damaged[random.integers(8, end, size=3)] = random.integers(256, size=3)
        (tmp_path / "a.tif").write_bytes(damaged.tobytes())
        try:
            read_picture(tmp_path / "a.tif")
        except BadImageError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("tifffile").hasHandlers()
