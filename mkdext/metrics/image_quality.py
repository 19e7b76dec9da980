"""PSNR and SSIM on the luma channel, as super-resolution papers compute them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

_NAMED = 10  # photographs that are met exactly; of more, their number is told


def luma(image: Tensor) -> Tensor:
    """The Y channel of MATLAB's `rgb2ycbcr` (ITU-R BT.601, 16-235), not rounded.

    Args:
        image: `[..., 3, H, W]`, RGB, uint8 or floating point in [0, 1].

    Returns:
        float64 `[..., H, W]`, in 8-bit levels: 16 is black, 235 is white.

    Raises:
        TypeError: `image` is neither uint8 nor floating point.
        ValueError: `image` is not `[..., 3, H, W]`.

    Example:
        >>> luma(torch.tensor([255, 255, 255], dtype=torch.uint8).reshape(3, 1, 1)).item()
        235.0
    """
    if not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise TypeError(f"luma: image must be uint8 or floating point, got {image.dtype}")
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"luma: image must be [..., 3, H, W], got {list(image.shape)}")
    rgb = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    red, green, blue = rgb.unbind(-3)
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def luma_picture(image: Tensor) -> Tensor:
    """The Y channel as networks of Y take it: MATLAB's divided by 255.

    Args:
        image: `[..., 3, H, W]`, RGB, floating point in [0, 1].

    Returns:
        `[..., 1, H, W]` of the type of `image`: 16/255 is black, 235/255 is white.

    Raises:
        TypeError: `image` is not floating point.
        ValueError: `image` is not `[..., 3, H, W]`.

    Example:
        >>> luma_picture(torch.ones(1, 3, 2, 2)).shape
        torch.Size([1, 1, 2, 2])
    """
    if not image.is_floating_point():
        raise TypeError(f"luma_picture: image must be floating point, got {image.dtype}")
    return (luma(image) / 255).to(image.dtype).unsqueeze(-3)


def psnr_y(image: Tensor, reference: Tensor, border: int) -> float:
    """Peak signal-to-noise ratio of the Y channels in dB, peak 255.

    Args:
        image: `[3, H, W]`, RGB, uint8 or floating point in [0, 1]. Papers measure saved images:
            pass uint8 (`to_uint8`) to compare with them.
        reference: The true image, same shape.
        border: Pixels left out at each side; papers leave out as many as the scale.

    Returns:
        The ratio, infinite for equal images.

    Raises:
        TypeError: An image is neither uint8 nor floating point.
        ValueError: Shapes differ or nothing is left inside the border.

    Example:
        >>> reference = torch.zeros(3, 16, 16)
        >>> round(psnr_y(reference + 0.1, reference, border=4), 2)
        21.32
    """
    image_y, reference_y = _cropped_luma("psnr_y", image, reference, border, smallest=1)
    error = (image_y - reference_y).square().mean().item()
    return math.inf if error == 0 else 20 * math.log10(255) - 10 * math.log10(error)


def mean_psnr(values: Sequence[float]) -> tuple[float, int]:
    """Mean over the pictures that are not met exactly: one infinite value would hide all others.

    Args:
        values: In dB, at least one.

    Returns:
        The mean, infinite if all are, and how many are infinite.

    Example:
        >>> mean_psnr([30.0, math.inf, 32.0])
        (31.0, 1)
    """
    finite = [value for value in values if not math.isinf(value)]
    return sum(finite) / len(finite) if finite else math.inf, len(values) - len(finite)


def exact_note(way: str, names: Sequence[str]) -> str:
    """What to tell of the photographs that `mean_psnr` leaves out, by name."""
    listed = ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    many = f"{len(names)} photographs" if len(names) > 1 else "1 photograph"
    return f"{way}: {many} met exactly ({listed}), left out of the mean PSNR"


def ssim_y(image: Tensor, reference: Tensor, border: int) -> float:
    """Structural similarity of the Y channels (Wang et al. 2004), as their `ssim_index.m` has it.

    11x11 Gaussian window of sigma 1.5, K = (0.01, 0.03), range 255, mean over whole windows.

    Args:
        image: `[3, H, W]`, RGB, uint8 or floating point in [0, 1].
        reference: The true image, same shape.
        border: Pixels left out at each side.

    Returns:
        At most 1, which equal images have.

    Raises:
        TypeError: An image is neither uint8 nor floating point.
        ValueError: Shapes differ or less than 11x11 pixels are left inside the border.

    Example:
        >>> image = torch.rand(3, 32, 32)
        >>> ssim_y(image, image, border=4)
        1.0
    """
    image_y, reference_y = _cropped_luma("ssim_y", image, reference, border, smallest=11)
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            image_y.numpy(),
            reference_y.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


def ssim_y_uniform(image: Tensor, reference: Tensor, border: int) -> float:
    """Structural similarity of the Y channels as data-free contrastive distillation reports it.

    Window of 7x7 equal weights, sample covariance, and a range of 2 instead of 255, which all but
    takes away the constants that steady flat windows: values are far below those of `ssim_y`. Only
    to compare with that paper's table 1.

    Args:
        image: `[3, H, W]`, RGB, uint8 or floating point in [0, 1].
        reference: The true image, same shape.
        border: Pixels left out at each side.

    Returns:
        At most 1, which equal images have.

    Raises:
        TypeError: An image is neither uint8 nor floating point.
        ValueError: Shapes differ or less than 7x7 pixels are left inside the border.

    Example:
        >>> reference = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> image = 0.9 * reference + 0.1 * reference.mean()
        >>> ssim_y_uniform(image, reference, border=4) < ssim_y(image, reference, border=4)
        True
    """
    image_y, reference_y = _cropped_luma("ssim_y_uniform", image, reference, border, smallest=7)
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            image_y.numpy(), reference_y.numpy(), win_size=7, data_range=2
        )
    )


def to_uint8(image: Tensor) -> Tensor:
    """Round an image in [0, 1] to 8-bit levels, clipping what lies outside.

    Args:
        image: Floating point, any shape.

    Returns:
        uint8, the same shape.

    Raises:
        TypeError: `image` is not floating point.
        ValueError: A value is not a number.

    Example:
        >>> to_uint8(torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1])).tolist()
        [0, 0, 128, 255, 255]
    """
    if not image.is_floating_point():
        raise TypeError(f"to_uint8: image must be floating point, got {image.dtype}")
    if bool(image.isnan().any()):
        raise ValueError("to_uint8: image has values that are not numbers (NaN)")
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def _cropped_luma(
    name: str, image: Tensor, reference: Tensor, border: int, smallest: int
) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"{name}: image and reference must both be [3, H, W], "
            f"got {list(image.shape)} and {list(reference.shape)}"
        )
    height, width = image.shape[1:]
    if border < 0 or min(height, width) - 2 * border < smallest:
        raise ValueError(
            f"{name}: at least {smallest} pixels must be left inside the border, "
            f"got {width}x{height} pixels with border={border}"
        )
    inside = (slice(border, height - border), slice(border, width - border))
    return luma(image.detach().cpu())[inside], luma(reference.detach().cpu())[inside]
