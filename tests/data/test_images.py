import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from mkdext.data.decoding import BadImageError
from mkdext.data.folders import find_images
from mkdext.data.images import (
    BadImage,
    bad_images_message,
    check_images,
    read_image,
)


@pytest.fixture
def levels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def as_tensor(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels.copy()).permute(2, 0, 1)


def write_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.webp"])
def test_lossless_formats_are_read_exactly(tmp_path, levels, name):
    Image.fromarray(levels).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    image = read_image(tmp_path / name)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert torch.equal(image, as_tensor(levels))


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "a.jpg", quality=90)
    expected = np.array(Image.open(tmp_path / "a.jpg"))
    assert torch.equal(read_image(tmp_path / "a.jpg"), as_tensor(expected))


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_palette_and_bilevel_images_become_rgb(tmp_path, levels, mode):
    image = Image.fromarray(levels).convert(mode)
    image.save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), as_tensor(np.array(image.convert("RGB"))))


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 6), (255, 0, 0, 0)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[:, 0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, name):
    grey = np.array([[0, 128, 129, 65535], [257, 385, 386, 65406]], np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    expected = torch.tensor([[0, 0, 1, 255], [1, 1, 2, 254]], dtype=torch.uint8)
    assert torch.equal(read_image(tmp_path / name), expected.expand(3, 2, 4))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_rgb_is_scaled_to_8_bits_within_one_level(tmp_path, name):
    colour = np.random.default_rng(1).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    if name == "a.png":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
        write_png(tmp_path / name, 7, 5, depth=16, colour=2, rows=rows)
    else:
        tifffile.imwrite(tmp_path / name, colour, photometric="rgb")
    image = read_image(tmp_path / name).permute(1, 2, 0).double().numpy()
    assert np.abs(image - colour / 257).max() <= 1


def test_opaque_alpha_is_dropped(tmp_path, levels):
    image = Image.fromarray(levels)
    image.putalpha(255)
    image.save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), as_tensor(levels))


@pytest.mark.parametrize("kind", ["rgba", "grey", "palette", "key colour"])
def test_transparent_images_are_refused(tmp_path, levels, kind):
    image = Image.fromarray(levels)
    image.putalpha(254)
    if kind == "grey":
        image = image.convert("LA")
    if kind in ("rgba", "grey"):
        image.save(tmp_path / "a.png")
    elif kind == "palette":
        image.convert("RGB").convert("P").save(tmp_path / "a.png", transparency=bytes(256))
    else:
        Image.fromarray(levels).save(tmp_path / "a.png", transparency=tuple(levels[0, 0].tolist()))
    with pytest.raises(BadImageError, match="transparent"):
        read_image(tmp_path / "a.png")


def test_camera_orientation_is_applied(tmp_path, levels):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    Image.fromarray(levels).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png"), as_tensor(np.rot90(levels, -1)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_float_and_32_bit_images_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(BadImageError, match="32-bit or floating-point"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp"])
def test_several_pages_or_frames_are_refused(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in (0, 100, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(BadImageError, match="holds 3 pages or frames"):
        read_image(tmp_path / name)


def test_a_camera_mpo_gives_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.jpg").max() == 0


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, levels, name, kept):
    Image.fromarray(levels).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    _, bad = check_images([tmp_path / name])
    assert len(bad) == 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, levels, name):
    Image.fromarray(levels).save(tmp_path / name)
    whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    paths = []
    for index in range(60):
        damaged = whole.copy()
        damaged[random.integers(len(damaged), size=8)] = random.integers(256, size=8)
        paths.append(tmp_path / f"{index}{name}")
        paths[-1].write_bytes(damaged.tobytes())
    good, bad = check_images(paths)
    assert len(good) + len(bad) == len(paths)
    assert all(image.reason for image in bad)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"Not Found\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
    ids=["empty", "text", "other format"],
)
def test_a_file_that_is_no_image_is_refused_whatever_its_name(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadImageError, match=reason):
        read_image(tmp_path / "a.png")


