"""`python -m mkdext.data` as users call it, in this process."""

import os

import numpy as np
import pytest
from PIL import Image

from mkdext.data import builtin_photographs, find_images, read_image
from mkdext.data.__main__ import main


@pytest.fixture
def train(tmp_path):
    """A folder with a photograph that is also in `holdout`, resized."""
    return linked(tmp_path / "train", ["train"], [0, 1, 6])


@pytest.fixture
def holdout(tmp_path, train):
    folder = linked(tmp_path / "holdout", ["validation"], [0, 1])
    rocket = Image.open(builtin_photographs("train")[6])
    rocket.resize((rocket.width // 2, rocket.height // 2)).save(folder / "leak.jpg")
    return folder


def linked(folder, splits, indices):
    folder.mkdir()
    paths = [path for split in splits for path in builtin_photographs(split)]
    for index in indices:
        (folder / paths[index].name).symlink_to(paths[index])
    return folder


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_prepare_says_what_it_made_and_how_to_use_it(train, tmp_path, capsys):
    store = tmp_path / "my store"
    arguments = ["prepare", train, "--scale", 2, "--out", store, "--workers", 1]
    status, output, _ = run(capsys, *arguments)
    assert status == 0
    assert "3 photographs" in output
    assert "all checksums are right (3 written now)" in output
    assert f"use it with --train-dir '{store}' --scale 2" in output
    assert "(0 written now)" in run(capsys, *arguments)[1]


def test_prepare_names_what_it_leaves_out(train, tmp_path, capsys):
    (train / "text.png").write_text("hello")
    arguments = ["prepare", train, "--out", tmp_path / "store", "--workers", 1]
    status, _, errors = run(capsys, *arguments)
    assert status == 2
    assert "text.png: not an image" in errors
    status, output, _ = run(capsys, *arguments, "--bad-images", "skip")
    assert status == 0
    assert f"left out: {train / 'text.png'}: not an image" in output


def test_prepare_fails_without_a_traceback_where_it_cannot_write(train, tmp_path, capsys):
    (tmp_path / "file").touch()
    status, _, errors = run(capsys, "prepare", train, "--out", tmp_path / "file" / "store")
    assert status == 2
    assert errors.startswith("mkdext.data: --out")


def test_check_finds_a_test_photograph_among_those_to_train_on(train, holdout, capsys):
    status, output, _ = run(capsys, "check", train, "--against", holdout)
    assert status == 1
    assert f"{train}: 3 usable photographs" in output
    assert f"in {train} and in {holdout}: 0 exact duplicates, 1 near-duplicates" in output
    assert f"{train / 'ihc.png'} = {holdout / 'leak.jpg'} (similarity" in output


def test_check_tells_formats_sizes_and_broken_files(train, capsys):
    status, output, _ = run(capsys, "check", train)
    assert status == 0
    sizes = [read_image(path).shape[2:0:-1] for path in find_images(train)]
    assert all("PNG" in line for line in output.splitlines() if "formats:" in line)
    smallest = min(sizes, key=np.prod)
    assert f"sizes: {smallest[0]}x{smallest[1]} to" in output
    (train / "cut.png").write_bytes(next(iter(find_images(train))).read_bytes()[:5000])
    status, output, _ = run(capsys, "check", train)
    assert status == 1
    assert "1 image cannot be used:" in output
    assert "cut.png: cannot be" in output


def test_check_reads_a_store_and_notices_changed_pixels(train, holdout, tmp_path, capsys):
    store = tmp_path / "store"
    run(capsys, "prepare", train, "--out", store, "--workers", 1)
    status, output, _ = run(capsys, "check", store, "--against", holdout)
    assert status == 1
    assert "formats: 3 stored RGB" in output
    assert f"{store / 'ihc.png'} = {holdout / 'leak.jpg'} (similarity" in output
    with (store / "pixels.u8").open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        level = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([level ^ 1]))
    status, output, _ = run(capsys, "check", store)
    assert status == 1
    assert "has changed since it was written" in output


def test_check_compares_with_a_data_set(train, capsys):
    status, output, _ = run(capsys, "check", train, "--dataset", "Set5")
    assert status == 1
    assert "2 photographs missing" in " ".join(output.split())


def test_low_resolution_versions_are_not_duplicates_of_their_photographs(tmp_path, capsys):
    high = linked(tmp_path / "HR", ["train"], [0])
    low = tmp_path / "LR_bicubic" / "X2"
    low.mkdir(parents=True)
    picture = Image.open(find_images(high)[0])
    picture.resize((picture.width // 2, picture.height // 2)).save(low / "brickx2.png")
    status, output, _ = run(capsys, "check", tmp_path)
    assert status == 0
    assert f"twice in {tmp_path}: 0 exact duplicates, 0 near-duplicates" in output


def test_a_long_list_of_duplicates_is_cut(tmp_path, capsys):
    folder = linked(tmp_path / "many", ["validation"], [1])
    for index in range(7):
        (folder / f"{index}.png").symlink_to(builtin_photographs("validation")[1])
    _, output, _ = run(capsys, "check", folder)
    assert "28 exact duplicates, 0 near-duplicates" in output
    assert "  ... and 8 more" in output


def test_list_shows_every_data_set_with_its_source(capsys):
    status, output, _ = run(capsys, "list")
    assert status == 0
    for text in ("DIV2K", "Flickr2K", "291", "Manga109", "data.vision.ee.ethz.ch", "T91: 91"):
        assert text in output


@pytest.mark.parametrize("arguments", [["check", "nowhere"], ["prepare", "nowhere", "--out", "x"]])
def test_a_missing_folder_is_one_line_of_error(arguments, capsys):
    status, _, errors = run(capsys, *arguments)
    assert status == 2
    assert errors == "mkdext.data: image folder nowhere does not exist\n"
