import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.color import rgb2ycbcr
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mkdext.metrics import (
    exact_note,
    luma,
    luma_picture,
    mean_psnr,
    psnr_y,
    ssim_y,
    ssim_y_uniform,
    to_uint8,
)


@pytest.fixture(scope="module")
def photograph():
    return torch.from_numpy(astronaut()[100:196, 180:290].copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def distorted(photograph):
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(photograph.shape, generator=random) * 12
    return (photograph + noise).clamp(0, 255).to(torch.uint8)


def y(image):
    """ITU-R BT.601 with the foot and head room of video."""
    red, green, blue = image.double().numpy() / 255
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def wang_ssim(a, b):
    """The formula of Wang et al. 2004, window by window."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x):
        return convolve2d(x, window, mode="valid")

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (numerator / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean()


def test_luma_is_that_of_matlab_and_not_rounded(photograph):
    expected = rgb2ycbcr(photograph.permute(1, 2, 0).numpy())[..., 0]
    torch.testing.assert_close(luma(photograph), torch.from_numpy(expected))
    assert (luma(photograph) != luma(photograph).round()).any()
    primaries = torch.eye(3).reshape(3, 3, 1)
    torch.testing.assert_close(
        luma(primaries).flatten(), torch.tensor([81.481, 144.553, 40.966]).double()
    )


def test_networks_of_y_take_a_255th_of_it_in_the_type_of_the_image():
    pictures = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 3, 4, 5)
    for dtype in (torch.float32, torch.float64):
        taken = luma_picture(pictures.to(dtype))
        assert taken.dtype == dtype and taken.shape == (2, 1, 4, 5)
        torch.testing.assert_close(taken[:, 0, 0, 0], torch.tensor([235, 16]).to(dtype) / 255)
    with pytest.raises(TypeError, match=r"^luma_picture: image must be floating point, got .*uin"):
        luma_picture(torch.zeros(3, 4, 5, dtype=torch.uint8))


@pytest.mark.parametrize("border", [0, 2, 4])
def test_psnr_is_the_formula_and_skimage(photograph, distorted, border):
    inside = np.s_[border : 96 - border, border : 110 - border]
    a, b = y(distorted)[inside], y(photograph)[inside]
    value = psnr_y(distorted, photograph, border)
    assert value == pytest.approx(10 * math.log10(255**2 / ((a - b) ** 2).mean()), abs=1e-9)
    assert value == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-9)


@pytest.mark.parametrize("border", [0, 2, 4])
def test_ssim_is_the_formula_and_skimage(photograph, distorted, border):
    inside = np.s_[border : 96 - border, border : 110 - border]
    a, b = y(distorted)[inside], y(photograph)[inside]
    value = ssim_y(distorted, photograph, border)
    assert value == pytest.approx(wang_ssim(a, b), abs=1e-9)
    arguments = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert value == pytest.approx(structural_similarity(a, b, data_range=255, **arguments))
    assert 0.3 < value < 0.95


@pytest.mark.parametrize("border", [0, 3])
def test_uniform_ssim_is_the_formula_at_a_range_of_2(photograph, distorted, border):
    inside = np.s_[border : 96 - border, border : 110 - border]
    a, b = y(distorted)[inside], y(photograph)[inside]
    window = np.full((7, 7), 1 / 49)
    mean_a, mean_b = (convolve2d(x, window, mode="valid") for x in (a, b))
    moments = (convolve2d(x, window, mode="valid") for x in (a * a, b * b, a * b))
    products = (mean_a**2, mean_b**2, mean_a * mean_b)
    # Sample covariances, of 49 pixels.
    variance_a, variance_b, covariance = (
        (moment - product) * 49 / 48 for moment, product in zip(moments, products, strict=True)
    )
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected = numerator / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    value = ssim_y_uniform(distorted, photograph, border)
    assert value == pytest.approx(expected.mean(), abs=1e-9)
    assert value < ssim_y(distorted, photograph, border)


def test_known_values():
    grey = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    # Ten levels of RGB are 10 * 219 / 255 of Y.
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    assert psnr_y(grey + 10, grey, border=4) == pytest.approx(expected)
    a, b = 16 + 219 * 110 / 255, 16 + 219 * 100 / 255
    c1 = (0.01 * 255) ** 2
    assert ssim_y(grey + 10, grey, border=4) == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1))


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_only_what_is_inside_the_border_counts(photograph, distorted, metric):
    other = distorted.clone()
    other[:, :4], other[:, -4:], other[:, :, :4], other[:, :, -4:] = 0, 255, 0, 255
    assert metric(other, photograph, 4) == metric(distorted, photograph, 4)
    assert metric(other, photograph, 3) != metric(distorted, photograph, 3)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_bytes_and_floats_measure_the_same(photograph, distorted, metric):
    value = metric(distorted, photograph, 4)
    as_floats = metric(distorted.double() / 255, photograph.double() / 255, 4)
    assert as_floats == pytest.approx(value, abs=1e-9)
    assert metric(distorted.float() / 255, photograph, 4) == pytest.approx(value, abs=1e-4)


def test_equal_images_are_perfect(photograph):
    assert psnr_y(photograph, photograph, 4) == math.inf
    assert ssim_y(photograph, photograph, 4) == 1


def test_images_that_are_not_finite_measure_as_such(photograph):
    reference = photograph.float() / 255
    assert math.isnan(psnr_y(reference * math.nan, reference, 4))
    assert psnr_y(reference + math.inf, reference, 4) == -math.inf


def test_images_with_gradients_can_be_measured(photograph, distorted):
    image = (distorted.float() / 255).requires_grad_()
    assert psnr_y(image, photograph, 4) > 20


@pytest.mark.parametrize("metric", [psnr_y, ssim_y, ssim_y_uniform])
def test_unfit_images_are_refused(metric):
    image = torch.rand(3, 24, 20)
    name = metric.__name__
    with pytest.raises(ValueError, match=rf"{name}: .* got \[3, 24, 20\] and \[3, 24, 21\]"):
        metric(image, torch.rand(3, 24, 21), 0)
    with pytest.raises(ValueError, match=rf"{name}: .* must both be \[3, H, W\]"):
        metric(image[:1], image[:1], 0)
    with pytest.raises(ValueError, match=rf"{name}: .* must both be \[3, H, W\]"):
        metric(image[None], image[None], 0)
    with pytest.raises(ValueError, match=rf"{name}: .* 20x24 pixels with border=10"):
        metric(image, image, 10)
    with pytest.raises(ValueError, match="border=-1"):
        metric(image, image, -1)
    with pytest.raises(TypeError, match=r"uint8 or floating point, got torch\.int64"):
        metric(image.long(), image.long(), 0)


def test_ssim_needs_a_whole_window():
    image = torch.rand(3, 11, 15)
    assert ssim_y(image, image, 0) == 1
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim_y(image, image, 1)


def test_rounding_to_bytes_clips():
    image = torch.tensor([-1, 0, 0.4 / 255, 0.6 / 255, 1, 2])
    assert to_uint8(image).tolist() == [0, 0, 0, 1, 255, 255]
    with pytest.raises(TypeError, match=r"floating point, got torch\.uint8"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


def test_bytes_survive_the_way_to_floats_and_back():
    levels = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 255), levels)


def test_a_mean_leaves_out_what_is_infinite_and_counts_it():
    assert mean_psnr([30.0, 32.0]) == (31.0, 0)
    assert mean_psnr([math.inf, 32.0, math.inf]) == (32.0, 2)
    assert mean_psnr([math.inf]) == (math.inf, 1)


def test_what_is_no_number_has_no_level():
    assert to_uint8(torch.tensor([-math.inf, math.inf])).tolist() == [0, 255]
    with pytest.raises(
        ValueError, match=r"to_uint8: image has values that are not numbers \(NaN\)"
    ):
        to_uint8(torch.tensor([0.5, math.nan]))


def test_many_exact_photographs_are_counted():
    assert exact_note("bicubic", ["a.png"]).startswith("bicubic: 1 photograph met exactly (a.png)")
    note = exact_note("teacher", [f"{number}.png" for number in range(12)])
    assert "12 photographs met exactly (0.png, " in note and "9.png and 2 more)" in note
