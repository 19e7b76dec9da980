import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mkdext.data import find_images, imresize, prepare_store, read_image, read_store
from mkdext.data import prepare as prepare_module
from mkdext.data.store_writer import StoreWriter, written_store

SIZES = [(34, 50), (64, 42), (40, 40), (56, 90)]


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for i, size in enumerate(SIZES):
        levels = random.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(levels).save(tmp_path / "photographs" / f"{i}.png")
    return tmp_path / "photographs"


@pytest.fixture
def low(folder, tmp_path):
    """Low-resolution versions at x2, as DIV2K has them, that bicubic would not make."""
    (tmp_path / "low").mkdir()
    for path in find_images(folder):
        low = imresize(read_image(path), 1 / 2).permute(1, 2, 0).numpy()
        Image.fromarray(255 - low).save(tmp_path / "low" / f"{path.stem}x2.png")
    return tmp_path / "low"


def content(store):
    return (store / "store.json").read_bytes(), (store / "pixels.u8").read_bytes()


@pytest.fixture
def stopped_after(monkeypatch):
    """Makes a preparation fail after some photographs."""

    def after(count):
        def decode(job):
            nonlocal count
            if count == 0:
                raise KeyboardInterrupt
            count -= 1
            return original(job)

        original = prepare_module._decode
        monkeypatch.setattr(prepare_module, "_decode", decode)

    yield after
    monkeypatch.undo()


def test_a_store_is_as_large_as_its_pixels(folder, tmp_path):
    prepared = prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    pixels = sum(3 * height * width for height, width in SIZES)
    assert prepared.size == pixels + pixels // 4
    assert (prepared.photographs, prepared.written, prepared.left_out) == (4, 4, [])
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "pixels.u8",
        "store.json",
    ]


@pytest.mark.slow
def test_several_processes_write_the_same_store(folder, tmp_path):
    one = prepare_store(folder, tmp_path / "one", scale=2, workers=1).folder
    two = prepare_store(folder, tmp_path / "two", scale=2, workers=2).folder
    assert content(one) == content(two)


def test_the_same_call_goes_on_where_it_was_stopped(folder, tmp_path, stopped_after, monkeypatch):
    whole = prepare_store(folder, tmp_path / "whole", scale=2, workers=1).folder
    stopped_after(2)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    monkeypatch.undo()
    resumed = prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    assert resumed.written == 2
    assert content(resumed.folder) == content(whole)


@pytest.mark.parametrize("damage", ["torn line", "torn header", "lost pixels", "changed pixels"])
def test_what_a_crash_left_half_written_is_written_again(
    folder, tmp_path, stopped_after, monkeypatch, damage
):
    whole = prepare_store(folder, tmp_path / "whole", scale=2, workers=1).folder
    store = tmp_path / "store"
    stopped_after(3)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(folder, store, scale=2, workers=1)
    monkeypatch.undo()
    journal, pixels = store / "unfinished.jsonl", store / "pixels.u8"
    if damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-20])
    elif damage == "torn header":
        journal.write_bytes(journal.read_bytes()[:20])
    elif damage == "lost pixels":
        os.truncate(pixels, pixels.stat().st_size - 1)
    else:
        levels = bytearray(pixels.read_bytes())
        levels[-1] ^= 1
        pixels.write_bytes(levels)
    resumed = prepare_store(folder, store, scale=2, workers=1)
    assert resumed.written == (4 if damage == "torn header" else 2)
    assert content(store) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_leaves_no_process_and_is_gone_on_with(tmp_path, number):
    folder, store = tmp_path / "photographs", tmp_path / "store"
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    for i in range(60):
        Image.fromarray(np.roll(levels, i)).save(folder / f"{i}.png", compress_level=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "mkdext.data", "prepare", folder, "--out", store, "--workers", "2"],
        start_new_session=True,
        # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = store / "unfinished.jsonl"
    while process.poll() is None and not (journal.exists() and len(_lines(journal)) > 3):
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C does
    else:
        process.kill()
    _, errors = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in errors
    assert 0 < len(_lines(journal)) < 60
    deadline = time.monotonic() + 30
    while _is_alive(process.pid):
        assert time.monotonic() < deadline, "a process that decodes has outlived its parent"
        time.sleep(0.05)
    resumed = prepare_store(folder, store, scale=4, workers=1)
    assert resumed.photographs == 60
    assert resumed.written < 60


def _lines(path):
    return path.read_bytes().splitlines()[1:]


