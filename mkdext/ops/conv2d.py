"""Convolution of a batch with one kernel, by Winograd's algorithm where that is faster.

Four maps, with zeros outside a map:

    F(x, w)[n, o, h, v]     = sum over c, i, j of x[n, c, h + i - 1, v + j - 1] w[o, c, i, j]
    Gx(g, w)                = the gradient of <g, F(x, w)> with respect to x
    Gw(g, x)                = the gradient of <g, F(x, w)> with respect to w
    S(g)[o]                 = sum over n, h, v of g[n, o, h, v]

The result is F(x, w) + b. <g, F(x, w)> is linear in each of g, x and w, and the bias enters alone,
so the derivatives of the four are made of the four. Each class below is one order; the last one's
backward calls the first two, which closes the circle.

With an upscale factor r above 1 all maps of the shape of the result are read and written as their
``pixel_shuffle(r)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from mkdext._system import extension
from mkdext.ops._checks import check_map, check_positive_int, check_tensor, dtype_name
from mkdext.ops._dispatch import (
    apply,
    map_each,
    register_fake,
    remember,
    wanted_gradients,
)

_NAME = "conv2d"
_stock = 0 if extension.status().state == "loaded" else 1  # how many ask for it


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, upscale_factor: int = 1
) -> Tensor:
    """Convolve a batch with one kernel; stride 1, zero "same" padding.

    The result is ``F.pixel_shuffle(F.conv2d(input, weight, bias, padding=k // 2),
    upscale_factor)``, up to rounding. On a CPU, in float32 and with 3x3 kernels, it is computed by
    Winograd's F(4x4, 3x3) where that is faster (`conv2d_algorithm` tells), to second order and
    beyond, and the pixel shuffle is only a way of storing. Everything else goes to PyTorch's own
    convolution: other devices, dtypes and kernels, autocast, forward-mode derivatives, and what is
    traced, compiled or exported.

    In float32, on N(0, 1) data, the norm of the error relative to that of the result is at most
    1.5e-6, for derivatives as well. A value that is not finite may spread to all outputs of the 4x4
    tiles whose 6x6 inputs hold it, and in the gradient of the weight to all elements of a kernel;
    never to another sample. The number of threads changes no bit of a result.

    Args:
        input: ``[B, Ci, H, W]``, any strides; contiguous and channels_last are read as they are. B
            may be 0, the other sizes may not.
        weight: ``[Co, Ci, k, k]``, k odd, of the same dtype and device.
        bias: ``[Co]``; none: zero.
        upscale_factor: r; Co must be a multiple of r * r.

    Returns:
        ``[B, Co / r^2, r H, r W]``, in channels_last if input or weight are.

    Raises:
        TypeError: An argument is not a dense floating tensor, or the dtypes differ.
        ValueError: The shapes do not fit, the kernel size is even, or the devices differ.

    Example:
        >>> conv2d(torch.ones(2, 8, 6, 6), torch.ones(16, 8, 3, 3)).shape
        torch.Size([2, 16, 6, 6])
        >>> conv2d(torch.ones(2, 8, 6, 6), torch.ones(16, 8, 3, 3), upscale_factor=2).shape
        torch.Size([2, 4, 12, 12])
    """
    result = winograd_conv2d(input, weight, bias, upscale_factor=upscale_factor)
    if result is not None:
        return result
    # What is recorded must hold for other sizes.
    if not (_is_traced() or isinstance(input, torch.fx.Proxy)):
        _check(input, weight, bias, upscale_factor)
    output = F.conv2d(input, weight, bias, padding=weight.shape[-1] // 2)
    return F.pixel_shuffle(output, upscale_factor) if upscale_factor > 1 else output


def winograd_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, upscale_factor: int = 1
) -> Tensor | None:
    """What `conv2d` returns where it takes Winograd's algorithm; elsewhere nothing.

    For callers that have their own convolution for all else: nothing is checked in words.

    Example:
        >>> winograd_conv2d(torch.ones(1, 8, 8, 8), torch.ones(8, 8, 5, 5)) is None
        True
    """
    if not _takes_winograd(input, weight, bias, upscale_factor):
        return None
    channels_last = _is_channels_last(input) or _is_channels_last(weight)
    shuffled = upscale_factor if channels_last else 1  # a store of single numbers would be slow
    result: Tensor = apply(_Forward, input, weight, bias, shuffled, channels_last)
    return result if shuffled == upscale_factor else F.pixel_shuffle(result, upscale_factor)


def conv2d_algorithm(input: Tensor, weight: Tensor) -> str:
    """Tell what `conv2d` takes.

    Args:
        input: As for `conv2d`.
        weight: As for `conv2d`.

    Returns:
        ``"winograd"``, or ``"stock"`` for PyTorch's own convolution.

    Example:
        >>> conv2d_algorithm(torch.ones(1, 8, 8, 8), torch.ones(8, 8, 5, 5))
        'stock'
    """
    return "winograd" if _takes_winograd(input, weight, None, 1) else "stock"


@contextmanager
def stock_convolutions() -> Iterator[None]:
    """Let `conv2d` take PyTorch's own convolution alone, in all threads of the process.

    Derivatives take the algorithm of the result that they belong to.

    Example:
        >>> with stock_convolutions():
        ...     conv2d_algorithm(torch.ones(1, 64, 48, 48), torch.ones(64, 64, 3, 3))
        'stock'
    """
    global _stock
    _stock += 1
    try:
        yield
    finally:
        _stock -= 1


_DENSE = (Tensor, nn.Parameter)


def _takes_winograd(input: Tensor, weight: Tensor, bias: Tensor | None, factor: int) -> bool:
    """Whether the arguments are right, can be computed by the kernels, and should be."""
    if _stock or _is_traced():
        return False
    if not (_is_usable(input, 4) and _is_usable(weight, 4)):
        return False
    out_channels, in_channels, height, width = weight.shape
    if not height == width == 3 or input.shape[1] != in_channels:
        return False
    if bias is not None and not (_is_usable(bias, 1) and bias.shape[0] == out_channels):
        return False
    if type(factor) is not int or factor < 1 or out_channels % factor**2:
        return False
    # Derivatives along a direction are PyTorch's, and the level is its private matter.
    if torch.is_autocast_enabled("cpu") or getattr(forward_ad, "_current_level", -1) >= 0:
        return False
    return _wins(input.shape, out_channels)


def _is_traced() -> bool:
    if torch.compiler.is_compiling():
        return True
    is_tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_tracing


def _is_usable(tensor: Tensor, dim: int) -> bool:
    return (
        type(tensor) in _DENSE
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.dim() == dim
    )


def _wins(shape: torch.Size, out_channels: int) -> bool:
    """Whether Winograd's algorithm is faster, by measurements with 1 to 1024 channels.

    It must make up for calls from Python, and for the transform of the kernel, which is the same
    for few pixels as for many.
    """
    batch, in_channels, height, width = shape
    pixels, pairs = batch * height * width, in_channels * out_channels
    return pixels >= max(512, pairs / 128) and pixels * pairs >= 2**15


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.stride(1) == 1 and not tensor.is_contiguous()  # as far as `vmap` can tell


def _check(input: Tensor, weight: Tensor, bias: Tensor | None, factor: int) -> None:
    tensors = {"input": input, "weight": weight}
    if bias is not None:
        tensors["bias"] = bias
    for name, tensor in tensors.items():
        check_tensor(_NAME, name, tensor)
        if tensor.device != input.device:
            raise ValueError(
                f"{_NAME}: input and {name} must be on one device, "
                f"got {input.device} and {tensor.device}"
            )
        if tensor.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise TypeError(
                f"{_NAME}: input and {name} must have one dtype, "
                f"got {dtype_name(input)} and {dtype_name(tensor)}"
            )
    check_map(_NAME, "input", input, "[B, Ci, H, W]")
    got = f"got {list(weight.shape)}"
    if weight.dim() != 4:
        raise ValueError(f"{_NAME}: weight must be [Co, Ci, k, k], {got}")
    out_channels, in_channels, *kernel = weight.shape
    if in_channels != input.shape[1]:
        raise ValueError(f"{_NAME}: weight must be [Co, Ci, k, k] with Ci={input.shape[1]}, {got}")
    if out_channels < 1:
        raise ValueError(f"{_NAME}: weight must be [Co, Ci, k, k] with Co at least 1, {got}")
    if kernel[0] != kernel[1] or kernel[0] % 2 == 0:
        raise ValueError(f"{_NAME}: weight must be [Co, Ci, k, k] with one odd k, {got}")
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"{_NAME}: bias must be [{out_channels}], got {list(bias.shape)}")
    check_positive_int(_NAME, "upscale_factor", factor)
    if out_channels % factor**2:
        raise ValueError(
            f"{_NAME}: the output channels must be a multiple of upscale_factor^2 = {factor**2}, "
            f"got {out_channels}"
        )


# The maps, each differentiable to any order. None stands for zero, as in autograd.


def _forward(input: Tensor | None, weight: Tensor | None, ctx: Any) -> Tensor | None:
    if input is None or weight is None:
        return None
    output: Tensor = apply(_Forward, input, weight, None, *ctx.layout)
    return output


def _input_grad(grad: Tensor | None, weight: Tensor | None, ctx: Any) -> Tensor | None:
    if grad is None or weight is None:
        return None
    gradient: Tensor = apply(_Backward, grad, None, weight, False, *ctx.layout)[0]
    return gradient


def _weight_grad(grad: Tensor | None, input: Tensor | None, ctx: Any) -> Tensor | None:
    if grad is None or input is None:
        return None
    gradient: Tensor = apply(_Backward, grad, input, None, False, *ctx.layout)[1]
    return gradient


def _spread(bias: Tensor, grad: Tensor, factor: int) -> Tensor:
    """A map of the shape of the result whose pixels are the bias."""
    map = bias.view(1, -1, 1, 1).expand(grad.shape[0], -1, 1, 1)
    shuffled = F.pixel_shuffle(map, factor)
    repeats = (1, 1, grad.shape[2] // factor, grad.shape[3] // factor)
    return shuffled.repeat(repeats)


def _sum_over_pixels(grad: Tensor, factor: int) -> Tensor:
    return F.pixel_unshuffle(grad, factor).sum((0, 2, 3))


def _sum(*terms: Tensor | None) -> Tensor | None:
    given = [term for term in terms if term is not None]
    return sum(given[1:], given[0]) if given else None


class _Forward(Function):
    """F(x, w) + b."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, factor: int, channels_last: bool
    ) -> Tensor:
        output: Tensor = torch.ops.mkdext.conv2d(input, weight, bias, factor, channels_last)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs)
        ctx.save_for_backward(*inputs[:2])  # the bias may change before the backward
        ctx.layout = inputs[-2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        input, weight = ctx.saved_tensors
        want_input, want_weight, want_bias = wanted_gradients(ctx)[:3]
        if not (want_input or want_weight):
            of_bias = _sum_over_pixels(grad, ctx.layout[0]) if want_bias else None
            return None, None, of_bias, None, None
        gradients: tuple[Tensor | None, ...] = apply(
            _Backward,
            grad,
            input if want_weight else None,
            weight if want_input else None,
            want_bias,
            *ctx.layout,
        )
        return *gradients, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return map_each(_Forward, info.batch_size, in_dims, inputs)


class _Backward(Function):
    """(Gx(g, w), Gw(g, x), S(g)); the first two are computed if the w or x that they need is given.

    One must be given.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        want_bias: bool,
        factor: int,
        channels_last: bool,
    ) -> tuple[Tensor | None, ...]:
        fused = want_bias and input is not None  # with the gradient of the weight
        of_input, of_weight, of_bias = torch.ops.mkdext.conv2d_backward(
            grad, input, weight, fused, factor, channels_last
        )
        if want_bias and not fused:
            of_bias = _sum_over_pixels(grad, factor)
        return (
            None if weight is None else of_input,
            None if input is None else of_weight,
            of_bias if want_bias else None,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        remember(ctx, inputs)
        ctx.layout = inputs[-2:]

    @staticmethod
    def backward(
        ctx: Any, ggx: Tensor | None, ggw: Tensor | None, ggb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, input, weight = ctx.saved_tensors
        wanted = wanted_gradients(ctx)[:3]
        if ggx is None and ggw is None:
            spread = None
            if ggb is not None and wanted[0]:
                spread = _spread(ggb, grad, ctx.layout[0])
            return spread, None, None, None, None, None
        gradients: tuple[Tensor | None, ...] = apply(
            _DoubleBackward, grad, input, weight, ggx, ggw, ggb, *wanted, *ctx.layout
        )
        return *gradients, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return map_each(_Backward, info.batch_size, in_dims, inputs)


class _DoubleBackward(Function):
    """The gradients by g, x and w of <ggx, Gx(g, w)> + <ggw, Gw(g, x)> + <ggb, S(g)>.

    grad_g = F(ggx, w) + F(x, ggw) + ggb, grad_x = Gx(g, ggw), grad_w = Gw(g, ggx).
    """

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        ggx: Tensor | None,
        ggw: Tensor | None,
        ggb: Tensor | None,
        want_grad: bool,
        want_input: bool,
        want_weight: bool,
        factor: int,
        channels_last: bool,
    ) -> tuple[Tensor | None, ...]:
        wanted = (want_grad, want_input and ggw is not None, want_weight and ggx is not None)
        outputs = torch.ops.mkdext.conv2d_double_backward(
            grad, input, weight, ggx, ggw, ggb, *wanted, factor, channels_last
        )
        return tuple(o if w else None for o, w in zip(outputs, wanted, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        remember(ctx, inputs)
        ctx.layout = inputs[-2:]

    @staticmethod
    def backward(
        ctx: Any, of_grad: Tensor | None, of_input: Tensor | None, of_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, w, ggx, ggw, _ = ctx.saved_tensors
        need_g, need_x, need_w, need_ggx, need_ggw, need_ggb = wanted_gradients(ctx)[:6]
        return (
            _sum(_forward(of_input, ggw, ctx), _forward(ggx, of_weight, ctx)) if need_g else None,
            _input_grad(of_grad, ggw, ctx) if need_x else None,
            _weight_grad(of_grad, ggx, ctx) if need_w else None,
            _sum(_input_grad(of_grad, w, ctx), _input_grad(g, of_weight, ctx))
            if need_ggx
            else None,
            _sum(_weight_grad(of_grad, x, ctx), _weight_grad(g, of_input, ctx))
            if need_ggw
            else None,
            _sum_over_pixels(of_grad, ctx.layout[0]) if need_ggb and of_grad is not None else None,
            *(None,) * 5,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return map_each(_DoubleBackward, info.batch_size, in_dims, inputs)


# Shapes for torch.library.opcheck and fake tensors.


def _new_map(like: Tensor, *shape: int, factor: int, channels_last: bool) -> Tensor:
    batch, channels, height, width = shape
    sizes = (batch, channels // factor**2, height * factor, width * factor)
    last = channels_last or factor > 1
    format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=format)


@register_fake("conv2d")
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, upscale_factor: int, channels_last: bool
) -> Tensor:
    batch, _, height, width = input.shape
    shape = (batch, weight.shape[0], height, width)
    return _new_map(input, *shape, factor=upscale_factor, channels_last=channels_last)


@register_fake("conv2d_backward")
def _(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    want_bias: bool,
    upscale_factor: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    like = weight if input is None else input
    assert like is not None  # the kernel refuses it too
    out_channels, in_channels = grad.shape[1] * upscale_factor**2, like.shape[1]
    height, width = (side // upscale_factor for side in grad.shape[2:])
    shape = (grad.shape[0], in_channels, height, width)
    of_input = _new_map(grad, *shape, factor=1, channels_last=channels_last)
    return (
        grad.new_empty(0) if weight is None else of_input,
        grad.new_empty((0,) if input is None else (out_channels, in_channels, 3, 3)),
        grad.new_empty(out_channels if want_bias and input is not None else 0),
    )


@register_fake("conv2d_double_backward")
def _(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    grad_grad_input: Tensor | None,
    grad_grad_weight: Tensor | None,
    grad_grad_bias: Tensor | None,
    want_grad: bool,
    want_input: bool,
    want_weight: bool,
    upscale_factor: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    like = grad_grad_weight if grad_grad_input is None else grad_grad_input
    assert like is not None  # the kernel refuses it too
    batch, channels, *sides = grad.shape
    out_channels, in_channels = channels * upscale_factor**2, like.shape[1]
    height, width = (side // upscale_factor for side in sides)
    result = (batch, out_channels, height, width)
    of_grad = _new_map(grad, *result, factor=upscale_factor, channels_last=channels_last)
    shape = (batch, in_channels, height, width)
    of_input = _new_map(grad, *shape, factor=1, channels_last=channels_last)
    return (
        of_grad if want_grad else grad.new_empty(0),
        of_input if want_input else grad.new_empty(0),
        grad.new_empty((out_channels, in_channels, 3, 3) if want_weight else (0,)),
    )
