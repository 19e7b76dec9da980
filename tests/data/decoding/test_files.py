"""Files that are no pictures, or not of a format that is read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mkdext.data import BadImageError, decode, read_image
from mkdext.data.decoding.exif import without_orientation
from mkdext.inference import picture_size, read_picture

READERS = (read_image, read_picture, picture_size)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "is a HEIC file; convert it to PNG, TIFF or JPEG"),
        (b"\0\0\0\x18ftypmif1" + bytes(40), "is a HEIC file"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "is a AVIF file"),
        (b"GIF89a" + bytes(40), "is a GIF file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000 file"),
        (b"8BPS\0\1" + bytes(40), "is a Photoshop file"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "is a camera's raw file"),
        (b"RIFF\0\0\0\0WAVE" + bytes(40), "not an image of a known format"),
        (b"\x89PNG", "not an image of a known format"),
        (b"", "is empty"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in READERS:
        with pytest.raises(BadImageError, match=reason):
            read(tmp_path / "a.png")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # The name of a socket must be short.
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        for name, reason in {
            "pipe": "is a pipe or a device",
            "folder": r"cannot be read \(Is a directory\)",
            "loop": "symbolic links",
            "device": "is a pipe or a device",
            "socket": "cannot be read",
            "missing": "No such file",
            "a" * 252: "File name too long",
        }.items():
            for read in READERS:
                with pytest.raises(BadImageError, match=reason):
                    read(tmp_path / f"{name}.png")


def test_names_may_be_long_or_not_in_utf_8(tmp_path: Path) -> None:
    for name in (b"\x89\xc4\x82\xcc.png", b"a" * 251 + b".png", b"new\nline.png"):
        path = tmp_path / os.fsdecode(name)
        Image.new("RGB", (4, 3)).save(path)
        assert read_picture(path).levels.shape == (3, 4, 3)
        assert read_image(path).shape == (3, 3, 4)


@pytest.mark.parametrize("error", [MemoryError(), SyntaxError("a\n\x1b[31mb"), RecursionError()])
def test_whatever_a_decoder_raises_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg")
    monkeypatch.setattr("mkdext.data.decoding.decode_with_pillow", fail)
    with pytest.raises(BadImageError) as told:
        read_picture(tmp_path / "a.jpg")
    assert str(told.value).isprintable()
    assert "\n" not in str(told.value)


def test_too_many_pixels_are_known_before_any_is_decoded(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
        assert decode(tmp_path / name, 1200).levels.shape == (30, 40, 3)
        with pytest.raises(BadImageError, match="has more than 1199 pixels; cut it into smaller"):
            decode(tmp_path / name, 1199)


@pytest.mark.parametrize("kind", ["II", "MM"])
def test_only_the_orientation_is_taken_out_of_a_cameras_notes(kind: str) -> None:
    exif = Image.Exif()
    exif.endian = "<" if kind == "II" else ">"
    exif[0x010F], exif[0x0112], exif[0x0131], exif[0x8769] = "a camera", 8, "x", {0x9003: "now"}
    before = exif.tobytes()
    orientation, notes = without_orientation(before)
    assert orientation == 8
    kept = Image.Exif()
    kept.load(notes)
    assert dict(kept) | {0x8769: None} == {0x010F: "a camera", 0x0131: "x", 0x8769: None}
    assert kept.get_ifd(0x8769) == {0x9003: "now"}


def test_damaged_notes_have_no_orientation_and_stay() -> None:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = exif.tobytes().removeprefix(b"Exif\0\0")
    for cut in range(len(whole)):
        orientation, notes = without_orientation(whole[:cut])
        assert orientation in (1, 3)
        assert len(notes) == cut
    for _ in range(200):
        noise = bytearray(whole)
        noise[random.integers(len(noise))] = random.integers(256)
        orientation, notes = without_orientation(bytes(noise))
        assert 1 <= orientation <= 8
        assert len(notes) == len(noise)