def _is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_finished_store_is_only_read_back(folder, tmp_path, stopped_after):
    store = prepare_store(folder, tmp_path / "store", scale=2, workers=1).folder
    stopped_after(0)
    again = prepare_store(folder, store, scale=2, workers=1)
    assert (again.photographs, again.written) == (4, 0)
    with (store / "pixels.u8").open("rb+") as file:
        file.seek(3000)
        level = file.read(1)[0]
        file.seek(3000)
        file.write(bytes([level ^ 1]))
    with pytest.raises(ValueError, match=r"the pixels of 0\.png have changed since"):
        prepare_store(folder, store, scale=2, workers=1)


def test_a_store_of_other_photographs_or_another_scale_is_kept(folder, tmp_path):
    store = prepare_store(folder, tmp_path / "store", scale=2, workers=1).folder
    before = content(store)
    with pytest.raises(ValueError, match="holds a store for scale 2, not 4: give another `out`"):
        prepare_store(folder, store, scale=4, workers=1)
    os.utime(folder / "1.png", ns=(0, 0))
    with pytest.raises(ValueError, match=r"other photographs \(1\.png has changed\)"):
        prepare_store(folder, store, scale=2, workers=1)
    (folder / "1.png").unlink()
    with pytest.raises(ValueError, match=r"other photographs \(1\.png is not there\)"):
        prepare_store(folder, store, scale=2, workers=1)
    assert content(store) == before


def test_a_store_lacking_photographs_is_told(folder, tmp_path):
    store = prepare_store(folder, tmp_path / "store", scale=2, workers=1).folder
    Image.new("RGB", (8, 8)).save(folder / "new.png")
    with pytest.raises(ValueError, match=r"without 1 of the photographs, such as .*new\.png"):
        prepare_store(folder, store, scale=2, workers=1)
    again = prepare_store(folder, store, scale=2, workers=1, bad_images="skip")
    assert [image.path.name for image in again.left_out] == ["new.png"]


def test_an_unfinished_store_of_another_scale_is_kept(folder, tmp_path, stopped_after, monkeypatch):
    stopped_after(2)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="an unfinished store for scale 2, not 4"):
        prepare_store(folder, tmp_path / "store", scale=4, workers=1)
    prepare_store(folder, tmp_path / "store", scale=2, workers=1)


def test_other_files_are_never_overwritten(folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds other files; give an empty or new folder"):
        prepare_store(folder, tmp_path / "full", scale=2, workers=1)
    with pytest.raises(ValueError, match="cannot be created: File exists"):
        prepare_store(folder, tmp_path / "full" / "thesis.txt", scale=2, workers=1)


def test_two_processes_cannot_write_one_store(folder, tmp_path):
    with (
        written_store(tmp_path / "store", 2),
        pytest.raises(ValueError, match="is in use by another process"),
    ):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)


def test_a_store_that_another_process_finishes_meanwhile_is_kept(folder, tmp_path):
    store = prepare_store(folder, tmp_path / "store", scale=2, workers=1).folder
    before = content(store)
    (store / "unfinished.jsonl").touch()  # as a process sees it that looked just before the end
    with (
        pytest.raises(ValueError, match="was finished meanwhile by another process"),
        written_store(store, 2),
    ):
        pass
    assert content(store) == before
    assert not (store / "unfinished.jsonl").exists()


def test_bad_photographs_are_all_named_and_then_repaired_or_left_out(folder, tmp_path):
    (folder / "1.png").write_bytes(b"no image")
    Image.new("RGB", (1, 9)).save(folder / "thin.png")
    with pytest.raises(ValueError, match="2 images cannot be used") as error:
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    assert "1.png: not an image" in str(error.value)
    assert "thin.png: is 1x9 pixels, less than the scale" in str(error.value)
    skipped = prepare_store(folder, tmp_path / "b", scale=2, workers=1, bad_images="skip")
    assert (skipped.photographs, len(skipped.left_out)) == (3, 2)
    Image.new("RGB", (30, 40)).save(folder / "1.png")
    (folder / "thin.png").unlink()
    resumed = prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    assert resumed.written == 1
    names = [pair.path.name for pair in read_store(resumed.folder)]
    assert names == ["0.png", "1.png", "2.png", "3.png"]


def test_a_folder_of_bad_photographs_alone_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.png").touch()
    with pytest.raises(ValueError, match="holds no usable photograph"):
        prepare_store(tmp_path / "a", tmp_path / "s", scale=2, workers=1, bad_images="skip")


def test_given_low_resolution_versions_are_stored(folder, low, tmp_path):
    store = prepare_store(folder, tmp_path / "store", scale=2, lr=low, workers=1).folder
    for pair, given in zip(read_store(store), find_images(low), strict=True):
        assert np.array_equal(pair.low, read_image(given).numpy())
    os.utime(low / "2x2.png", ns=(0, 0))
    with pytest.raises(ValueError, match=r"2\.png has changed"):
        prepare_store(folder, store, scale=2, lr=low, workers=1)


