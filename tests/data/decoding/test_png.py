"""PNG files of every depth and colour type, compared with the levels that were written."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mkdext.data import BadImageError, read_image
from mkdext.inference import PNGWriter, picture_size, read_picture

HEIGHT, WIDTH = 13, 11
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [
    *[(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)],
    *[(1, 3), (2, 3), (4, 3), (8, 3), (8, 4), (16, 4), (8, 6), (16, 6)],
]
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
PASSES.append((1, 0, 2, 1))


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def rows_of(numbers: np.ndarray, depth: int) -> bytes:
    if not len(numbers):
        return b""
    if depth == 16:
        rows = numbers.astype(">u2").reshape(len(numbers), -1).view(np.uint8)
    else:
        bits = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(len(numbers), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


def png(
    numbers: np.ndarray,
    depth: int,
    colour: int,
    *before: bytes,
    interlaced: bool = False,
    after: bytes = b"",
) -> bytes:
    """A file of numbers `[H, W, channels]`, with chunks before and after the pixels."""
    height, width = numbers.shape[:2]
    if interlaced:
        parts = [numbers[top::down, left::across] for top, left, down, across in PASSES]
        rows = b"".join(rows_of(part, depth) for part in parts if part.size)
    else:
        rows = rows_of(numbers, depth)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = zlib.compress(rows)
    halves = chunk(b"IDAT", pixels[:9]) + chunk(b"IDAT", b"") + chunk(b"IDAT", pixels[9:])
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *before, halves, after, chunk(b"IEND", b""))
    )


def numbers_of(depth: int, colour: int) -> np.ndarray:
    shape = (HEIGHT, WIDTH, CHANNELS[colour])
    return np.random.default_rng(depth).integers(0, 2**depth, shape, dtype=np.uint16)


def expected(numbers: np.ndarray, depth: int, palette: np.ndarray) -> np.ndarray:
    if palette.size:
        return palette[numbers[..., 0]]
    if depth == 16:
        return numbers
    return (numbers * (255 // (2**depth - 1))).astype(np.uint8)


def assert_read_as(path: Path, levels: np.ndarray) -> None:
    picture = read_picture(path)
    assert picture.levels.dtype == levels.dtype
    assert np.array_equal(picture.levels, levels)
    has_alpha = levels.shape[2] in (2, 4)
    if has_alpha and levels[..., -1].min() < np.iinfo(levels.dtype).max:
        with pytest.raises(BadImageError, match="transparent"):
            read_image(path)
    else:
        eight = levels if levels.dtype == np.uint8 else np.rint(levels / 257).astype(np.uint8)
        colours = np.broadcast_to(eight[..., : eight.shape[2] - has_alpha], (*eight.shape[:2], 3))
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), colours)


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(("depth", "colour"), KINDS)
def test_every_depth_and_colour_type_is_read_exactly(
    tmp_path: Path, depth: int, colour: int, interlaced: bool
) -> None:
    numbers = numbers_of(depth, colour)
    size = 2**depth if colour == 3 else 0
    palette = np.random.default_rng(1).integers(0, 256, (size, 3), dtype=np.uint8)
    before = [chunk(b"PLTE", palette.tobytes())] if colour == 3 else []
    path = tmp_path / "a.png"
    path.write_bytes(png(numbers, depth, colour, *before, interlaced=interlaced))
    assert picture_size(path) == (WIDTH, HEIGHT)
    assert_read_as(path, expected(numbers, depth, palette))


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(("depth", "colour"), [kind for kind in KINDS if kind[1] in (0, 2)])
def test_a_transparent_colour_becomes_alpha_at_every_depth(
    tmp_path: Path, depth: int, colour: int, interlaced: bool
) -> None:
    numbers = numbers_of(depth, colour)
    numbers[3:7, 2:9] = key = numbers[0, 0].copy()
    transparent = chunk(b"tRNS", key.astype(">u2").tobytes())
    path = tmp_path / "a.png"
    path.write_bytes(png(numbers, depth, colour, transparent, interlaced=interlaced))
    levels = expected(numbers, depth, np.empty(0))
    opaque = (numbers != key).any(axis=2, keepdims=True)
    alpha = (opaque * np.iinfo(levels.dtype).max).astype(levels.dtype)
    assert 0 < opaque.sum() < opaque.size
    assert_read_as(path, np.concatenate((levels, alpha), axis=2))


def test_a_16_bit_colour_is_transparent_only_if_both_bytes_are_the_same(tmp_path: Path) -> None:
    numbers = np.full((1, 2, 1), 0x1234, np.uint16)
    numbers[0, 1] = 0x1235
    (tmp_path / "a.png").write_bytes(png(numbers, 16, 0, chunk(b"tRNS", b"\x12\x34")))
    assert read_picture(tmp_path / "a.png").levels[..., 1].tolist() == [[0, 65535]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_opacities_of_a_palette_may_be_fewer_than_its_colours(
    tmp_path: Path, depth: int
) -> None:
    numbers = numbers_of(depth, 3)
    palette = np.random.default_rng(1).integers(0, 256, (2**depth, 4), dtype=np.uint8)
    palette[-1, 3] = 255
    chunks = (
        chunk(b"PLTE", palette[:, :3].tobytes()),
        chunk(b"tRNS", palette[:-1, 3].tobytes()),
    )
    (tmp_path / "a.png").write_bytes(png(numbers, depth, 3, *chunks))
    assert_read_as(tmp_path / "a.png", palette[numbers[..., 0]])


NOISE = np.random.default_rng(0).bytes(3_000_000)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LARGE_PROFILE = struct.pack(">I", len(PROFILE) + len(NOISE)) + PROFILE[4:] + NOISE


@pytest.mark.parametrize(
    "content",
    [
        chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(200_000_000 // 50))),
        chunk(b"tEXt", b"note\0" + NOISE),
        chunk(b"iTXt", b"broken"),
        chunk(b"iCCP", b"broken"),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(PROFILE)[:-9]),
        chunk(b"gAMA", b"\0")[:-1] + b"!",
        chunk(b"pHYs", b"\0"),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"),
        chunk(b"cHRM", bytes(32))[:-4] + b"abcd",
        chunk(b"prVt", b"anything"),
        chunk(b"acTL", b"x"),
    ],
    ids=lambda content: content[4:8].decode(),
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_whatever_stands_beside_the_pixels_does_not_stand_in_their_way(
    tmp_path: Path, content: bytes, place: str
) -> None:
    numbers = numbers_of(16, 2)
    whole = (
        png(numbers, 16, 2, content) if place == "before" else png(numbers, 16, 2, after=content)
    )
    (tmp_path / "a.png").write_bytes(whole)
    assert_read_as(tmp_path / "a.png", numbers)
    assert read_picture(tmp_path / "a.png").icc_profile is None


def test_a_profile_of_some_megabytes_is_kept_and_can_be_read_again(tmp_path: Path) -> None:
    numbers = numbers_of(8, 2)
    embedded = chunk(b"iCCP", b"screen\0\0" + zlib.compress(LARGE_PROFILE))
    (tmp_path / "a.png").write_bytes(png(numbers, 8, 2, embedded))
    picture = read_picture(tmp_path / "a.png")
    assert picture.icc_profile == LARGE_PROFILE
    with PNGWriter(
        tmp_path / "b.png", WIDTH, HEIGHT, 3, 8, picture.icc_profile, None, picture.chunks
    ) as file:
        file.write(picture.levels)
    assert read_picture(tmp_path / "b.png").icc_profile == LARGE_PROFILE


def test_chunks_about_colours_and_resolution_are_kept(tmp_path: Path) -> None:
    chunks = {
        "gAMA": struct.pack(">I", 100_000),
        "cHRM": bytes(range(32)),
        "sRGB": b"\1",
        "cICP": bytes([9, 16, 0, 1]),
        "mDCV": bytes(range(24)),
        "cLLI": bytes(range(8)),
        "pHYs": struct.pack(">IIB", 11811, 5906, 1),
    }
    levels = numbers_of(8, 2).astype(np.uint8)
    with PNGWriter(tmp_path / "a.png", WIDTH, HEIGHT, 3, 8, chunks=chunks) as file:
        file.write(levels)
    assert read_picture(tmp_path / "a.png").chunks == chunks
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["gamma"] == 1.0
        assert np.array_equal(np.asarray(image), levels)


def damaged(name: bytes) -> bytes:
    whole = bytearray(
        png(numbers_of(8, 3) % 2, 8, 3, chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b""))
    )
    whole[whole.index(name) + 4] ^= 1
    return bytes(whole)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (damaged(b"IHDR"), "its IHDR chunk has the wrong checksum"),
        (damaged(b"PLTE"), "its PLTE chunk has the wrong checksum"),
        (damaged(b"IDAT"), "its IDAT chunk has the wrong checksum"),
        (damaged(b"tRNS"), "its tRNS chunk has the wrong checksum"),
        (png(numbers_of(8, 0), 8, 0, chunk(b"CgBI", bytes(4))), "it has a chunk 'CgBI'"),
        (png(numbers_of(8, 0), 8, 0, chunk(b"tRNS", b"a")), "its tRNS chunk has the wrong size"),
        (png(numbers_of(8, 3), 8, 3, chunk(b"PLTE", bytes(9))), "a colour that its palette lacks"),
        (png(numbers_of(8, 3), 8, 3), "a colour that its palette lacks"),
        (png(numbers_of(8, 0), 8, 0, chunk(b"acTL", bytes([0, 0, 0, 2]) * 2)), "holds 2 pages"),
        (png(numbers_of(8, 0), 8, 5), "its header is impossible"),
        (png(numbers_of(8, 0), 3, 0), "cannot be decoded"),
        (png(numbers_of(8, 0), 8, 0)[:60], "cannot be decoded"),
        (png(numbers_of(8, 0), 8, 0)[:90], "it is cut off"),
        (png(numbers_of(8, 0)[:0], 8, 0), "its header is impossible"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), "does not begin with a header"),
    ],
)
def test_damage_of_the_pixels_is_never_read(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_picture, read_image):
        with pytest.raises(BadImageError, match=reason):
            read(tmp_path / "a.png")


def test_what_is_cut_off_behind_the_pixels_does_not_matter(tmp_path: Path) -> None:
    numbers = numbers_of(8, 2)
    (tmp_path / "a.png").write_bytes(png(numbers, 8, 2, after=chunk(b"tEXt", b"a\0b"))[:-20])
    assert_read_as(tmp_path / "a.png", numbers.astype(np.uint8))