def test_missing_files_and_link_loops_are_refused(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    good, bad = check_images(find_images(tmp_path))
    assert not good
    assert [image.path.name for image in bad] == ["dangling.png", "loop.png"]
    assert "No such file" in bad[0].reason
    assert "symbolic links" in bad[1].reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_unreadable_files_and_folders_are_named(tmp_path, levels):
    (tmp_path / "closed").mkdir()
    path = tmp_path / "a.png"
    Image.fromarray(levels).save(path)
    path.chmod(0)
    with pytest.raises(BadImageError, match=r"cannot be read \(Permission denied\)"):
        read_image(path)
    (tmp_path / "closed").chmod(0)
    with pytest.raises(ValueError, match=r"closed cannot be read: Permission denied"):
        find_images(tmp_path)


def test_a_decompression_bomb_is_refused_without_being_decoded(tmp_path):
    # A blank picture of 30,000 x 30,000 pixels whose file is a thousandth of that.
    row = zlib.compressobj()
    data = b"".join([row.compress(bytes(30_001)) for _ in range(3)] + [row.flush()])
    write_png(tmp_path / "bomb.png", 30_000, 30_000, depth=8, colour=0, rows=data)
    with pytest.raises(BadImageError, match="has more than 89478485 pixels; cut it into smaller"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_pillow_only_warns_of_is_refused_without_being_decoded(tmp_path):
    row = zlib.compressobj()
    data = b"".join([row.compress(bytes(10_001)) for _ in range(3)] + [row.flush()])
    write_png(tmp_path / "huge.png", 10_000, 10_000, depth=8, colour=0, rows=data)
    with pytest.raises(BadImageError, match="has more than 89478485 pixels"):
        read_image(tmp_path / "huge.png")


def test_pillow_warnings_become_reasons(tmp_path, monkeypatch, recwarn):
    Image.new("L", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)
    good, bad = check_images([tmp_path / "large.png"])
    assert not good
    assert "has more than 6000 pixels" in bad[0].reason
    assert not recwarn.list


def test_folders_are_searched_for_image_files_only(tmp_path, levels):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "directory.png").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    names = ["c.PNG", "a.jpeg", "b/deep/x.webp", "directory.png/y.bmp"]
    for name in [*names, "._a.jpeg", ".hidden/z.png"]:
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.jpeg", "b/deep/x.webp", "c.PNG", "directory.png/y.bmp"]


def test_folders_without_photographs_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a directory"):
        find_images(tmp_path / "file")
    with pytest.raises(ValueError, match="holds no image"):
        find_images(tmp_path)


def test_every_bad_file_is_found_and_the_good_ones_are_handed_on(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "good.png")
    Image.fromarray(levels[:5]).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("hello")
    seen, used = [], {}

    def progress(paths):
        for path in paths:
            seen.append(path.name)
            yield path

    paths = find_images(tmp_path)
    good, bad = check_images(paths, 6, progress, use=used.__setitem__)
    assert good == [tmp_path / "good.png"]
    assert [str(image) for image in bad] == [
        f"{tmp_path / 'small.png'}: is 30x5 pixels, needs at least 6 on each side",
        f"{tmp_path / 'text.png'}: not an image of a known format, whatever its name says",
    ]
    assert seen == ["good.png", "small.png", "text.png"]
    assert list(used) == good
    assert torch.equal(used[good[0]], as_tensor(levels))


def test_the_message_about_bad_files_names_the_first_and_counts_the_rest():
    bad = [BadImage(Path(f"{i}.png"), "is empty") for i in range(5)]
    message = bad_images_message(bad, lines=2)
    assert message.splitlines() == [
        "5 images cannot be used:",
        "  0.png: is empty",
        "  1.png: is empty",
        "  ... and 3 more",
    ]


def test_an_error_without_a_message_is_told_by_its_name(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    monkeypatch.setattr("mkdext.data.decoding.decode_png", fail)
    with pytest.raises(BadImageError, match=r"cannot be decoded \(AssertionError\)"):
        read_image(tmp_path / "black.png")
