"""Convolution of each sample with its own kernel, differentiable to any order.

Three maps, with p = k // 2 and zeros outside a map:

    F(x, w)[b, o, h, v]     = sum over c, i, j of x[b, c, h + i - p, v + j - p] w[b, o, c, i, j]
    Gx(g, w)                = the gradient of <g, F(x, w)> with respect to x
    Gw(g, x)                = the gradient of <g, F(x, w)> with respect to w

<g, F(x, w)> is linear in each of g, x and w, so the derivatives of the three are made of the three.
Each class below is one order; the last one's backward calls the first two, which closes the circle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mkdext.ops import reference
from mkdext.ops._checks import check_map, check_size, check_tensor, dtype_name
from mkdext.ops._dispatch import (
    apply,
    fold,
    has_kernel,
    is_autocast,
    register_fake,
    remember,
    to_kernel_dtype,
    unfold,
    wanted_gradients,
)

_NAME = "dynamic_conv2d"


def dynamic_conv2d(input: Tensor, weight: Tensor) -> Tensor:
    """Convolve each sample with its own kernel; stride 1, zero "same" padding.

    Sample b of the result is ``F.conv2d(input[b], weight[b], padding=k // 2)``. Differentiable any
    number of times, through `torch.autograd` and `torch.func`; a double backward is one fused
    kernel and only computes what is asked for. The number of threads changes no bit of a result.

    On a CPU, float32 and float64 are computed as they are; float16 and bfloat16 are computed in
    float32 and rounded once, and under autocast the result is float32. Other devices use
    `mkdext.ops.reference`.

    Args:
        input: ``[B, Ci, H, W]``, float32, float64, float16 or bfloat16; any strides. B may be 0,
            the other sizes may not.
        weight: ``[B, Co, Ci, k, k]``, k odd, of the same dtype (under autocast any) and device.

    Returns:
        ``[B, Co, H, W]``, of the dtype of ``input``.

    Raises:
        TypeError: An argument is not a dense floating tensor, or the dtypes differ.
        ValueError: The shapes do not fit, the kernel size is even, the devices differ, or a size
            overflows or exceeds the memory of the machine.

    Example:
        >>> input = torch.randn(2, 3, 8, 8)
        >>> weight = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
        >>> dynamic_conv2d(input, weight).shape
        torch.Size([2, 4, 8, 8])
    """
    _check(input, weight)
    if not has_kernel(input):
        return reference.dynamic_conv2d(input, weight)
    output: Tensor = apply(_Forward, to_kernel_dtype(input), to_kernel_dtype(weight))
    return output if is_autocast(input) else output.to(input.dtype)


def _check(input: Tensor, weight: Tensor) -> None:
    check_tensor(_NAME, "input", input)
    check_tensor(_NAME, "weight", weight)
    if input.device != weight.device:
        raise ValueError(
            f"{_NAME}: input and weight must be on one device, "
            f"got {input.device} and {weight.device}"
        )
    if input.dtype != weight.dtype and not is_autocast(input):
        raise TypeError(
            f"{_NAME}: input and weight must have one dtype, "
            f"got {dtype_name(input)} and {dtype_name(weight)}"
        )
    check_map(_NAME, "input", input, "[B, Ci, H, W]")
    batch, channels, height, width = input.shape
    got = f"got {list(weight.shape)}"
    if weight.dim() != 5:
        raise ValueError(f"{_NAME}: weight must be [B, Co, Ci, k, k], {got}")
    if weight.shape[0] != batch:
        raise ValueError(f"{_NAME}: weight must be [B, Co, Ci, k, k] with B={batch}, {got}")
    if weight.shape[2] != channels:
        raise ValueError(f"{_NAME}: weight must be [B, Co, Ci, k, k] with Ci={channels}, {got}")
    if weight.shape[1] < 1:
        raise ValueError(f"{_NAME}: weight must be [B, Co, Ci, k, k] with Co at least 1, {got}")
    if weight.shape[3] != weight.shape[4] or weight.shape[3] % 2 == 0:
        raise ValueError(f"{_NAME}: weight must be [B, Co, Ci, k, k] with one odd k, {got}")
    check_size(_NAME, "input", input.shape, input)
    check_size(_NAME, "weight", weight.shape, weight)
    check_size(_NAME, "the result", (batch, weight.shape[1], height, width), input)


# The three maps, each differentiable to any order. None stands for zero, as in autograd.


def _forward(input: Tensor | None, weight: Tensor | None) -> Tensor | None:
    if input is None or weight is None:
        return None
    output: Tensor = apply(_Forward, input, weight)
    return output


def _input_grad(grad: Tensor | None, weight: Tensor | None) -> Tensor | None:
    if grad is None or weight is None:
        return None
    gradient: Tensor = apply(_Backward, grad, None, weight, weight.shape[-1])[0]
    return gradient


def _weight_grad(grad: Tensor | None, input: Tensor | None, kernel_size: int) -> Tensor | None:
    if grad is None or input is None:
        return None
    gradient: Tensor = apply(_Backward, grad, input, None, kernel_size)[1]
    return gradient


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class _Forward(Function):
    """F(x, w)."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkdext.dynamic_conv2d(input, weight)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        remember(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        input, weight = ctx.saved_tensors
        want_input, want_weight = wanted_gradients(ctx)
        gradients: tuple[Tensor | None, Tensor | None] = apply(
            _Backward,
            grad,
            input if want_weight else None,
            weight if want_input else None,
            weight.shape[-1],
        )
        return gradients

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, weight: Tensor
    ) -> tuple[Tensor | None, int]:
        size = info.batch_size
        output = apply(_Forward, fold(input, in_dims[0], size), fold(weight, in_dims[1], size))
        return unfold(output, size), 0


