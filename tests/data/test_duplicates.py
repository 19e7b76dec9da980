import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mkdext.data import builtin_photographs, find_duplicates, fingerprint, read_image


def as_picture(path):
    return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())


def mark(picture, name="other"):
    levels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return fingerprint(Path(name), levels)


def jpeg(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=20)
    return Image.open(file)


def resized(picture, factor):
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BICUBIC)


def cut(picture, share):
    x, y = int(picture.width * share), int(picture.height * share)
    return picture.crop((x, y, picture.width - x, picture.height - y))


CHANGES = {
    "JPEG of quality 20": jpeg,
    "half the size": lambda picture: resized(picture, 1 / 2),
    "a quarter of the size": lambda picture: resized(picture, 1 / 4),
    "twice the size": lambda picture: resized(picture, 2),
    "cut to multiples of 8": lambda p: p.crop((0, 0, p.width // 8 * 8, p.height // 8 * 8)),
    "one per cent cut off": lambda picture: cut(picture, 0.01),
    "grey": lambda picture: picture.convert("L"),
    "brighter": lambda picture: picture.point(lambda level: 20 + 0.9 * level),
    "more contrast": lambda picture: picture.point(lambda level: 1.2 * level - 20),
    "red and blue exchanged": lambda p: Image.merge("RGB", p.split()[::-1]),
    **{
        turn.name.lower(): lambda picture, turn=turn: resized(picture, 0.5).transpose(turn)
        for turn in Image.Transpose
    },
}


@pytest.fixture(scope="module")
def photographs():
    paths = builtin_photographs("train") + builtin_photographs("validation")
    # Without the second of two views of the same things.
    return {path.stem: as_picture(path) for path in paths if path.stem != "motorcycle_right"}


@pytest.fixture(scope="module")
def marks(photographs):
    return [mark(picture, name) for name, picture in photographs.items()]


def test_different_photographs_are_not_taken_for_the_same(marks):
    assert find_duplicates(marks) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_photograph_is_found_again_after(change, photographs, marks):
    changed = [mark(CHANGES[change](picture), name) for name, picture in photographs.items()]
    found = find_duplicates(marks, changed)
    assert {(d.first.name, d.second.name) for d in found} == {(n, n) for n in photographs}


def test_equal_pixels_in_another_file_are_an_exact_duplicate(photographs, marks):
    cat = photographs["chelsea"]
    file = io.BytesIO()
    cat.save(file, "BMP")
    (found,) = find_duplicates(marks, [mark(Image.open(file))])
    assert (found.first.name, found.second.name) == ("chelsea", "other")
    assert found.is_exact
    assert found.similarity == 1


def test_photographs_that_occur_twice_in_one_folder_are_listed_once(photographs, marks):
    cat = photographs["chelsea"]
    twice = [*marks, mark(cat, "again"), mark(jpeg(cat), "as jpeg")]
    found = [(d.first.name, d.second.name, d.is_exact) for d in find_duplicates(twice)]
    assert found == [
        ("chelsea", "again", True),
        ("chelsea", "as jpeg", False),
        ("again", "as jpeg", False),
    ]


def test_blank_pictures_are_duplicates_only_if_every_pixel_is_equal():
    pictures = [Image.new("RGB", size, grey) for size, grey in [((64, 64), 9), ((64, 48), 9)]]
    blank = [mark(picture, str(index)) for index, picture in enumerate(pictures)]
    assert find_duplicates(blank) == []
    assert [d.is_exact for d in find_duplicates(blank, blank)] == [True, True]


def test_pictures_of_few_pixels_can_be_compared():
    assert find_duplicates([mark(Image.new("RGB", (1, 1)))], []) == []
    assert find_duplicates([], [mark(Image.new("RGB", (1, 1)))]) == []


def test_blocks_of_the_comparison_make_no_difference(marks, monkeypatch):
    whole = find_duplicates(marks, marks)
    monkeypatch.setattr("mkdext.data.duplicates._BLOCK", 1)
    assert find_duplicates(marks, marks) == whole
    assert len(whole) == len(marks)
