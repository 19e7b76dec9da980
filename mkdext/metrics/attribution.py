"""Local attribution maps: which input pixels a super-resolution network makes its details from.

Gu and Dong, "Interpreting super-resolution networks with local attribution maps", CVPR 2021. The
gradient of the detail in a window of the result is integrated along a path of inputs, from a
blurred one to the input itself, which differ in nothing but their details. The diffusion index
(Figure 5 of MKD) says how evenly the input pixels are involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from mkdext.metrics.windows import Window

STEPS = 50
"""Images on the path."""
SIDE_MIN = 5
"""Least width and height of an input, which is mirrored at its border to be blurred."""

_SIGMA = 1.2  # pixels, of the most blurred image
_KERNEL_SIZE = 9  # pixels


def blur_path(
    image: Tensor, steps: int = STEPS, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """A path from a blurred image to the image itself, and its derivative.

    The image is convolved with 9x9 Gaussians whose sigma falls evenly from 1.2 pixels to 0, and is
    mirrored at its border without repeating the edge pixel.

    Args:
        image: `[C, H, W]`, floating point, sides of at least 5.
        steps: Images on the path. The most blurred one is its beginning, and none of them.
        part: Which of them are wanted.

    Returns:
        Images `[N, C, H, W]`, the last of which is `image`, and how each differs from the one
        before, times `steps`: the derivative by the position on the path, which is from 0 to 1.

    Raises:
        TypeError: `image` is not floating point.
        ValueError: `image` is not `[C, H, W]` or too small, or `steps` is below 1.

    Example:
        >>> image = torch.rand(3, 16, 16)
        >>> images, derivatives = blur_path(image)
        >>> images.shape, torch.allclose(images[-1], image)
        (torch.Size([50, 3, 16, 16]), True)
    """
    _check_input("blur_path", image, steps)
    kernels = _gaussians(steps).to(image.device)
    ends, changes = kernels[1:][part], kernels.diff(dim=0)[part] * steps
    return _filtered(image, ends), _filtered(image, changes)


def window_detail(images: Tensor, window: Window) -> Tensor:
    """How much detail a window has: the sum of the magnitudes of the colour channels' gradients.

    Gradients are differences to the pixels on the right and below, so the window must end one pixel
    before the image. The derivative of the magnitude is taken as 0 where the gradient is 0.

    Args:
        images: `[B, C, H, W]`.
        window: Where.

    Returns:
        `[B]`.

    Raises:
        ValueError: The window is not inside, or empty.

    Example:
        >>> ramp = torch.arange(8.0).expand(1, 3, 8, 8)
        >>> window_detail(ramp, Window(left=2, top=2, size=4)).item()
        48.0
    """
    left, top, size = window
    height, width = images.shape[-2:]
    if min(left, top) < 0 or size < 1 or left + size >= width or top + size >= height:
        raise ValueError(
            f"window_detail: window must be inside of {width}x{height} pixels and end one pixel "
            f"before their border, got left={left}, top={top}, size={size}"
        )
    return detail(images[..., top : top + size + 1, left : left + size + 1]).sum(dim=(-3, -2, -1))


def detail(images: Tensor) -> Tensor:
    """Magnitude of the gradient at each pixel: `[..., H, W]` to `[..., H - 1, W - 1]`.

    Example:
        >>> detail(torch.arange(8.0).expand(3, 8, 8)).unique()
        tensor([1.])
    """
    corner = images[..., :-1, :-1]
    squares = (images[..., :-1, 1:] - corner) ** 2 + (images[..., 1:, :-1] - corner) ** 2
    # The derivative of the root is infinite at 0, and 0 times infinity is not a number.
    flat = squares == 0
    return squares.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)


def path_attribution(
    network: Callable[[Tensor], Tensor],
    low: Tensor,
    window: Window,
    *,
    steps: int = STEPS,
    batch_size: int = 1,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """What each input value contributes to the detail in a window of the result.

    The integral, along `blur_path`, of the gradient of `window_detail` times the derivative of the
    path. The contributions add up to the difference between the detail that the network makes of
    the input and of the blurred input, as nearly as `steps` allow.

    Args:
        network: Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1], in
            differentiable operations.
        low: The input, `[3, h, w]`, floating point in [0, 1], sides of at least 5.
        window: Where in the result.
        steps: Images on the path.
        batch_size: How many of them at a time: memory grows with it, the result is the same.
        progress: Wraps the iteration over batches, to show how far it has come.

    Returns:
        `[3, h, w]`, of either sign, type and device of `low`.

    Raises:
        TypeError: `low` is not floating point.
        ValueError: `low` is not `[3, h, w]` or too small, the window is not inside the result, a
            number is below 1, or the network's derivatives are not finite or there are none.

    Example:
        >>> enlarge = torch.nn.Upsample(scale_factor=2, mode="bicubic")
        >>> path_attribution(enlarge, torch.rand(3, 16, 16), Window(8, 8, 16)).shape
        torch.Size([3, 16, 16])
    """
    _check_input("path_attribution", low, steps)
    if low.shape[0] != 3:
        raise ValueError(f"path_attribution: low must be [3, h, w], got {list(low.shape)}")
    if batch_size < 1:
        raise ValueError(f"path_attribution: batch_size must be at least 1, got {batch_size}")
    total = torch.zeros_like(low)
    for first in progress(range(0, steps, batch_size)):
        images, derivatives = blur_path(low, steps, slice(first, first + batch_size))
        with torch.enable_grad():
            made = window_detail(network(images.requires_grad_()), window).sum()
            if not made.requires_grad:
                raise ValueError("path_attribution: the network passes no gradient to its input")
            (gradients,) = torch.autograd.grad(
                made, images, allow_unused=True, materialize_grads=True
            )
        total += (gradients * derivatives).sum(dim=0)
    if not total.isfinite().all():
        raise ValueError("path_attribution: the network's derivatives are not finite")
    return total / steps


def attribution_map(attribution: Tensor) -> Tensor:
    """The map that is looked at: contributions of each pixel without their sign, at most 1.

    Args:
        attribution: `[3, h, w]`, from `path_attribution`.

    Returns:
        `[h, w]`: the magnitude of the sum over colours, divided by the largest.

    Raises:
        ValueError: No pixel contributes anything.

    Example:
        >>> attribution_map(torch.tensor([[[1.0, -4.0]], [[1.0, 0.0]]]))
        tensor([[0.5000, 1.0000]])
    """
    pixels = attribution.sum(dim=0).abs()
    largest = pixels.max()
    if largest == 0:
        raise ValueError("attribution_map: no pixel contributes anything")
    return pixels / largest


def gini(values: Tensor) -> float:
    """Gini coefficient: 0 if all values are equal, near 1 if all but one of many are 0.

    As for attribution maps, 1e-7 is added to all values, and negative ones are shifted to begin
    there.

    Example:
        >>> round(gini(torch.tensor([1.0, 3.0])), 4)
        0.25
    """
    x = values.detach().double().flatten().sort().values
    x = x - x[0].clamp(max=0) + 1e-7
    n = len(x)
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    return (((2 * ranks - n - 1) * x).sum() / (n * x.sum())).item()


def diffusion_index(pixels: Tensor) -> float:
    """How evenly pixels are involved: 100 if all equally, 0 if one of many alone.

    It is the less, the larger the image is beyond what the network looks at, so it compares
    networks on the same image and window only.

    Args:
        pixels: `[h, w]`, from `attribution_map`.

    Example:
        >>> diffusion_index(torch.ones(8, 8))
        100.0
    """
    return (1 - gini(pixels)) * 100


def _check_input(name: str, image: Tensor, steps: int) -> None:
    if not image.is_floating_point():
        raise TypeError(f"{name}: the image must be floating point, got {image.dtype}")
    if image.ndim != 3 or min(image.shape[1:]) < SIDE_MIN:
        raise ValueError(
            f"{name}: the image must be [C, H, W] with sides of at least {SIDE_MIN}, "
            f"got {list(image.shape)}"
        )
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, got {steps}")


def _gaussians(steps: int) -> Tensor:
    """Kernels `[steps + 1, k, k]` from the widest to the identity, float64."""
    # The last sigma is a little more than 0, where the quotient would not be a number.
    sigmas = torch.linspace(_SIGMA, 0, steps + 1, dtype=torch.float64)[:, None] + 1e-5
    distances = torch.arange(_KERNEL_SIZE, dtype=torch.float64) - _KERNEL_SIZE // 2
    profiles = torch.exp(-((distances / sigmas) ** 2) / 2)
    profiles /= profiles.sum(dim=1, keepdim=True)
    return profiles[:, :, None] * profiles[:, None, :]


def _filtered(image: Tensor, kernels: Tensor) -> Tensor:
    """An image `[C, H, W]` filtered by each kernel `[N, k, k]`: `[N, C, H, W]`."""
    pad = _KERNEL_SIZE // 2
    mirrored = functional.pad(image[:, None], (pad, pad, pad, pad), mode="reflect")
    weight = kernels[:, None].to(image.dtype)
    return functional.conv2d(mirrored, weight).transpose(0, 1).contiguous()
