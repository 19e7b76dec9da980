import threading

import numpy as np
import pytest
import torch
from PIL import Image

from mkdext.data import BadImageError, ImagePairs, PatchSampler, find_images, imresize, make_pair
from mkdext.data import images as images_module
from mkdext.data import pairs as pairs_module


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    for i, size in enumerate([(33, 50), (64, 41), (40, 40), (57, 90)]):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return find_images(tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files in the order in which they are decoded."""
    names, lock, read_image = [], threading.Lock(), images_module.read_image

    def read(path):
        with lock:
            names.append(path.name)
        return read_image(path)

    monkeypatch.setattr(images_module, "read_image", read)
    monkeypatch.setattr(pairs_module, "read_image", read)
    return names


def sampler(pairs, patch_size=5, batch_size=6, seed=0):
    return PatchSampler(pairs, pairs.scale, patch_size, batch_size, seed)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_pair_is_cut_to_whole_pixels_and_reduced():
    photograph = torch.randint(256, (3, 35, 50), dtype=torch.uint8)
    low, high = make_pair(photograph, 4)
    assert torch.equal(high, photograph[:, :32, :48])
    assert torch.equal(low, imresize(high, 1 / 4))
    with pytest.raises(ValueError, match="must have 8 pixels a side"):
        make_pair(torch.zeros(3, 7, 9, dtype=torch.uint8), 8)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_patches_are_the_same_with_and_without_memory_at_every_place(paths, scale):
    cached, uncached = ImagePairs(paths, scale), ImagePairs(paths, scale, cache_bytes=0)
    assert equal(uncached[0], cached[0])  # which finds that there is no memory
    for index in range(len(paths)):
        for row in (0, 0.2, 0.7, 0.999999):
            for column in (0, 0.4, 0.999999):
                patch = cached.patch(index, 3, (row, column))
                assert equal(uncached.patch(index, 3, (row, column)), patch)


def test_places_reach_every_corner(paths):
    pairs = ImagePairs(paths, 2)
    low, high = pairs[1]
    assert equal(pairs.patch(1, 4, (0, 0)), (low[:, :4, :4], high[:, :8, :8]))
    end = np.nextafter(1, 0)
    assert equal(pairs.patch(1, 4, (end, end)), (low[:, -4:, -4:], high[:, -8:, -8:]))


def test_a_batch_depends_on_seed_and_step_alone(paths):
    batch = sampler(ImagePairs(paths, 2)).batch(7)
    assert equal(sampler(ImagePairs(paths, 2, cache_bytes=0)).batch(7), batch)
    assert not equal(sampler(ImagePairs(paths, 2)).batch(8), batch)
    assert not equal(sampler(ImagePairs(paths, 2), seed=1).batch(7), batch)


def test_batches_are_those_of_the_steps_in_order_wherever_they_begin(paths):
    whole = list(sampler(ImagePairs(paths, 2)).batches(0, 30))
    resumed = list(sampler(ImagePairs(paths, 2, cache_bytes=0)).batches(13, 30))
    assert len(whole) == 30
    assert all(equal(a, b) for a, b in zip(resumed, whole[13:], strict=True))
    assert equal(whole[20], sampler(ImagePairs(paths, 2)).batch(20))
    assert list(sampler(ImagePairs(paths, 2)).batches(5, 5)) == []


def test_low_and_high_resolution_are_turned_alike(paths):
    low, high = sampler(ImagePairs(paths, 2), patch_size=12, batch_size=64).batch(0)
    assert low.shape == (64, 3, 12, 12)
    assert high.shape == (64, 3, 24, 24)
    assert low.dtype == high.dtype == torch.float32
    assert high.min() == 0
    assert high.max() == 1
    # The kernel is symmetric, so that reducing and turning can change places (up to rounding).
    inside = (..., slice(2, -2), slice(2, -2))
    assert (imresize(high, 1 / 2)[inside] - low[inside]).abs().max() < 1.5 / 255


def test_all_eight_orientations_and_all_photographs_occur(paths):
    pairs = ImagePairs(paths[2:3], 2)
    whole = pairs[0][0].float() / 255
    low, _ = sampler(pairs, patch_size=20, batch_size=100).batch(0)
    views = [torch.rot90(x, turn, (1, 2)) for x in (whole, whole.flip(2)) for turn in range(4)]
    counts = [sum(torch.equal(patch, view) for patch in low) for view in views]
    assert sum(counts) == 100
    assert min(counts) > 0

    pairs = ImagePairs(paths, 2)
    drawn = []
    pairs.patch = lambda index, *rest: drawn.append(index) or ImagePairs.patch(pairs, index, *rest)
    sampler(pairs, batch_size=200).batch(0)
    assert np.bincount(drawn).min() > 25


def test_checking_keeps_what_it_decodes(paths, decoded):
    paths[3].write_bytes(b"no image")
    pairs, bad = ImagePairs.checked(paths, 4, minimum_side=34)
    assert [image.path.name for image in bad] == ["0.png", "3.png"]
    assert pairs.paths == paths[1:3]
    decoded.clear()
    list(sampler(pairs).batches(0, 10))
    assert not decoded


def test_memory_holds_what_fits_and_the_rest_is_decoded_again(paths, decoded):
    size = sum(side.numel() for side in make_pair(torch.zeros(3, 33, 50).byte(), 2))
    pairs = ImagePairs(paths, 2, cache_bytes=size)
    for index in (0, 1, 0, 1, 0, 1):
        assert equal(pairs[index], ImagePairs(paths, 2)[index])
    assert decoded.count("0.png") == 1 + 3  # the other three are for the comparison
    assert decoded.count("1.png") == 3 + 3


def test_a_file_that_vanishes_is_named_by_the_step_that_needs_it(paths):
    pairs = ImagePairs(paths, 2)
    paths[0].unlink()
    with pytest.raises(BadImageError, match=r"0\.png: cannot be read"):
        list(sampler(pairs).batches(0, 10))


def test_background_threads_end_with_the_loop(paths):
    before = threading.active_count()
    for _ in sampler(ImagePairs(paths, 2)).batches(0, 1_000_000):
        break
    assert threading.active_count() == before


def test_unfit_sizes_are_refused(paths):
    pairs = ImagePairs(paths, 2)
    with pytest.raises(ValueError, match=r"pixels are too few for patches of 21"):
        sampler(pairs, patch_size=21, batch_size=50).batch(0)
    with pytest.raises(ValueError, match="scale must be 2 as in pairs, got 4"):
        PatchSampler(pairs, 4, 5, 6, 0)
    with pytest.raises(ValueError, match="at least one photograph"):
        PatchSampler(ImagePairs([], 2), 2, 5, 6, 0)
    for patch_size, batch_size, seed in [(0, 6, 0), (5, 0, 0), (5, 6, -1)]:
        with pytest.raises(ValueError, match="must be positive and seed not negative, got"):
            PatchSampler(pairs, 2, patch_size, batch_size, seed)
