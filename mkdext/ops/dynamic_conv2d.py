"""Convolution of each sample with its own kernel, differentiable to any order.

Three maps, with p = k // 2 and zeros outside a map:

    F(x, w)[b, o, h, v]     = sum over c, i, j of x[b, c, h + i - p, v + j - p] w[b, o, c, i, j]
    Gx(g, w)                = the gradient of <g, F(x, w)> with respect to x
    Gw(g, x)                = the gradient of <g, F(x, w)> with respect to w

<g, F(x, w)> is linear in each of g, x and w, so the derivatives of the three are made of the three.
Each class below is one order; the last one's backward calls the first two, which closes the circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mkdext._system import cuda, extension
from mkdext.ops import reference
from mkdext.ops._checks import check_map, check_size, check_tensor, dtype_name
from mkdext.ops._dispatch import (
    apply,
    call,
    fold,
    has_kernel,
    is_autocast,
    register_fake,
    remember,
    to_product_dtype,
    unfold,
    wanted_gradients,
)

_NAME = "dynamic_conv2d"
_PRIMITIVES = ("forward", "input_grad", "weight_grad")
_DEVICES: dict[str, list[str]] = (
    extension.module().dynamic_conv2d_devices() if extension.status().state == "loaded" else {}
)
"""Every algorithm with the types of devices that know it. A compiler cannot trace the question."""


def dynamic_conv2d(input: Tensor, weight: Tensor, algorithm: str = "auto") -> Tensor:
    """Convolve each sample with its own kernel; stride 1, zero "same" padding.

    Sample b of the result is ``F.conv2d(input[b], weight[b], padding=k // 2)``. Differentiable any
    number of times, through `torch.autograd` and `torch.func`; a double backward is one fused
    kernel and only computes what is asked for. The number of threads changes no bit of a result.

    On a CPU the compiled kernels compute float32 and float64 as they are; float16 and bfloat16 are
    computed in float32 and rounded once, and under autocast the result is float32. On CUDA every
    dtype is computed as it is, float16 and bfloat16 with sums in float32, and under autocast in
    the dtype of autocast, as `F.conv2d` does; results do not vary from run to run. Other devices,
    and those whose kernels were not built, use `mkdext.ops.reference`.

    The algorithm holds for the forward and for all derivatives. In float32, on N(0, 1) data of 64
    channels and up to 48x48 pixels, the norm of the error relative to that of the result is at most
    1.5e-6 for each.

    - ``"direct"`` sums the products as written above; any kernel size, float32 and float64. A value
      that is not finite reaches exactly the results that it is a part of.
    - ``"winograd"`` is F(4x4, 3x3), which makes 4x4 outputs from 6x6 inputs with a quarter of the
      multiplications; 3x3 kernels in float32 only. A value that is not finite may spread to all
      outputs of the 4x4 tiles whose 6x6 inputs hold it, and in the gradient of the weight to all
      elements of a kernel; never to another sample.
    - ``"tf32"`` rounds the factors, not the sums, to 10 bits of mantissa; float32 on CUDA only. The
      error is about 3e-4.
    - ``"tf32x3"`` takes each factor as the sum of two tf32, and of their four products the three
      larger; float32 on CUDA only. A product is within 1.3e-6 of itself, for factors above 1e-30,
      and sums of many are, in emulation, as exact as those of ``"direct"``. NaN whose payload fits
      13 bits, which no operation makes, may become an infinity.
    - ``"auto"`` takes the fastest for the shape and dtype, for each derivative by itself:
      `dynamic_conv2d_algorithms` tells which. On CUDA it is ``"direct"``, and for float32 either
      ``"tf32"``, if PyTorch is told so (``torch.backends.cuda.matmul.fp32_precision = "tf32"``,
      ``torch.set_float32_matmul_precision("high")``; not within `torch.compile`), or else
      ``"tf32x3"`` on GPUs of compute capability 8.0, 9.x and 10.x, whose tensor cores are by their
      published rates fast enough.

    Args:
        input: ``[B, Ci, H, W]``, float32, float64, float16 or bfloat16; any strides. B may be 0,
            the other sizes may not.
        weight: ``[B, Co, Ci, k, k]``, k odd, of the same dtype and device; under autocast the dtype
            may differ, unless one is float64.
        algorithm: ``"auto"``, ``"direct"``, ``"winograd"`` (CPU), ``"tf32"`` or ``"tf32x3"``
            (CUDA).

    Returns:
        ``[B, Co, H, W]``, of the dtype of ``input``.

    Raises:
        TypeError: An argument is not a dense floating tensor, or the dtypes differ.
        ValueError: The shapes do not fit, the kernel size is even, the devices differ, a size
            overflows or exceeds the memory of the machine, or the algorithm is unknown or cannot
            compute this shape and dtype here. (A function under `torch.compile` learns the last
            only when it runs, as a RuntimeError.)
        RuntimeError: The tensors are on a GPU that the CUDA kernels were not built for, or whose
            driver is older than they are.

    Example:
        >>> input = torch.randn(2, 3, 8, 8)
        >>> weight = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
        >>> dynamic_conv2d(input, weight).shape
        torch.Size([2, 4, 8, 8])
    """
    _check(input, weight)
    _check_algorithm(input, weight, algorithm)
    if not has_kernel(input):
        return reference.dynamic_conv2d(input, weight)
    input_used, weight_used = to_product_dtype(input), to_product_dtype(weight)
    output: Tensor = apply(_Forward, input_used, weight_used, _resolved(input_used, algorithm))
    return output if is_autocast(input) else output.to(input.dtype)


def dynamic_conv2d_algorithms(input: Tensor, weight: Tensor) -> dict[str, str]:
    """Tell which algorithm `dynamic_conv2d` takes by itself (``algorithm="auto"``).

    Args:
        input: As for `dynamic_conv2d`; only shape, dtype and device count.
        weight: As for `dynamic_conv2d`.

    Returns:
        ``"direct"``, ``"winograd"``, ``"tf32"`` or ``"tf32x3"`` for each of ``"forward"``,
        ``"input_grad"`` and ``"weight_grad"``, of which every derivative is made; ``"reference"``
        for all where no compiled kernel runs.

    Raises:
        TypeError: As `dynamic_conv2d`.
        ValueError: As `dynamic_conv2d`.

    Example:
        >>> dynamic_conv2d_algorithms(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 1, 5, 5))["forward"]
        'direct'
    """
    _check(input, weight)
    if not has_kernel(input):
        return dict.fromkeys(_PRIMITIVES, "reference")
    if input.device.type == "cuda":
        used = to_product_dtype(input)
        taken = _resolved(used, "auto")
        if taken == "auto":
            single = used.dtype == torch.float32
            taken = cuda.float32_algorithm(input.device) if single else "direct"
        return dict.fromkeys(_PRIMITIVES, taken)
    chosen: dict[str, str] = extension.module().dynamic_conv2d_algorithms(**_case(input, weight))
    return {primitive: chosen[primitive] for primitive in _PRIMITIVES}


def _resolved(input: Tensor, algorithm: str) -> str:
    """Let PyTorch's settings decide about tf32, once for a result and all of its derivatives."""
    single = input.device.type == "cuda" and input.dtype == torch.float32
    if algorithm != "auto" or not single or torch.compiler.is_compiling():
        return algorithm
    return "tf32" if cuda.allows_tf32() else "auto"


