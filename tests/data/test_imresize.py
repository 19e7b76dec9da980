import math
import sys
import time

import numpy as np
import pytest
import torch

from mkdext.data import imresize
from mkdext.data.imresize import _integer_weights


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def textbook_matrix(size: int, scale: float) -> np.ndarray:
    """Row `i`: the weights of the source pixels in result pixel `i`, pixel centres at i + 1/2."""
    stretch = min(scale, 1.0)
    matrix = np.zeros((math.ceil(size * scale - 1e-9), size))
    for i in range(len(matrix)):
        centre = (i + 0.5) / scale - 0.5
        reach = math.ceil(2 / stretch) + 1
        for j in range(math.floor(centre) - reach, math.ceil(centre) + reach + 1):
            mirrored = j % (2 * size)
            mirrored = min(mirrored, 2 * size - 1 - mirrored)
            matrix[i, mirrored] += cubic(stretch * (centre - j))
    return matrix / matrix.sum(1, keepdims=True)


def textbook_imresize(images: np.ndarray, scale: float, round_levels: bool) -> np.ndarray:
    def levels(x: np.ndarray) -> np.ndarray:
        return np.clip(np.floor(x + 0.5), 0, 255) if round_levels else x

    rows = textbook_matrix(images.shape[-2], scale)
    columns = textbook_matrix(images.shape[-1], scale)
    return levels(levels(rows @ images) @ columns.T)


SCALES = [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2, 3, 4, 8]
SIZES = [(1, 1), (1, 5), (2, 3), (4, 2), (5, 5), (16, 24), (37, 50)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_floats_equal_the_textbook(scale, size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = torch.from_numpy(textbook_imresize(images.numpy(), scale, round_levels=False))
    torch.testing.assert_close(imresize(images, scale), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(imresize(images.float(), scale), expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [*SCALES, 1 / 5, 1 / 7, 1 / 16, 5])
@pytest.mark.parametrize("size", SIZES)
def test_8_bit_levels_equal_the_textbook_to_the_last_level(scale, size):
    # Few values, far apart, make ties and overshoots frequent.
    images = torch.tensor([0, 1, 2, 128, 255], dtype=torch.uint8)[torch.randint(5, (2, 3, *size))]
    resized = imresize(images, scale)
    expected = textbook_imresize(images.numpy().astype(np.float64), scale, round_levels=True)
    assert resized.dtype == torch.uint8
    np.testing.assert_array_equal(resized.numpy(), expected)


def test_rounding_happens_after_each_pass_rows_first():
    images = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    rounded_once = imresize(images.double(), 1 / 4).add(0.5).floor().clamp(0, 255)
    columns_first = imresize(images.transpose(1, 2), 1 / 4).transpose(1, 2)
    assert (imresize(images, 1 / 4) != rounded_once).any()
    assert (imresize(images, 1 / 4) != columns_first).any()


def test_constant_images_stay_constant_and_overshoot_is_clipped():
    assert (imresize(torch.full((9, 9), 255, dtype=torch.uint8), 1 / 3) == 255).all()
    edge = torch.zeros(8, 8, dtype=torch.uint8)
    edge[:, 4:] = 255
    assert imresize(edge.float(), 4).max() > 255
    assert imresize(edge, 4).max() == 255


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_resizing_the_pixels_around_a_place_equals_resizing_the_whole_image(factor):
    image = torch.randint(256, (3, 60, 60), dtype=torch.uint8)
    whole = imresize(image, 1 / factor)
    part = imresize(image[:, factor : 9 * factor, 2 * factor : 11 * factor], 1 / factor)
    assert torch.equal(part[:, 2:-2, 2:-2], whole[:, 3:7, 4:9])


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 2])
def test_gradients_of_first_and_second_order_are_right(scale):
    images = torch.rand(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale), images)
    assert torch.autograd.gradgradcheck(lambda x: imresize(x, scale).square(), images)