class _Backward(Function):
    """(Gx(g, w), Gw(g, x)); each is computed if the w or x that it needs is given."""

    @staticmethod
    def forward(
        grad: Tensor, input: Tensor | None, weight: Tensor | None, kernel_size: int
    ) -> tuple[Tensor | None, Tensor | None]:
        ops = torch.ops.mkdext
        return (
            None if weight is None else ops.dynamic_conv2d_input_grad(grad, weight),
            None if input is None else ops.dynamic_conv2d_weight_grad(grad, input, kernel_size),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        remember(ctx, inputs)

    @staticmethod
    def backward(
        ctx: Any, grad_grad_input: Tensor | None, grad_grad_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_grad_input is None and grad_grad_weight is None:
            return None, None, None, None
        gradients: tuple[Tensor | None, ...] = apply(
            _DoubleBackward,
            *ctx.saved_tensors,
            grad_grad_input,
            grad_grad_weight,
            *wanted_gradients(ctx)[:3],
        )
        return *gradients, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        kernel_size: int,
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        size = info.batch_size
        tensors = [fold(t, d, size) for t, d in zip((grad, input, weight), in_dims, strict=False)]
        outputs = apply(_Backward, *tensors, kernel_size)
        return _unfold_all(outputs, size)


class _DoubleBackward(Function):
    """The gradients with respect to g, x and w of <ggx, Gx(g, w)> + <ggw, Gw(g, x)>.

    grad_g = F(ggx, w) + F(x, ggw), grad_x = Gx(g, ggw), grad_w = Gw(g, ggx).
    """

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        grad_grad_input: Tensor | None,
        grad_grad_weight: Tensor | None,
        want_grad: bool,
        want_input: bool,
        want_weight: bool,
    ) -> tuple[Tensor | None, ...]:
        wanted = (
            want_grad,
            want_input and grad_grad_weight is not None,
            want_weight and grad_grad_input is not None,
        )
        outputs = torch.ops.mkdext.dynamic_conv2d_double_backward(
            grad, input, weight, grad_grad_input, grad_grad_weight, *wanted
        )
        return tuple(o if w else None for o, w in zip(outputs, wanted, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        remember(ctx, inputs)

    @staticmethod
    def backward(
        ctx: Any, of_grad: Tensor | None, of_input: Tensor | None, of_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, w, ggx, ggw = ctx.saved_tensors
        need_g, need_x, need_w, need_ggx, need_ggw = wanted_gradients(ctx)[:5]
        size = (w if ggw is None else ggw).shape[-1]
        return (
            _sum(_forward(of_input, ggw), _forward(ggx, of_weight)) if need_g else None,
            _input_grad(of_grad, ggw) if need_x else None,
            _weight_grad(of_grad, ggx, size) if need_w else None,
            _sum(_input_grad(of_grad, w), _input_grad(g, of_weight)) if need_ggx else None,
            _sum(_weight_grad(of_grad, x, size), _weight_grad(g, of_input, size))
            if need_ggw
            else None,
            None,
            None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        size = info.batch_size
        tensors = [fold(t, d, size) for t, d in zip(inputs[:5], in_dims[:5], strict=True)]
        outputs = apply(_DoubleBackward, *tensors, *inputs[5:])
        return _unfold_all(outputs, size)


def _unfold_all(
    outputs: tuple[Tensor | None, ...], size: int
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    out_dims = tuple(None if output is None else 0 for output in outputs)
    return tuple(unfold(output, size) for output in outputs), out_dims


# Shapes for torch.compile and torch.library.opcheck.


@register_fake("dynamic_conv2d")
def _(input: Tensor, weight: Tensor) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[1], *input.shape[2:])


@register_fake("dynamic_conv2d_input_grad")
def _(grad: Tensor, weight: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[2], *grad.shape[2:])


@register_fake("dynamic_conv2d_weight_grad")
def _(grad: Tensor, input: Tensor, kernel_size: int) -> Tensor:
    shape = (grad.shape[0], grad.shape[1], input.shape[1], kernel_size, kernel_size)
    return grad.new_empty(shape)


@register_fake("dynamic_conv2d_double_backward")
def _(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    grad_grad_input: Tensor | None,
    grad_grad_weight: Tensor | None,
    want_grad: bool,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    like = grad_grad_weight if weight is None else weight
    assert like is not None  # the kernel refuses it too
    _, out_channels, in_channels, *kernel = like.shape
    batch, _, *area = grad.shape
    input_wanted = want_input and grad_grad_weight is not None
    weight_wanted = want_weight and grad_grad_input is not None

    def output(wanted: bool, *shape: int) -> Tensor:
        return grad.new_empty(shape if wanted else (0,))

    return (
        output(want_grad, batch, out_channels, *area),
        output(input_wanted, batch, in_channels, *area),
        output(weight_wanted, batch, out_channels, in_channels, *kernel),
    )
