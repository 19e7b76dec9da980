from __future__ import annotations

import json
import math
import os
import threading
import time

import pytest

from mkdext._system import files
from mkdext._system.files import as_json, atomic_write, write_json, write_text


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("a" * 251 + ".png")
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(b"content")
    assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == [path.name]


def test_two_writers_of_one_file_do_not_take_each_others(tmp_path):
    path, both = tmp_path / "file", threading.Barrier(2)

    def write(content: bytes) -> None:
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            file.write(content[: len(content) // 2])
            both.wait()
            file.write(content[len(content) // 2 :])

    threads = [threading.Thread(target=write, args=(bytes([n]) * 1000,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"\1" * 1000, b"\2" * 1000)
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_has_left_goes_and_what_another_is_writing_stays(
    tmp_path, monkeypatch
):
    path = tmp_path / "file"
    with atomic_write(path) as unfinished:
        unfinished.write_text("mine")
        left = unfinished.with_name(f".left{unfinished.name}")
        monkeypatch.setattr(files, "_cleared", set())
        left.touch()
        for file in (unfinished, left):
            os.utime(file, (time.time() - 10,) * 2)
        write_text(path, "another's")
        assert unfinished.exists() and not left.exists()
    assert path.read_text() == "mine"


def test_after_an_error_the_file_is_as_before(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as unfinished:
        unfinished.write_text("after")
        _ = 1 // 0
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").write_text("before")
    (tmp_path / "link").symlink_to("there")
    write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "after"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_replaced(make, tmp_path):
    make(tmp_path / "there")
    with pytest.raises(ValueError, match=r"there is (a folder|no regular file)"):
        write_text(tmp_path / "there", "")


def test_an_error_of_the_system_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"):  # noqa: SIM117
        with atomic_write(tmp_path / "file"):
            raise OSError(28, "No space left on device")


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    content = {"psnr": math.inf, "list": [math.nan, 1.5], "tuple": (-math.inf,)}
    write_json(tmp_path / "file.json", content)
    expected = {"psnr": None, "list": [None, 1.5], "tuple": [None]}
    assert (
        json.loads((tmp_path / "file.json").read_text()) == expected == json.loads(as_json(content))
    )


def test_text_that_utf_8_cannot_hold_is_replaced(tmp_path):
    write_text(tmp_path / "file", os.fsdecode(b"\x89") + "é")
    assert (tmp_path / "file").read_text() == "?é"