def test_the_same_for_any_batch_shape_and_memory_layout():
    images = torch.rand(2, 3, 12, 20)
    expected = imresize(images, 1 / 4)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(imresize(channels_last, 1 / 4), expected)
    torch.testing.assert_close(imresize(images.transpose(2, 3), 1 / 4), expected.transpose(2, 3))
    assert torch.equal(imresize(images[0, 0], 1 / 4), expected[0, 0])
    assert torch.equal(imresize(images[:, None], 1 / 4), expected[:, None])
    assert imresize(images[:0], 1 / 4).shape == (0, 3, 3, 5)
    assert imresize((images * 255).byte()[:0], 4).shape == (0, 3, 48, 80)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_types_are_computed_in_float32(dtype):
    images = torch.rand(3, 16, 16).to(dtype)
    assert torch.equal(imresize(images, 1 / 4), imresize(images.float(), 1 / 4).to(dtype))


def test_autocast_changes_nothing():
    images = torch.rand(3, 16, 16)
    expected = imresize(images, 1 / 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(imresize(images, 1 / 4), expected)


def test_works_under_vmap_and_inference_mode():
    images = torch.rand(4, 3, 16, 16)
    expected = imresize(images, 1 / 4)
    torch.testing.assert_close(torch.func.vmap(lambda x: imresize(x, 1 / 4))(images), expected)
    with torch.inference_mode():
        assert torch.equal(imresize(images, 1 / 4), expected)


def test_scale_one_copies():
    images = torch.rand(3, 4, 4)
    copy = imresize(images, 1)
    assert torch.equal(copy, images)
    assert copy.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("scale", [0, -2, 1.5, 0.3, math.nan, math.inf])
def test_scales_that_are_no_integer_ratio_are_refused(scale):
    with pytest.raises(ValueError, match=r"imresize: scale must be .* got"):
        imresize(torch.rand(3, 8, 8), scale)


def test_unfit_images_are_refused():
    with pytest.raises(TypeError, match=r"floating point or uint8, got torch\.int64"):
        imresize(torch.zeros(8, 8, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match=r"must be \[\.\.\., H, W\], got \[8\]"):
        imresize(torch.zeros(8), 2)
    with pytest.raises(ValueError, match=r"got \[3, 0, 8\]"):
        imresize(torch.zeros(3, 0, 8), 2)


def test_a_photograph_is_reduced_in_milliseconds():
    image = torch.randint(256, (3, 321, 481), dtype=torch.uint8)
    used = []
    for _ in range(5):
        start = time.thread_time()
        imresize(image, 1 / 4)
        used.append(time.thread_time() - start)
    assert min(used) < 0.05


def test_nothing_goes_to_a_gpu_in_a_way_that_waits(monkeypatch) -> None:
    images, seen = torch.rand(1, 3, 8, 12), []

    def sent(tensor, device):
        seen.append((*tensor.shape, tensor.dtype, device))
        return tensor

    monkeypatch.setattr(sys.modules["mkdext.data.imresize"], "sent", sent)
    imresize(images, 2)
    cpu = torch.device("cpu")
    assert seen == [(16, 8, torch.float32, cpu), (24, 12, torch.float32, cpu)]


def test_meta_tensors_are_resized_in_shape() -> None:
    for scale, size in ((4, (20, 28)), (1 / 2, (3, 4))):
        small = imresize(torch.empty(2, 3, 5, 7, device="meta"), scale)
        assert small.is_meta and small.shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (1e9, ValueError, "must be from 1/4096 to 4096, got 1000000000.0"),
        (1e-9, ValueError, "must be from 1/4096 to 4096, got 1e-09"),
        (math.nan, ValueError, "must be positive, got nan"),
        (math.inf, ValueError, "must be positive, got inf"),
        ("4", TypeError, "must be a number, got '4'"),
        (True, TypeError, "must be a number, got True"),
    ],
)
def test_a_scale_that_nobody_can_mean_is_refused(scale, error, message) -> None:
    with pytest.raises(error, match=f"imresize: scale {message}"):
        imresize(torch.rand(1, 8, 8), scale)


@pytest.mark.slow
def test_the_largest_scales_are_exact() -> None:
    levels = torch.full((1, 30, 20), 201, dtype=torch.uint8)
    assert imresize(levels, 1 / 4096).tolist() == [[[201]]]
    for enlarge in (False, True):
        phases, denominator = _integer_weights(4096, enlarge)
        assert 255 * max(sum(map(abs, taps.values())) for taps in phases) + denominator < 2**63
