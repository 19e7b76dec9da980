"""Local attribution maps against a direct computation, and where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from mkdext.metrics import (
    Window,
    attribution_map,
    blur_path,
    diffusion_index,
    gini,
    path_attribution,
    window_detail,
)

WINDOW = Window(left=6, top=4, size=5)


@pytest.fixture(scope="module")
def low() -> Tensor:
    return torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Enlarges twice, not linearly."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 12, 3, padding=1))
    return nn.Sequential(*layers, nn.PixelShuffle(2)).double().requires_grad_(False)


def gaussian(sigma: float) -> np.ndarray:
    y, x = np.mgrid[-4:5, -4:5]
    kernel = np.exp(-(x**2 + y**2) / (2 * (sigma + 1e-5) ** 2))
    return kernel / kernel.sum()


def blurred(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    # scipy's 'mirror' does not repeat the edge pixel.
    return np.stack([ndimage.correlate(plane, kernel, mode="mirror") for plane in image])


def plain_detail(sr: Tensor, window: Window) -> Tensor:
    """The sum of gradient magnitudes, pixel by pixel."""
    total = torch.zeros((), dtype=sr.dtype)
    for channel in sr:
        for y in range(window.top, window.top + window.size):
            for x in range(window.left, window.left + window.size):
                across = channel[y, x + 1] - channel[y, x]
                down = channel[y + 1, x] - channel[y, x]
                total = total + torch.hypot(across, down)
    return total


def plain_attribution(network: nn.Module, low: Tensor, window: Window, steps: int) -> np.ndarray:
    kernels = [gaussian(sigma) for sigma in np.linspace(1.2, 0, steps + 1)]
    image, total = low.numpy(), np.zeros(low.shape)
    for before, after in itertools.pairwise(kernels):
        point = torch.from_numpy(blurred(image, after)).requires_grad_()
        plain_detail(network(point[None])[0], window).backward()
        total += point.grad.numpy() * blurred(image, (after - before) * steps)
    return total / steps


def test_attribution_is_that_of_a_direct_computation(network: nn.Module, low: Tensor) -> None:
    expected = plain_attribution(network, low, WINDOW, 7)
    found = path_attribution(network, low, WINDOW, steps=7)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    pixels = np.abs(expected.sum(axis=0))
    found_map = attribution_map(found)
    np.testing.assert_allclose(found_map.numpy(), pixels / pixels.max(), rtol=1e-9, atol=1e-12)
    values = np.sort((pixels / pixels.max()).ravel()) + 1e-7
    differences = np.abs(values[:, None] - values[None, :]).mean()
    assert diffusion_index(found_map) == pytest.approx(100 * (1 - differences / values.mean() / 2))


def test_the_path_leads_from_a_blurred_image_to_the_image(low: Tensor) -> None:
    images, derivatives = blur_path(low, steps=6)
    beginning = blurred(low.numpy(), gaussian(1.2))
    np.testing.assert_allclose((images[0] - derivatives[0] / 6).numpy(), beginning, atol=1e-12)
    torch.testing.assert_close(images[-1], low)
    torch.testing.assert_close(images[1:] - images[:-1], derivatives[1:] / 6)
    part = blur_path(low, 6, slice(4, 8))
    torch.testing.assert_close(part, (images[4:], derivatives[4:]))


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_images_at_a_time_change_nothing(network: nn.Module, low: Tensor, batch_size: int) -> None:
    seen: list[int] = []

    def watched(batches: range) -> range:
        seen.extend(batches)
        return batches

    found = path_attribution(network, low, WINDOW, steps=5, batch_size=batch_size, progress=watched)
    torch.testing.assert_close(found, path_attribution(network, low, WINDOW, steps=5))
    assert seen == list(range(0, 5, batch_size))


def test_attributions_add_up_to_the_detail_gained_on_the_path(
    network: nn.Module, low: Tensor
) -> None:
    blurry = torch.from_numpy(blurred(low.numpy(), gaussian(1.2)))
    ends = window_detail(network(torch.stack([blurry, low])), WINDOW)
    gained = (ends[1] - ends[0]).item()
    errors = [
        abs(path_attribution(network, low, WINDOW, steps=steps).sum().item() - gained)
        for steps in (10, 40, 160)
    ]
    # A sum over the ends of steps is of first order.
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02 * abs(gained)


def test_attribution_of_a_linear_network_is_known_where_the_gradient_keeps_its_direction() -> None:
    """A slope that becomes steeper: blurred, it still rises everywhere, so detail is linear."""
    x = torch.linspace(0, 1, 16, dtype=torch.float64)
    slope = (x**3).expand(3, 12, 16)

    def triple(images: Tensor) -> Tensor:
        return 3 * images

    window = Window(left=4, top=2, size=6)
    found = path_attribution(triple, slope, window, steps=3)
    change = slope.numpy() - blurred(slope.numpy(), gaussian(1.2))
    expected = np.zeros_like(change)
    # Detail is 3 times the sum of last minus first of each row.
    expected[:, 2:8, 10] = 3 * change[:, 2:8, 10]
    expected[:, 2:8, 4] = -3 * change[:, 2:8, 4]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_a_network_that_looks_at_one_pixel_has_the_smallest_index(low: Tensor) -> None:
    pattern = torch.rand(1, 1, 20, 24, dtype=torch.float64)

    def from_one_pixel(images: Tensor) -> Tensor:
        return images[:, :, 3:4, 7:8] * pattern

    def from_all_pixels(images: Tensor) -> Tensor:
        mean = functional.avg_pool2d(images, 3, stride=1, padding=1).mean(dim=(2, 3), keepdim=True)
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3) * mean.square() * 20

    one = attribution_map(path_attribution(from_one_pixel, low, WINDOW, steps=5))
    assert one.nonzero().tolist() == [[3, 7]]
    pixels = one.numel()
    assert diffusion_index(one) == pytest.approx(100 / pixels, abs=0.01)
    all_of_them = attribution_map(path_attribution(from_all_pixels, low, WINDOW, steps=5))
    assert diffusion_index(all_of_them) > 3 * diffusion_index(one)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2, 2, 2, 2], 0),
        ([0, 0, 0, 1], 3 / 4),
        ([1, 3], 1 / 4),
        ([1, 2, 3, 4, 5], 4 / 15),
        ([-1, 0, 1], 4 / 9),  # Begins at 0: as 0, 1, 2.
    ],
)
def test_gini_coefficient_of_known_values(values: list[float], expected: float) -> None:
    assert gini(torch.tensor(values, dtype=torch.float32)) == pytest.approx(expected, abs=1e-5)
    assert gini(torch.tensor(values[::-1]).double()) == pytest.approx(expected, abs=1e-5)


def test_pixels_without_a_gradient_do_not_spoil_the_others(network: nn.Module, low: Tensor) -> None:
    def half_flat(images: Tensor) -> Tensor:
        sr = network(images)
        return torch.cat([sr[..., :9].clamp(max=-100), sr[..., 9:]], dim=-1)

    found = path_attribution(half_flat, low, WINDOW, steps=3)
    assert found.isfinite().all() and found.abs().max() > 0


@pytest.mark.parametrize(
    "window",
    [Window(-1, 0, 4), Window(0, 16, 4), Window(20, 0, 4), Window(0, 0, 0), Window(0, 0, 20)],
)
def test_window_outside_is_refused(network: nn.Module, low: Tensor, window: Window) -> None:
    with pytest.raises(ValueError, match="window must be inside of 24x20 pixels"):
        path_attribution(network, low, window)


def test_window_may_end_one_pixel_before_the_border(network: nn.Module, low: Tensor) -> None:
    assert path_attribution(network, low, Window(19, 15, 4), steps=1).shape == low.shape


def test_bad_input_is_refused(network: nn.Module, low: Tensor) -> None:
    with pytest.raises(TypeError, match=r"must be floating point, got torch\.uint8"):
        path_attribution(network, torch.zeros(3, 8, 8, dtype=torch.uint8), WINDOW)
    with pytest.raises(ValueError, match=r"sides of at least 5, got \[3, 4, 8\]"):
        path_attribution(network, low[:, :4, :8], WINDOW)
    with pytest.raises(ValueError, match=r"low must be \[3, h, w\], got \[1, 10, 12\]"):
        path_attribution(network, low[:1], WINDOW)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        path_attribution(network, low, WINDOW, steps=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        path_attribution(network, low, WINDOW, batch_size=0)
    with pytest.raises(ValueError, match="derivatives are not finite"):
        path_attribution(lambda images: network(images) * float("nan"), low, WINDOW, steps=1)
    with pytest.raises(ValueError, match="no pixel contributes anything"):
        attribution_map(torch.zeros(3, 8, 8))
