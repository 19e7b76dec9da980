"""Piecewise linear functions whose derivatives take the slope of the piece as a constant.

PyTorch's own forms send a tensor of zeros, the derivative of the slope, through everything that the
slope depends on. Here the graph ends, which almost everywhere is the same function to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """`max(x, slope * x)` of a tensor of any shape, for a slope in (0, 1).

    Differentiable any number of times. The first derivative needs the result and nothing else; the
    graph of the first derivative keeps a byte for each element.

    Example:
        >>> leaky_relu(torch.tensor([-1.0, 2.0]), 0.25)
        tensor([-0.2500,  2.0000])
    """
    result: Tensor = _LeakyReLU.apply(x, slope)  # type: ignore[no-untyped-call]
    return result


def mean_magnitude(x: Tensor) -> Tensor:
    """Mean of `|x|` over all elements, a scalar; its gradient is `sign(x) / n`.

    Differentiable any number of times.

    Example:
        >>> mean_magnitude(torch.tensor([[-1.0, 2.0]]))
        tensor(1.5000)
    """
    result: Tensor = _MeanMagnitude.apply(x)  # type: ignore[no-untyped-call]
    return result


class _LeakyReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        result = functional.leaky_relu(x, slope)
        ctx.save_for_backward(result)
        ctx.slope = slope
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _scale(grad, result > 0, ctx.slope), None
        return torch.ops.aten.leaky_relu_backward(grad, result, ctx.slope, True), None


def _scale(x: Tensor, whole: Tensor, slope: float) -> Tensor:
    """`x` where `whole` holds, `slope * x` elsewhere."""
    scaled: Tensor = _LeakyScale.apply(x, whole, slope)  # type: ignore[no-untyped-call]
    return scaled


class _LeakyScale(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(whole)
        ctx.slope = slope
        # Of the second tensor it takes the sign; torch.where is slower.
        scaled: Tensor = torch.ops.aten.leaky_relu_backward(x, whole.to(x.dtype), slope, True)
        return scaled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (whole,) = ctx.saved_tensors
        return _scale(grad, whole, ctx.slope), None, None


class _MeanMagnitude(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sign = x.sign()
        ctx.save_for_backward(sign)
        return torch.dot(sign.flatten(), x.flatten()) / x.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (sign,) = ctx.saved_tensors
        scaled: Tensor = sign * (grad / sign.numel())
        return scaled