def _case(input: Tensor, weight: Tensor) -> dict[str, int]:
    """Return what the choice of the algorithm depends on, as `mkdext._C` names it."""
    batch, in_channels, height, width = input.shape
    return {
        "batch": batch,
        "in_channels": in_channels,
        "out_channels": weight.shape[1],
        "height": height,
        "width": width,
        "kernel_size": weight.shape[-1],
        "is_float32": input.dtype != torch.float64,
    }


def _check_algorithm(input: Tensor, weight: Tensor, algorithm: object) -> None:
    if not isinstance(algorithm, str):
        raise TypeError(f"{_NAME}: algorithm must be a str, got {type(algorithm).__name__}")
    if algorithm == "auto":
        return
    if _DEVICES and algorithm not in _DEVICES:
        raise ValueError(
            f'{_NAME}: algorithm must be {_quoted([*_DEVICES], "or")}, got "{algorithm}"'
        )
    if not has_kernel(input):
        needs, got = (
            ("compiled operators", "none")
            if input.device.type in ("cpu", "cuda")
            else ("tensors on the CPU or CUDA, where compiled operators run", str(input.device))
        )
        raise ValueError(
            f'{_NAME}: algorithm "{algorithm}" needs {needs}, got {got}: only "auto" can'
        )
    if torch.compiler.is_compiling():  # `_C` cannot be traced; the operator checks it too
        return
    can = _runnable(input, weight)
    if algorithm not in can:
        needs, got = "float32 and a 3x3 kernel", f"{weight.shape[-1]}x{weight.shape[-1]}"
        if _only_on_cuda(algorithm):
            needs, got = "float32 on CUDA", str(input.device)
        elif input.device.type == "cuda":
            needs, got = "tensors on the CPU", str(input.device)
        raise ValueError(
            f'{_NAME}: algorithm "{algorithm}" needs {needs}, '
            f"got {dtype_name(input)} and {got}: {_quoted(can, 'and')} can"
        )


