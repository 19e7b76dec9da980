"""Texture-aware kernels: patches of a feature map, each averaged to k x k.

The map from features to kernels is linear, so its transpose is its gradient, and the reverse: two
kernels give every order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mkdext.ops import reference
from mkdext.ops._checks import check_map, check_positive_int, check_size, check_tensor
from mkdext.ops._dispatch import (
    apply,
    call,
    fold,
    has_kernel,
    is_autocast,
    register_fake,
    to_kernel_dtype,
    unfold,
)

_NAME = "texture_kernels"


def texture_kernels(features: Tensor, grid: int, kernel_size: int) -> Tensor:
    """Cut each map into ``grid x grid`` patches and average each adaptively to a k x k kernel.

    Patch and bin boundaries follow adaptive average pooling: part ``i`` of ``n`` of a length ``L``
    is ``[floor(i L / n), ceil((i + 1) L / n))``, first for the patches, then for the bins within a
    patch. No size needs to divide another; in maps smaller than ``grid * kernel_size`` bins
    overlap. Where ``grid`` divides height and width the result is ``adaptive_avg_pool2d(features,
    grid * kernel_size)`` rearranged. Differentiable any number of times, through `torch.autograd`
    and `torch.func`.

    float32 and float64 are computed as they are; float16 and bfloat16 are computed in float32 and
    rounded once. Under autocast the result is float32 on a CPU, and of the dtype of ``features`` on
    CUDA, as pooling's is. Devices without compiled kernels use `mkdext.ops.reference`.

    Args:
        features: ``[B, C, H, W]``, float32, float64, float16 or bfloat16; any strides. B may be 0,
            the other sizes may not.
        grid: Patches per side, at least 1.
        kernel_size: Height and width k of a kernel, at least 1.

    Returns:
        ``[B, grid * grid, C, k, k]`` of the dtype of ``features``, patches in row-major order: with
        ``features`` of C channels a weight for `dynamic_conv2d` from C to grid * grid channels.

    Raises:
        TypeError: ``features`` is not a dense floating tensor, or another argument not an int.
        ValueError: A size is below 1, ``features`` is not 4-D, or the result overflows or exceeds
            the memory of the machine.

    Example:
        >>> texture_kernels(torch.randn(2, 3, 48, 48), grid=8, kernel_size=3).shape
        torch.Size([2, 64, 3, 3, 3])
    """
    _check(features, grid, kernel_size)
    if not has_kernel(features):
        return reference.texture_kernels(features, grid, kernel_size)
    kernels: Tensor = apply(_Forward, to_kernel_dtype(features), grid, kernel_size)
    return kernels if is_autocast(features) else kernels.to(features.dtype)


def _check(features: Tensor, grid: int, kernel_size: int) -> None:
    check_tensor(_NAME, "features", features)
    check_positive_int(_NAME, "grid", grid)
    check_positive_int(_NAME, "kernel_size", kernel_size)
    check_map(_NAME, "features", features, "[B, C, H, W]")
    batch, channels = features.shape[:2]
    check_size(_NAME, "features", features.shape, features)
    result = (batch, grid * grid, channels, kernel_size, kernel_size)
    # A batch of none must not hide a size that no batch could have.
    check_size(_NAME, "the result", (max(batch, 1), *result[1:]), features)


class _Forward(Function):
    """Features to kernels."""

    @staticmethod
    def forward(features: Tensor, grid: int, kernel_size: int) -> Tensor:
        operator = torch.ops.mkdext.texture_kernels
        kernels: Tensor = call(operator, features.device, features, grid, kernel_size)
        return kernels

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, ctx.grid, ctx.kernel_size = inputs
        ctx.height, ctx.width = features.shape[2:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return None, None, None
        return apply(_Transpose, grad, ctx.grid, ctx.height, ctx.width), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], features: Tensor, grid: int, kernel_size: int
    ) -> tuple[Tensor | None, int]:
        size = info.batch_size
        kernels = apply(_Forward, fold(features, in_dims[0], size), grid, kernel_size)
        return unfold(kernels, size), 0


class _Transpose(Function):
    """The transpose: a cotangent of the kernels to one of the features."""

    @staticmethod
    def forward(kernels: Tensor, grid: int, height: int, width: int) -> Tensor:
        operator = torch.ops.mkdext.texture_kernels_transpose
        features: Tensor = call(operator, kernels.device, kernels, grid, height, width)
        return features

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        kernels, ctx.grid, _, _ = inputs
        ctx.kernel_size = kernels.shape[-1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if grad is None:
            return None, None, None, None
        return apply(_Forward, grad, ctx.grid, ctx.kernel_size), None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        kernels: Tensor,
        grid: int,
        height: int,
        width: int,
    ) -> tuple[Tensor | None, int]:
        size = info.batch_size
        features = apply(_Transpose, fold(kernels, in_dims[0], size), grid, height, width)
        return unfold(features, size), 0


# Shapes for torch.compile and torch.library.opcheck.


@register_fake("texture_kernels")
def _(features: Tensor, grid: int, kernel_size: int) -> Tensor:
    batch, channels = features.shape[:2]
    return features.new_empty(batch, grid * grid, channels, kernel_size, kernel_size)


@register_fake("texture_kernels_transpose")
def _(kernels: Tensor, grid: int, height: int, width: int) -> Tensor:
    return kernels.new_empty(kernels.shape[0], kernels.shape[2], height, width)
