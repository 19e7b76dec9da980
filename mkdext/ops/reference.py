"""The definitions of the operators in plain PyTorch.

They say what the compiled kernels must compute, serve as the fallback where there is no kernel, and
are differentiable to any order because everything in them is. Arguments are not checked here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dynamic_conv2d(input: Tensor, weight: Tensor) -> Tensor:
    """Convolve each sample with its own kernel: the samples become groups of one convolution.

    Args:
        input: ``[B, Ci, H, W]``, any floating dtype.
        weight: ``[B, Co, Ci, k, k]`` of the same dtype, k odd.

    Returns:
        ``[B, Co, H, W]``.

    Example:
        >>> dynamic_conv2d(torch.ones(2, 3, 8, 8), torch.ones(2, 4, 3, 3, 3)).shape
        torch.Size([2, 4, 8, 8])
    """
    batch, in_channels, height, width = input.shape
    out_channels, size = weight.shape[1], weight.shape[-1]
    if batch == 0:  # A convolution of no groups does not exist; this is as bilinear as one.
        return input.new_empty(0, out_channels, height, width) + input.sum() * weight.sum()
    output = F.conv2d(
        input.reshape(1, batch * in_channels, height, width),
        weight.reshape(batch * out_channels, in_channels, size, size),
        padding=size // 2,
        groups=batch,
    )
    return output.reshape(batch, out_channels, height, width)


def texture_kernels(features: Tensor, grid: int, kernel_size: int) -> Tensor:
    """Cut each map into ``grid x grid`` patches and average each adaptively to a kernel.

    Both steps use the rule of adaptive average pooling: part ``i`` of ``n`` of a length ``L`` is
    ``[floor(i L / n), ceil((i + 1) L / n))``. Where ``grid`` divides height and width this equals
    ``adaptive_avg_pool2d(features, grid * kernel_size)``, rearranged.

    Args:
        features: ``[B, C, H, W]``, any floating dtype.
        grid: Patches per side.
        kernel_size: Height and width k of a kernel.

    Returns:
        ``[B, grid * grid, C, k, k]``, patches in row-major order.

    Example:
        >>> texture_kernels(torch.ones(2, 3, 48, 48), grid=4, kernel_size=3).shape
        torch.Size([2, 16, 3, 3, 3])
    """
    batch, channels, height, width = features.shape
    rows = _pooling_matrix(height, grid, kernel_size, features)
    columns = _pooling_matrix(width, grid, kernel_size, features)
    pooled = rows @ features @ columns.T
    patches = pooled.reshape(batch, channels, grid, kernel_size, grid, kernel_size)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(
        batch, grid * grid, channels, kernel_size, kernel_size
    )


def spatial_affinity_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the spatial affinities of two feature maps.

    Args:
        student: ``[B, C_s, h, w]``, float32 or float64.
        teacher: ``[B, C_t, h, w]`` of the same dtype.

    Returns:
        A scalar; 0 for an empty batch.

    Example:
        >>> spatial_affinity_gap(torch.ones(2, 3, 8, 8), torch.ones(2, 4, 8, 8)).item() < 1e-6
        True
    """
    points = unit_points(student), unit_points(teacher)
    affinities = [p.transpose(1, 2) @ p for p in points]
    gap = (affinities[0] - affinities[1]).abs()
    return gap.sum() / max(gap.numel(), 1)


def unit_points(features: Tensor) -> Tensor:
    """The columns of a feature map, divided by their norm or by 1e-8 where that is larger.

    Args:
        features: ``[B, C, h, w]``, float32 or float64.

    Returns:
        ``[B, C, h * w]``.

    Example:
        >>> unit_points(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
        tensor([0.6000, 0.8000])
    """
    columns = features.flatten(2)
    return columns * columns.square().sum(1, keepdim=True).clamp_min(1e-16).rsqrt()


def _pooling_matrix(length: int, grid: int, kernel_size: int, like: Tensor) -> Tensor:
    """Return ``[grid * kernel_size, length]``: each row averages one bin of one patch."""
    patch_begin, patch_end = _adaptive_bins(
        torch.tensor([0], device=like.device), torch.tensor([length], device=like.device), grid
    )
    begin, end = _adaptive_bins(patch_begin, patch_end, kernel_size)
    position = torch.arange(length, device=like.device)
    inside = (begin[:, None] <= position) & (position < end[:, None])
    return inside.to(like.dtype) / (end - begin)[:, None].to(like.dtype)


def _adaptive_bins(begin: Tensor, end: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cut each range ``[begin, end)`` into ``count`` bins; return their begins and their ends."""
    length = (end - begin)[:, None]
    index = torch.arange(count, device=begin.device)
    bin_begin = begin[:, None] + index * length // count
    bin_end = begin[:, None] + ((index + 1) * length + count - 1) // count
    return bin_begin.flatten(), bin_end.flatten()