def _runnable(input: Tensor, weight: Tensor) -> list[str]:
    """List the algorithms that can compute this shape and dtype on this device."""
    if input.device.type == "cuda":
        single = to_product_dtype(input).dtype == torch.float32
        known = [name for name, devices in _DEVICES.items() if "cuda" in devices]
        return [name for name in known if single or not _only_on_cuda(name)]
    names: list[str] = extension.module().dynamic_conv2d_runnable(**_case(input, weight))
    return names


def _only_on_cuda(algorithm: str) -> bool:
    return _DEVICES[algorithm] == ["cuda"]


def _quoted(names: Sequence[str], word: str) -> str:
    quoted = [f'"{name}"' for name in names]
    return f" {word} ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _check(input: Tensor, weight: Tensor) -> None:
    check_tensor(_NAME, "input", input)
    check_tensor(_NAME, "weight", weight)
    if input.device != weight.device:
        raise ValueError(
            f"{_NAME}: input and weight must be on one device, "
            f"got {input.device} and {weight.device}"
        )
    one_is_double = torch.float64 in (input.dtype, weight.dtype)
    if input.dtype != weight.dtype and (one_is_double or not is_autocast(input)):
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
    # A batch of none must not hide a size that no batch could have.
    batch = max(batch, 1)
    out_channels, size = weight.shape[1], weight.shape[-1]
    check_size(_NAME, "input", (batch, *input.shape[1:]), input)
    check_size(_NAME, "weight", (batch, *weight.shape[1:]), weight)
    check_size(_NAME, "the result", (batch, out_channels, height, width), input)
    padded = (max(channels, out_channels), height + size - 1, width + size - 1)
    check_size(_NAME, "a zero-padded map", padded, input)


# The three maps, each differentiable to any order. None stands for zero, as in autograd.


def _forward(input: Tensor | None, weight: Tensor | None, algorithm: str) -> Tensor | None:
    if input is None or weight is None:
        return None
    output: Tensor = apply(_Forward, input, weight, algorithm)
    return output


def _input_grad(grad: Tensor | None, weight: Tensor | None, algorithm: str) -> Tensor | None:
    if grad is None or weight is None:
        return None
    gradient: Tensor = apply(_Backward, grad, None, weight, weight.shape[-1], algorithm)[0]
    return gradient


