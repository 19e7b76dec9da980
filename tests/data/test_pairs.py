"""Pairs that are given, degraded or continued by their mirror image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mkdext.data import (
    GivenPair,
    ImagePairs,
    LowImages,
    PatchSampler,
    degradation_of,
    imresize,
    make_pair,
    prepare_store,
    read_image,
    read_store,
)

RANDOM = degradation_of("realesrgan")


@pytest.fixture
def folder(tmp_path):
    """Three photographs, the first smaller than 32 pixels."""
    random = np.random.default_rng(0)
    (tmp_path / "high").mkdir()
    for index, (height, width) in enumerate([(25, 60), (64, 48), (70, 66)]):
        levels = random.integers(256, size=(height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / "high" / f"{index}.png")
    return tmp_path / "high"


@pytest.fixture
def files(folder):
    return sorted(folder.iterdir())


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def given(files, folder, **settings):
    folder.mkdir(exist_ok=True)
    for path in files:
        low = 255 - make_pair(read_image(path), 4)[0]
        Image.fromarray(low.permute(1, 2, 0).numpy()).save(folder / path.name)
    return [GivenPair(folder / path.name, path, **settings) for path in files]


def test_patches_of_given_pairs_are_cut_from_both_files(files, tmp_path):
    pairs, bad = ImagePairs.checked(given(files, tmp_path / "low"), 4)
    assert not bad
    assert pairs.made_by == "given"
    plain = ImagePairs(files, 4)
    uncached = ImagePairs(given(files, tmp_path / "low"), 4, cache_bytes=0)
    for index in range(3):
        low, high = plain[index]
        assert equal(pairs[index], (255 - low, high))
        low, high = plain.patch(index, 5, (0.3, 0.7))
        assert equal(pairs.patch(index, 5, (0.3, 0.7)), (255 - low, high))
        assert equal(uncached.patch(index, 5, (0.3, 0.7)), (255 - low, high))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_pair_that_does_not_fit_is_named_before_it_is_needed(files, tmp_path, cache_bytes):
    pairs = given(files, tmp_path / "low")
    Image.new("RGB", (13, 16)).save(tmp_path / "low" / "1.png")
    checked, bad = ImagePairs.checked(pairs, 4, cache_bytes=cache_bytes)
    (image,) = bad
    assert image.path == files[1]
    assert "1.png must be 12x16 pixels in low resolution, has 13x16, for a" in image.reason
    assert image.reason.endswith("of 48x64; `crop` cuts both to what they share")
    assert checked.paths == [files[0], files[2]]
    _, bad = ImagePairs.checked(given(files[:1], tmp_path / "low", crop=True), 4)
    assert not bad
    cropped, bad = ImagePairs.checked([pairs[1]._replace(crop=True)], 4)
    assert not bad
    assert cropped[0][0].shape == (3, 16, 12)


@pytest.mark.parametrize("name", ["area", "lanczos"])
def test_another_kernel_serves_files_and_stores_with_and_without_memory(folder, files, name):
    degradation = degradation_of(name)
    store = prepare_store(folder, folder.parent / "store", 2, workers=1).folder
    kinds = [
        ImagePairs(files, 2, degradation=degradation),
        ImagePairs(files, 2, cache_bytes=0, degradation=degradation),
        ImagePairs(read_store(store), 2, degradation=degradation),
    ]
    low, high = kinds[0][1]
    assert not torch.equal(low, imresize(high, 1 / 2))
    for pairs in kinds:
        assert equal(pairs[1], (low, high))
        a, b = pairs.patch(1, 6, (0.999, 0.4))
        assert torch.equal(a, low[:, -6:, 7:13])
        assert torch.equal(b, high[:, -12:, 14:26])


def test_random_patches_depend_on_seed_and_step_whoever_makes_them(folder, files):
    store = prepare_store(folder, folder.parent / "store", 4, workers=1).folder

    def sampler(photographs, seed=0, **settings):
        return PatchSampler(
            ImagePairs(photographs, 4, degradation=RANDOM, **settings), 4, 5, 4, seed
        )

    batches = list(sampler(files).batches(0, 6))  # by several threads
    for step in (5, 2, 0):
        assert equal(sampler(files, cache_bytes=0).batch(step), batches[step])
        assert equal(sampler(read_store(store)).batch(step), batches[step])
    assert not torch.equal(batches[0][0], sampler(files, seed=1).batch(0)[0])
    # The truth is that of the plain training, and one place is shown in several versions.
    plain = PatchSampler(ImagePairs(files, 4), 4, 5, 4, 0).batch(3)
    assert torch.equal(plain[1], batches[3][1])
    pairs = ImagePairs(files, 4, degradation=RANDOM)
    versions = {pairs.patch(1, 8, (0, 0), key)[0].numpy().tobytes() for key in range(4)}
    assert len(versions) == 4


def test_a_photograph_to_measure_on_is_degraded_by_its_name_alone(files):
    first = ImagePairs(files, 4, degradation=RANDOM)
    second = ImagePairs(files[1:], 4, cache_bytes=0, degradation=RANDOM)
    assert equal(first[2], second[1])
    assert equal(first[2], first[2])


@pytest.mark.parametrize("name", ["bicubic", "area"])
def test_small_photographs_are_continued_alike_in_both_versions(folder, files, name):
    degradation = degradation_of(name)
    store = prepare_store(folder, folder.parent / "store", 4, workers=1).folder
    for photographs in (files, read_store(store)):
        pairs, bad = ImagePairs.checked(photographs, 4, 32, degradation=degradation, pad=True)
        assert not bad
        assert [path.name for path in pairs.padded] == ["0.png"]
        low, high = pairs[0]
        plain, _ = ImagePairs(files, 4, degradation=degradation)[0]
        assert low.shape == (3, 8, 15)
        assert high.shape == (3, 32, 60)
        assert torch.equal(low[:, :6], plain)
        assert torch.equal(low[:, 6:], plain.flip(1)[:, :2])
        assert torch.equal(high[:, 24:], high[:, :24].flip(1)[:, :8])
        assert pairs.patch(0, 8, (0.5, 0.5))[0].shape == (3, 8, 8)
    _, bad = ImagePairs.checked(files, 4, 32)
    assert [(image.path.name, image.is_small) for image in bad] == [("0.png", True)]


def test_low_resolution_pictures_are_cut_and_continued(files):
    images, bad = LowImages.checked(files, 4, 40, pad=True)
    assert not bad
    assert [path.name for path in images.padded] == ["0.png"]
    assert images[0].shape == (3, 40, 60)
    (patch,) = images.patch(2, 7, (0.999, 0))
    assert torch.equal(patch, read_image(files[2])[:, -7:, :7])
    (low,) = PatchSampler(images, 4, 40, 3, 0).batch(0)
    assert low.shape == (3, 3, 40, 40)
    assert equal(
        PatchSampler(LowImages(files[1:], 4, 0), 4, 9, 2, 5).batch(1),
        PatchSampler(LowImages(files[1:], 4), 4, 9, 2, 5).batch(1),
    )
    images, bad = LowImages.checked(files, 4, 26)
    assert [image.path.name for image in bad] == ["0.png"]
    assert len(images) == 2
