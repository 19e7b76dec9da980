import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from mkdext.data import (
    BadImageError,
    ImagePairs,
    PatchSampler,
    find_images,
    find_photographs,
    is_store,
    prepare_store,
    read_store,
)


@pytest.fixture
def folder(tmp_path):
    """Four photographs whose sides are no multiples of the scale, one below a folder."""
    random = np.random.default_rng(0)
    (tmp_path / "photographs" / "b").mkdir(parents=True)
    sizes = {"a": (33, 50), "b/deep": (64, 41), "b.x": (40, 40), "c": (57, 90)}
    for name, size in sizes.items():
        levels = random.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(levels).save(tmp_path / "photographs" / f"{name}.png")
    return tmp_path / "photographs"


@pytest.fixture
def store(folder, tmp_path):
    return prepare_store(folder, tmp_path / "store", scale=2, workers=1).folder


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_store_holds_the_pairs_of_the_folder_in_its_order(folder, store):
    stored, plain = ImagePairs(read_store(store), 2), ImagePairs(find_images(folder), 2)
    names = [path.relative_to(folder).as_posix() for path in plain.paths]
    assert [path.relative_to(store).as_posix() for path in stored.paths] == names
    assert all(equal(a, b) for a, b in zip(stored, plain, strict=True))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30], ids=["decoding", "remembering"])
def test_the_same_seed_gives_the_same_patches_from_folder_and_store(folder, store, cache_bytes):
    def batches(photographs):
        pairs, bad = ImagePairs.checked(photographs, 2, 34, cache_bytes=cache_bytes)
        assert [image.path.name for image in bad] == ["a.png"]
        return list(PatchSampler(pairs, 2, 17, batch_size=4, seed=5).batches(0, 6))

    assert not is_store(folder)
    assert is_store(store)
    plain, stored = (batches(find_photographs(place, 2)) for place in (folder, store))
    assert all(equal(a, b) for a, b in zip(plain, stored, strict=True))


def test_files_and_stores_are_mixed_in_the_order_given(folder, store):
    files, stored = find_images(folder), read_store(store)
    pairs = ImagePairs([files[2], *stored[:2], files[3]], 2)
    plain = ImagePairs([files[2], *files[:2], files[3]], 2)
    assert len(pairs) == 4
    assert all(equal(pairs[i], plain[i]) for i in range(4))
    assert equal(pairs.patch(1, 9, (0.3, 0.9)), plain.patch(1, 9, (0.3, 0.9)))


def test_patches_are_copies_that_can_be_written_to(store):
    pairs = ImagePairs(read_store(store), 2)
    before = pairs.patch(0, 8, (0, 0))[1].clone()
    for part in (*pairs.patch(0, 8, (0, 0)), *pairs[0]):
        part.fill_(7)
    assert equal((pairs.patch(0, 8, (0, 0))[1],), (before,))


def test_a_patch_larger_than_a_stored_photograph_is_refused_by_name(store):
    with pytest.raises(ValueError, match=r"store/a\.png: 50x32 pixels are too few for patches"):
        ImagePairs(read_store(store), 2).patch(0, 17, (0, 0))


def test_a_store_of_another_scale_is_refused(store):
    with pytest.raises(ValueError, match="is for scale 2, not 4: prepare another with `scale` 4"):
        read_store(store, 4)


@pytest.mark.parametrize("bytes_left", [0, 1000])
def test_a_truncated_store_is_refused(store, bytes_left):
    with (store / "pixels.u8").open("rb+") as file:
        file.truncate(bytes_left)
    with pytest.raises(ValueError, match=rf"pixels\.u8 must have \d+ bytes, got {bytes_left};"):
        read_store(store)


def test_a_store_without_pixels_is_refused(store):
    (store / "pixels.u8").unlink()
    with pytest.raises(ValueError, match=r"has no readable pixels\.u8, which does not exist"):
        read_store(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a store of mkdext"),
        ({"version": 2}, "is of version 2, this mkdext reads version 1"),
        ({"scale": "4"}, "its scale is '4'"),
        ({"scale": 10**400}, "its scale is 1000"),
        ({"photographs": []}, r"store\.json lists no photograph; delete the store and prepare it"),
        ({"photographs": [{"name": "a"}]}, "photograph 0 has no 'files'; delete the store"),
        ({"photographs": 3}, "'photographs' must be of type list, got int; delete the store"),
        ({"photographs": [7]}, "photograph 0 must hold names and values, got int; delete"),
    ],
)
def test_a_foreign_or_damaged_index_is_refused(store, change, message):
    index = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(ValueError, match=message):
        read_store(store)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("height", 31), ("height", 2**40), ("width", 0), ("width", "50"), ("width", True)],
        *[("offset", -1), ("offset", 10**4000), ("crc32", 2**32), ("crc32", 1.5), ("name", ["a"])],
        *[("files", None), ("files", []), ("files", [[1, 2, 3]]), ("files", [["1", 2]])],
    ],
)
def test_impossible_entries_are_refused(store, field, value):
    index = json.loads((store / "store.json").read_text())
    index["photographs"][0][field] = value
    (store / "store.json").write_text(json.dumps(index))
    message = rf"is damaged: photograph 0: '{field}' must .*; delete the store and prepare it again"
    with pytest.raises(ValueError, match=message) as error:
        read_store(store)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'"a"'])
def test_an_index_that_is_no_json_object_is_refused(store, text):
    (store / "store.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"damaged.* delete the store and prepare it again"):
        read_store(store)


def test_a_pipe_in_the_place_of_a_file_of_a_store_is_refused(store):
    for name in ("pixels.u8", "store.json"):
        (store / name).unlink()
        os.mkfifo(store / name)
        with pytest.raises(ValueError, match="is no regular file"):
            read_store(store)


def test_a_flipped_bit_is_found_when_a_stored_photograph_is_first_used(store):
    pixels = bytearray((store / "pixels.u8").read_bytes())
    pixels[-1] ^= 1  # of the last photograph
    (store / "pixels.u8").write_bytes(pixels)
    pairs = ImagePairs(read_store(store), 2)
    pairs.patch(0, 8, (0, 0))
    for use in (lambda: pairs.patch(3, 8, (0, 0)), lambda: pairs[3]):
        with pytest.raises(
            BadImageError, match=r"c\.png: has changed since it was written; delete"
        ):
            use()
    assert ImagePairs.checked(read_store(store), 2)[1] == []
    _, bad = ImagePairs.checked(read_store(store), 2, check_stored=True)
    assert [image.path.name for image in bad] == ["c.png"]


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a store: it has no store\.json"):
        read_store(tmp_path)


def test_an_unfinished_store_is_refused(store):
    (store / "store.json").rename(store / "unfinished.jsonl")
    assert is_store(store)
    with pytest.raises(ValueError, match="is unfinished: the command that began it finishes it"):
        find_photographs(store, 2)