def _weight_grad(
    grad: Tensor | None, input: Tensor | None, kernel_size: int, algorithm: str
) -> Tensor | None:
    if grad is None or input is None:
        return None
    gradient: Tensor = apply(_Backward, grad, input, None, kernel_size, algorithm)[1]
    return gradient


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class _Forward(Function):
    """F(x, w)."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, algorithm: str) -> Tensor:
        ops = torch.ops.mkdext
        output: Tensor = call(ops.dynamic_conv2d, input.device, input, weight, algorithm)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        remember(ctx, inputs)
        ctx.algorithm = inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        input, weight = ctx.saved_tensors
        want_input, want_weight, _ = wanted_gradients(ctx)
        gradients: tuple[Tensor | None, ...] = apply(
            _Backward,
            grad,
            input if want_weight else None,
            weight if want_input else None,
            weight.shape[-1],
            ctx.algorithm,
        )
        return *gradients, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, weight: Tensor, algorithm: str
    ) -> tuple[Tensor | None, int]:
        size = info.batch_size
        tensors = [fold(t, d, size) for t, d in zip((input, weight), in_dims, strict=False)]
        output = apply(_Forward, *tensors, algorithm)
        return unfold(output, size), 0


class _Backward(Function):
    """(Gx(g, w), Gw(g, x)); each is computed if the w or x that it needs is given."""

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        kernel_size: int,
        algorithm: str,
    ) -> tuple[Tensor | None, Tensor | None]:
        ops = torch.ops.mkdext
        on, of_input, of_weight = grad.device, None, None
        if weight is not None:
            of_input = call(ops.dynamic_conv2d_input_grad, on, grad, weight, algorithm)
        if input is not None:
            of_weight = call(
                ops.dynamic_conv2d_weight_grad, on, grad, input, kernel_size, algorithm
            )
        return of_input, of_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        remember(ctx, inputs)
        ctx.algorithm = inputs[-1]

    @staticmethod
    def backward(
        ctx: Any, grad_grad_input: Tensor | None, grad_grad_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_grad_input is None and grad_grad_weight is None:
            return None, None, None, None, None
        gradients: tuple[Tensor | None, ...] = apply(
            _DoubleBackward,
            *ctx.saved_tensors,
            grad_grad_input,
            grad_grad_weight,
            *wanted_gradients(ctx)[:3],
            ctx.algorithm,
        )
        return *gradients, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        kernel_size: int,
        algorithm: str,
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        size = info.batch_size
        tensors = [fold(t, d, size) for t, d in zip((grad, input, weight), in_dims, strict=False)]
        outputs = apply(_Backward, *tensors, kernel_size, algorithm)
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
        algorithm: str,
    ) -> tuple[Tensor | None, ...]:
        wanted = (
            want_grad,
            want_input and grad_grad_weight is not None,
            want_weight and grad_grad_input is not None,
        )
        inputs = (grad, input, weight, grad_grad_input, grad_grad_weight)
        operator = torch.ops.mkdext.dynamic_conv2d_double_backward
        outputs = call(operator, grad.device, *inputs, *wanted, algorithm)
        return tuple(o if w else None for o, w in zip(outputs, wanted, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        remember(ctx, inputs)
        ctx.algorithm = inputs[-1]

    @staticmethod
    def backward(
        ctx: Any, of_grad: Tensor | None, of_input: Tensor | None, of_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, w, ggx, ggw = ctx.saved_tensors
        need_g, need_x, need_w, need_ggx, need_ggw = wanted_gradients(ctx)[:5]
        size = (w if ggw is None else ggw).shape[-1]
        forward = partial(_forward, algorithm=ctx.algorithm)
        input_grad = partial(_input_grad, algorithm=ctx.algorithm)
        weight_grad = partial(_weight_grad, kernel_size=size, algorithm=ctx.algorithm)
        return (
            _sum(forward(of_input, ggw), forward(ggx, of_weight)) if need_g else None,
            input_grad(of_grad, ggw) if need_x else None,
            weight_grad(of_grad, ggx) if need_w else None,
            _sum(input_grad(of_grad, w), input_grad(g, of_weight)) if need_ggx else None,
            _sum(weight_grad(of_grad, x), weight_grad(g, of_input)) if need_ggw else None,
            None,
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
def _(input: Tensor, weight: Tensor, algorithm: str = "auto") -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[1], *input.shape[2:])


@register_fake("dynamic_conv2d_input_grad")
def _(grad: Tensor, weight: Tensor, algorithm: str = "auto") -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[2], *grad.shape[2:])


@register_fake("dynamic_conv2d_weight_grad")
def _(grad: Tensor, input: Tensor, kernel_size: int, algorithm: str = "auto") -> Tensor:
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
    algorithm: str = "auto",
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
