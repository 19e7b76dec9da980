"""Degradations: their kernels, their numbers at random, their parameters in a file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mkdext.data import DEGRADATIONS, degradation_of, imresize
from mkdext.data.degradation import Parameters, RealESRGAN, drawn_for
from mkdext.data.degradation.kernels import bell_kernel, drawn_kernel, sinc_kernel
from mkdext.data.degradation.parameters import (
    Blur,
    Jpeg,
    Noise,
    Order,
    Resize,
    read_parameters,
)
from mkdext.data.degradation.resampling import MODES, resized

NO_BLUR, KEPT = Blur(probability=0.0), Resize(up=0.0, down=0.0, keep=1.0)
NO_NOISE, NO_JPEG = Noise(probability=0.0), Jpeg(probability=0.0)
NOTHING = Order(NO_BLUR, KEPT, NO_NOISE, NO_JPEG)


@pytest.fixture(scope="module")
def high() -> np.ndarray:
    y, x = np.mgrid[:64, :80]
    waves = np.stack([np.sin(x / 5), np.sin(y / 7), np.sin(x * y / 90)])
    return (127 + 100 * waves).astype(np.uint8)


def low(high: np.ndarray, parameters: Parameters, seed: int = 0, scale: int = 4) -> np.ndarray:
    degradation = RealESRGAN("test", parameters)
    return degradation.low(high, scale, np.random.default_rng(seed))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(20, 70), (90, 11), (37, 53), (1, 1)])
def test_images_are_resized_as_torch_does_it(mode, size):
    image = np.random.default_rng(0).random((3, 37, 53), np.float32)
    settings = {} if mode == "area" else {"align_corners": False}
    expected = functional.interpolate(torch.from_numpy(image)[None], size, mode=mode, **settings)
    assert np.abs(resized(image, size, mode) - expected[0].numpy()).max() < 1e-5


def test_bicubic_is_that_of_matlab_and_area_the_mean(high):
    of = {name: degradation_of(name).low(high, 4, drawn_for("a")) for name in DEGRADATIONS}
    assert np.array_equal(of["bicubic"], imresize(torch.from_numpy(high), 1 / 4).numpy())
    means = high.reshape(3, 16, 4, 20, 4).mean((2, 4))
    assert np.abs(of["area"] - means).max() <= 1
    assert {level.shape for level in of.values()} == {(3, 16, 20)}
    assert len({level.tobytes() for level in of.values()}) == len(DEGRADATIONS)


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "area", "lanczos"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_part_is_as_in_the_whole_photograph(name, scale):
    high = np.random.default_rng(0).integers(256, size=(3, 20 * scale, 22 * scale), dtype=np.uint8)
    degradation, random = degradation_of(name), drawn_for("a")
    whole = degradation.low(high, scale, random)
    for top, left in ((0, 0), (6, 9), (13, 15)):
        part = degradation.part(high, scale, (top, left), 7, random)
        assert np.array_equal(part, whole[:, top : top + 7, left : left + 7])


def test_kernels_have_sum_1_and_their_shapes():
    x = np.arange(7) - 3
    gauss = np.exp(-(x**2) / (2 * 1.3**2))
    assert np.allclose(
        bell_kernel(7, (1.3, 1.3), 0.4, 1.0), np.outer(gauss, gauss) / gauss.sum() ** 2
    )
    flat = bell_kernel(7, (2.0, 2.0), 0.0, 2.0, is_plateau=True)
    assert flat[3, 3] / flat[3, 4] < 1.1 < gauss[3] / gauss[4]
    wide = bell_kernel(9, (3.0, 0.5), math.pi / 2, 1.0)  # turned: long from top to bottom
    assert wide[:, 4].sum() > 0.7 > wide[4].sum()
    assert sinc_kernel(21, math.pi / 3).min() < -0.001  # it rings
    random = np.random.default_rng(0)
    drawn = [drawn_kernel(Blur(sinc=0.5), random) for _ in range(100)]
    assert {len(kernel) for kernel in drawn} == set(range(7, 22, 2))
    assert all(abs(kernel.sum() - 1) < 1e-5 for kernel in drawn)


def test_it_depends_on_its_random_numbers_alone(high):
    first, again, other = (low(high, Parameters(), seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_anything_it_is_one_resize(high):
    nothing = Parameters(NOTHING, NOTHING, 0.0)
    image = high.astype(np.float32) / 255
    expected = {mode: np.rint(resized(image, (16, 20), mode).clip(0, 1) * 255) for mode in MODES}
    for seed in range(5):
        made = low(high, nothing, seed)
        assert any(np.array_equal(made, levels) for levels in expected.values())


@pytest.mark.parametrize(("gaussian", "grey"), [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)])
def test_noise_has_its_size_and_is_grey_where_it_shall_be(gaussian, grey):
    high = np.full((3, 200, 200), 128, np.uint8)
    high[:, 0] = np.arange(200)  # so that there are as many photons as 256 levels have
    noise = Noise(1.0, gaussian, (10.0, 10.0), (1.0, 1.0), grey)
    parameters = Parameters(dataclasses.replace(NOTHING, noise=noise), NOTHING, 0.0)
    made = low(high, parameters, scale=1).astype(float)[:, 2:] - 128
    expected = 10 if gaussian else math.sqrt(128 / 255 / 256) * 255
    assert made.std() == pytest.approx(expected, rel=0.05)
    assert (np.ptp(made, axis=0).max() <= 1) == bool(grey)


def test_a_lower_quality_of_jpeg_loses_more(high):
    def error(quality):
        first = dataclasses.replace(NOTHING, jpeg=Jpeg(quality=(quality, quality)))
        made = low(high, Parameters(first, NOTHING, 0.0), scale=1)
        return np.abs(made.astype(float) - high).mean()

    assert error(95) < error(60) < error(20)


def test_a_file_changes_what_it_names_and_leaves_the_rest_as_published(tmp_path, high):
    file = tmp_path / "mine.yaml"
    file.write_text("second:\n  noise: {probability: 0}\n  blur: {sigma: [0.1, 1]}\n")
    parameters = read_parameters(file)
    assert parameters.first == Parameters().first
    assert parameters.second.noise == Noise(0.0, 0.5, (1.0, 25.0), (0.05, 2.5), 0.4)
    assert parameters.second.blur == Blur(probability=0.8, sigma=(0.1, 1.0))
    mine, published = degradation_of(str(file)), degradation_of("realesrgan")
    assert mine.label == "mine.yaml, fixed seed"
    assert mine.identity != published.identity
    file.write_text("")
    same = degradation_of(str(file)).low(high, 4, drawn_for("a.png"))
    assert np.array_equal(same, published.low(high, 4, drawn_for("a.png")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frist: {}", r"there is no frist; did you mean first\?"),
        ("first: {blur: {sigmas: [1, 2]}}", r"there is no first\.blur\.sigmas; did you mean sigma"),
        ("first: {blur: 3}", r"first\.blur must be names and values"),
        ("first: {blur: {size: [7, 20]}}", r"blur: size must be two odd numbers, got \[7, 20\]"),
        ("first: {blur: {sigma: [3, 1]}}", r"blur: sigma must be two numbers .*, got \[3\.0, 1"),
        ("first: {jpeg: {quality: high}}", r"first\.jpeg\.quality must be a list of integers"),
        ("second: {noise: {grey: 2}}", r"noise: grey must be from 0 to 1, got 2"),
        ("second: {resize: {up: 0, down: 0, keep: 0}}", r"up, down and keep .* not all 0"),
        ("second: {blur: {kernels: {iso: -1}}}", "kernels: weights must be at least 0"),
        ("- 3", "it must hold names and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"`degradation` .*mine.yaml.*{message}"):
        degradation_of(str(file))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"got 'bicubik'; did you mean bicubic\?"):
        degradation_of("bicubik")
    with pytest.raises(ValueError, match=r"`degradation` nowhere\.yaml does not exist"):
        degradation_of("nowhere.yaml")


def test_jpeg_blocks_begin_at_other_places(monkeypatch):
    regions = []
    monkeypatch.setattr(
        RealESRGAN, "low", lambda self, high, scale, random: regions.append(high.shape) or high
    )
    degradation = degradation_of("realesrgan")
    for name in "abcdefgh":
        degradation.part(np.zeros((3, 200, 200), np.uint8), 4, (20, 20), 5, drawn_for(name))
    assert len(set(regions)) > 4


def test_pictures_are_decoded_as_they_were_written(tmp_path: Path, high):
    # The JPEG in memory is that of a file.
    first = dataclasses.replace(NOTHING, jpeg=Jpeg(quality=(50, 50)))
    made = low(high, Parameters(first, NOTHING, 0.0), scale=1)
    Image.fromarray(high.transpose(1, 2, 0)).save(tmp_path / "a.jpg", quality=50)
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(made, np.asarray(image).transpose(2, 0, 1))