def test_missing_or_mismatched_low_resolution_versions_are_named(folder, low, tmp_path):
    Image.new("RGB", (20, 21)).save(low / "2x2.png")
    with pytest.raises(
        ValueError, match=r"2x2\.png: must be 20x20 pixels in low resolution, has 20x21"
    ):
        prepare_store(folder, tmp_path / "store", scale=2, lr=low, workers=1)
    (low / "3x2.png").unlink()
    with pytest.raises(
        ValueError, match=r"low has no low-resolution version of 3\.png: none of 3, 3x2, 3_x2"
    ):
        prepare_store(folder, tmp_path / "store", scale=2, lr=low, workers=1)


def test_a_folder_that_holds_low_resolution_versions_too_is_refused(folder, tmp_path):
    (folder / "DIV2K_train_LR_bicubic" / "X2").mkdir(parents=True)
    (folder / "0.png").rename(folder / "DIV2K_train_LR_bicubic" / "X2" / "0x2.png")
    with pytest.raises(ValueError, match="holds low-resolution photographs too, such as DIV2K_"):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)


def test_a_full_disk_is_an_error_after_which_the_same_call_goes_on(folder, tmp_path, monkeypatch):
    def full(store, name, high, *others):
        if name == "2.png":
            store.pixels.write(high.data[:1])
            raise OSError(28, "No space left on device")
        return original(store, name, high, *others)

    original = StoreWriter.append
    monkeypatch.setattr(StoreWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    monkeypatch.undo()
    assert prepare_store(folder, tmp_path / "store", scale=2, workers=1).written == 2


def test_impossible_numbers_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        prepare_store(folder, tmp_path / "store", scale=0)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        prepare_store(folder, tmp_path / "store", scale=2, workers=0)
    assert not (tmp_path / "store").exists()


def test_the_index_is_documented_json(folder, tmp_path):
    store = prepare_store(folder, tmp_path / "store", scale=2, workers=1).folder
    index = json.loads((store / "store.json").read_text())
    assert (index["format"], index["version"], index["scale"]) == ("mkdext store", 1, 2)
    first = index["photographs"][0]
    pixels = np.fromfile(store / "pixels.u8", np.uint8)[first["offset"] :]
    high = pixels[: 3 * first["height"] * first["width"]]
    expected = read_image(folder / first["name"]).numpy()
    assert np.array_equal(high.reshape(3, first["height"], first["width"]), expected)


def test_given_versions_that_are_rounded_up_are_cut_with_crop(folder, low, tmp_path):
    for path in find_images(low):
        with Image.open(path) as image:
            size = (image.width + 1, image.height + 1)
            image.transform(size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, 0)).save(path)
    with pytest.raises(ValueError, match="`crop` cuts both to what they share"):
        prepare_store(folder, tmp_path / "refused", scale=2, lr=low, workers=1)
    store = prepare_store(folder, tmp_path / "s", scale=2, lr=low, crop=True, workers=1).folder
    for pair, path, given in zip(
        read_store(store), find_images(folder), find_images(low), strict=True
    ):
        height, width = pair.low.shape[1:]
        assert np.array_equal(pair.low, read_image(given)[:, :height, :width].numpy())
        assert np.array_equal(pair.high, read_image(path)[:, : 2 * height, : 2 * width].numpy())
        assert pair.low.shape[1:] == tuple(side // 2 for side in read_image(path).shape[1:])


def test_a_photograph_that_changes_while_it_is_read_is_told(folder, tmp_path, monkeypatch):
    def change(path):
        image = read_image(path)
        if path.name == "1.png":
            os.utime(path, ns=(0, 0))
        return image

    monkeypatch.setattr(prepare_module, "read_image", change)
    with pytest.raises(ValueError, match=r"1\.png: changed while it was read"):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    (folder / "1.png").unlink()
    monkeypatch.undo()
    assert prepare_store(folder, tmp_path / "store", scale=2, workers=1).photographs == 3


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"name": ["a"]}', b"7", b'{"name": "a", "height": 1e999}', b'"' + b"a" * 99],
    ids=["deep", "another type", "number", "huge", "torn"],
)
def test_a_damaged_line_of_the_journal_is_written_again(
    folder, tmp_path, stopped_after, monkeypatch, line
):
    stopped_after(2)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)
    monkeypatch.undo()
    with (tmp_path / "store" / "unfinished.jsonl").open("ab") as journal:
        journal.write(line + b"\n")
    assert prepare_store(folder, tmp_path / "store", scale=2, workers=1).written == 2


def test_a_pipe_in_the_place_of_the_journal_is_refused(folder, tmp_path):
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "unfinished.jsonl")
    with pytest.raises(ValueError, match="is no regular file"):
        prepare_store(folder, tmp_path / "store", scale=2, workers=1)
