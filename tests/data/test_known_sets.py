from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from mkdext.data import KNOWN_SETS, BadImage, Contents, Fingerprint, compare_with_known
from mkdext.data.__main__ import CheckCommand

BY_NAME = {known.name: known for known in KNOWN_SETS}


def contents(folder, files, size=(2040, 1356)):
    marks = [Fingerprint(folder / file, b"", np.zeros((16, 16), np.int8)) for file in files]
    return Contents(folder, [size] * len(files), Counter(), marks, [])


def names(folder, numbers, pattern="{:04}.png"):
    return [f"{folder}/{pattern.format(number)}" for number in numbers]


def problems(folder, files, known, **options):
    found = compare_with_known(contents(Path(folder), files, **options), BY_NAME[known])
    return {Path(report.folder).name: report.problems for report in found}


def test_counts_are_those_of_the_papers():
    assert {known.name: known.count for known in KNOWN_SETS} == {
        "DIV2K": 900,
        "Flickr2K": 2650,
        "291": 291,
        "Set5": 5,
        "Set14": 14,
        "BSD100": 100,
        "Urban100": 100,
        "Manga109": 109,
    }


def test_the_command_knows_every_name():
    dataset = get_type_hints(CheckCommand)["dataset"]
    assert get_args(get_args(dataset)[0]) == tuple(BY_NAME)


def test_the_whole_div2k_has_no_problems():
    files = [
        *names("DIV2K_train_HR", range(1, 801)),
        *names("DIV2K_valid_HR", range(801, 901)),
        *names("DIV2K_train_LR_bicubic/X4", range(1, 801), "{:04}x4.png"),
    ]
    found = problems("/data/DIV2K", files, "DIV2K")
    assert found == {"DIV2K_train_HR": [], "DIV2K_valid_HR": [], "X4": []}


def test_missing_foreign_and_wrongly_sized_photographs_are_named():
    numbers = [*range(1, 500), *range(506, 801), 801]
    files = names("DIV2K_train_HR", numbers)
    found = problems("/data/DIV2K", files, "DIV2K", size=(1020, 678))
    assert found["DIV2K_train_HR"] == [
        "missing: 0500, 0501, 0502 and 3 more",
        "not of this set: 0801",
        "longer side is not 2040 pixels: 0001, 0002, 0003 and 792 more",
    ]
    assert found["DIV2K_valid_HR"] == ["missing: 0801, 0802, 0803 and 97 more"]


def test_a_part_alone_is_told_by_its_name():
    found = problems("/data/DIV2K_valid_HR", names(".", range(801, 901)), "DIV2K")
    assert found == {"DIV2K_valid_HR": []}


@pytest.mark.parametrize(
    ("folder", "place"),
    [("Set5", "."), ("Set5", "HR"), ("benchmark", "Set5/HR"), ("benchmark", "Set5")],
)
def test_test_sets_are_found_in_the_usual_places(folder, place):
    low = names("Set5/LR_bicubic/X4" if folder == "benchmark" else "LR_bicubic/X4", range(5))
    files = [*names(place, range(5)), *low]
    assert list(problems(f"/data/{folder}", files, "Set5").values()) == [[]]
    more = names(place, range(6))
    assert list(problems(f"/data/{folder}", more, "Set5").values()) == [["1 photograph too many"]]
    less = names(place, range(3))
    assert list(problems(f"/data/{folder}", less, "Set5").values()) == [["2 photographs missing"]]


def test_291_is_two_folders_of_which_one_has_a_known_size():
    files = [*names("T91", range(91)), *names("BSDS200", range(200))]
    assert problems("/data", files, "291", size=(321, 481)) == {"T91": [], "BSDS200": []}
    assert problems("/data", files, "291", size=(100, 100))["BSDS200"] != []


def test_broken_files_count_as_there():
    folder = Path("/data/Set5")
    four = contents(folder, names(".", range(4)))
    four.bad.append(BadImage(folder / "4.png", "is empty"))
    assert compare_with_known(four, BY_NAME["Set5"])[0].problems == []
