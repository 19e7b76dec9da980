"""Which files of a folder are photographs, and which are small versions of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from mkdext.data import find_images, find_photographs, match_low_resolution
from mkdext.data.folders import find_high_resolution, find_low_resolution

OWN_FOLDER = "give the folder of the high-resolution ones, and --lr-dir for the others"
SAME_FOLDER = "give this folder by --lr-dir too, or move these into one of their own"


def save(folder: Path, sizes: dict[str, int]) -> Path:
    for name, side in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("sizes", "low", "fix"),
    [
        (
            {"DIV2K_train_HR/1.png": 40, "DIV2K_train_LR_bicubic/X4/1x4.png": 10},
            "DIV2K_train_LR_bicubic/X4/1x4.png",
            OWN_FOLDER,
        ),
        ({"GTmod12/a.png": 24, "LRbicx4/a.png": 6}, "LRbicx4/a.png", OWN_FOLDER),
        ({"HR/a.png": 24, "X4/a.png": 6}, "X4/a.png", OWN_FOLDER),
        ({"a_HR.png": 24, "a_LR.png": 6}, "a_LR.png", SAME_FOLDER),
        ({"img_1_SRF_4_HR.png": 24, "img_1_SRF_4_LR.png": 6}, "img_1_SRF_4_LR.png", SAME_FOLDER),
        ({"0001.png": 24, "0001x2.png": 12}, "0001x2.png", SAME_FOLDER),
        ({"0001.png": 24, "0001_x3.jpg": 8}, "0001_x3.jpg", SAME_FOLDER),
        ({"X2/1x2.png": 12, "X3/1x3.png": 8}, "X3/1x3.png", OWN_FOLDER),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_small_versions_among_photographs_are_refused(
    tmp_path: Path, sizes: dict[str, int], low: str, fix: str
) -> None:
    save(tmp_path, sizes)
    with pytest.raises(ValueError, match="holds low-resolution photographs too, such as") as error:
        find_photographs(tmp_path, 4, low_flag="--lr-dir")
    assert f"such as {low}: " in str(error.value)
    assert str(error.value).endswith(fix)


@pytest.mark.parametrize(
    "sizes",
    [
        {"lamp.png": 20, "lampx2.png": 20},
        {"lamp.png": 20, "lamp_x2.png": 30},
        {"tube_HR.png": 20, "chair_LR.png": 10},
        {"0001x4.png": 10, "0002x4.png": 12},
        {"a/1.png": 10, "b/1.png": 20},
        {"LR.png": 10, "COLOR_LRX.png": 20},
    ],
    ids=str,
)
def test_names_alone_make_no_photograph_a_small_version(
    tmp_path: Path, sizes: dict[str, int]
) -> None:
    save(tmp_path, sizes)
    assert len(find_photographs(tmp_path, 4)) == 2


def test_a_folder_of_pairs_may_be_given_as_that_of_the_small_versions_too(tmp_path: Path) -> None:
    save(tmp_path, {"a_HR.png": 24, "a_LR.png": 6, "b_HR.png": 32, "b_LR.png": 8})
    high = find_high_resolution(tmp_path, tmp_path, "--lr")
    assert [path.name for path in high] == ["a_HR.png", "b_HR.png"]
    names = [path.relative_to(tmp_path) for path in high]
    low = match_low_resolution(names, tmp_path, tmp_path, 4)
    assert [path.name for path in low] == ["a_LR.png", "b_LR.png"]


def test_small_versions_are_found_by_path_or_by_a_name_that_is_there_once(tmp_path: Path) -> None:
    high = save(tmp_path / "high", {"a/1.png": 24, "b/1.png": 24, "b/2_HR.png": 24})
    low = save(tmp_path / "low", {"a/1x4.png": 6, "b/1_x4.jpg": 6, "c/2_LR.png": 6})
    names = [path.relative_to(high) for path in find_images(high)]
    found = match_low_resolution(names, high, low, 4)
    assert [path.relative_to(low).as_posix() for path in found] == [
        "a/1x4.png",
        "b/1_x4.jpg",
        "c/2_LR.png",
    ]
    save(low, {"d/2_LR.png": 6})
    with pytest.raises(ValueError, match=r"of b/2_HR\.png: none of 2_HR, 2_HRx4, 2_HR_x4, .*2_LR$"):
        match_low_resolution(names, high, low, 4)


def test_files_that_cannot_be_read_are_left_to_those_who_read_them(tmp_path: Path) -> None:
    save(tmp_path, {"1.png": 24})
    (tmp_path / "1x4.png").write_text("no picture")
    assert find_low_resolution(tmp_path, find_images(tmp_path)) == []


def test_links_of_folders_to_themselves_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"loop cannot be read: Too many levels of symbolic links"):
        find_images(tmp_path / "loop")
    with pytest.raises(ValueError, match="symbolic links"):
        find_photographs(tmp_path / "loop", 4)
    save(tmp_path, {"a.png": 4})
    assert [path.name for path in find_images(tmp_path)] == ["a.png"]


def test_folders_may_lie_deeper_than_python_recurses(tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Image.new("RGB", (4, 4)).save("a.png")
        found = find_images(tmp_path)
        # Neither does pytest, which clears up.
        os.remove("a.png")
        for _ in range(1200):
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(here)
    assert [path.name for path in found] == ["a.png"]


def test_every_suffix_of_a_jpeg_counts_and_pictures_of_other_formats_are_mentioned(
    tmp_path: Path,
) -> None:
    (tmp_path / "photo.HEIC").touch()
    with pytest.raises(ValueError, match=r"holds no image .*convert the others .*photo\.HEIC"):
        find_images(tmp_path)
    for name in ("a.jpg", "b.JPEG", "c.jfif", "d.jpe", "e.JFIF", "f.dib"):
        (tmp_path / name).touch()
    assert len(find_images(tmp_path)) == 6
