"""Comparisons of the CUDA operators with the reference, wherever their kernels run."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mkdext.ops import reference
from tests.ops.cuda_operators import DTYPES, CudaOperators, Shape

TOLERANCES = {
    "float32": 2e-6,
    "tf32": 5e-4,
    "tf32x3": 1e-6,
    "float64": 1e-14,
    "bfloat16": 2.5e-3,
    "float16": 3e-4,
}
"""Of a result, as the norm of its error over its own.

The sums are float32 or float64; results of 16 bits are rounded to 8 or 11 bits, operands of tf32 to
11.
"""


def check_forward_and_input_gradient(
    operators: CudaOperators, precision: str, shape: Shape, shift: int = 0
) -> None:
    """Each is one launch."""
    x, w, g, _, _ = tensors(precision, shape)
    y, gx, *_ = expected(precision, shape)
    (actual,), launches = operators.correlate(precision, shape, [(False, [(x, w)])], shift)
    assert_near(actual, y, precision)
    assert launches == 1
    (actual,), launches = operators.correlate(precision, shape, [(True, [(g, w)])], shift)
    assert_near(actual, gx, precision)
    assert launches == 1


def check_weight_gradient(
    operators: CudaOperators, precision: str, shape: Shape, shift: int = 0
) -> int:
    """Return the number of parts that the sum was cut into."""
    x, _, g, _, _ = tensors(precision, shape)
    actual, splits = operators.weight_gradient(precision, shape, g, x, shift)
    assert_near(actual, expected(precision, shape)[2], precision)
    return splits


def check_double_backward(
    operators: CudaOperators, precision: str, shape: Shape, launches: int = 1
) -> None:
    """A sum of two terms and one of one."""
    x, w, g, ggx, ggw = tensors(precision, shape)
    requests = [(False, [(ggx, w), (x, ggw)]), (True, [(g, ggw)])]
    actual, launched = operators.correlate(precision, shape, requests)
    for a, e in zip(actual, expected(precision, shape)[3:5], strict=True):
        assert_near(a, e, precision)
    assert launched == launches


def check_infinity_and_nan(operators: CudaOperators, precision: str, shape: Shape) -> None:
    """They reach exactly the results that they are part of."""
    x, w, *_ = tensors(precision, shape)
    x[0, 1, 4, 15], x[0, 2, 0, 0] = torch.inf, torch.nan
    (actual,), _ = operators.correlate(precision, shape, [(False, [(x, w)])])
    y = reference.dynamic_conv2d(x.double(), w.double())
    assert torch.equal(actual.isnan(), y.isnan())
    assert torch.equal(actual.isinf(), y.isinf())


def check_texture_kernels(
    operators: CudaOperators, precision: str, shape: Shape, *options: object
) -> None:
    """Forward and transpose; `options` go to CudaOperators.texture."""
    torch.manual_seed(0)
    batch, channels, _, _, grid, size = shape
    features = torch.randn(shape[:4]).to(DTYPES[precision])
    cotangent = torch.randn(batch, grid * grid, channels, size, size).to(DTYPES[precision])
    leaf = features.double().requires_grad_()
    forward = reference.texture_kernels(leaf, grid, size)
    (transposed,) = torch.autograd.grad(forward, leaf, cotangent.double())
    actual = operators.texture(precision, shape, False, features, *options)
    assert_near(actual, forward.detach(), precision)
    actual = operators.texture(precision, shape, True, cotangent, *options)
    assert_near(actual, transposed, precision)


def tensors(precision: str, shape: Shape) -> list[Tensor]:
    """Random x, w, g, ggx and ggw."""
    return random_tensors(shape, DTYPES[precision])


def random_tensors(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """x, w, g, ggx and ggw."""
    batch, ins, outs, height, width, size = shape
    torch.manual_seed(0)
    sizes = [
        (batch, ins, height, width),
        (batch, outs, ins, size, size),
        (batch, outs, height, width),
    ]
    return [torch.randn(sizes[n], device=device).to(dtype) for n in (0, 1, 2, 0, 1)]


@functools.cache
def expected(precision: str, shape: Shape) -> list[Tensor]:
    """The output, its gradients, and the gradients of those with the given cotangents."""
    x, w, g, ggx, ggw = (t.double() for t in tensors(precision, shape))
    x, w, g = (t.requires_grad_() for t in (x, w, g))
    y = reference.dynamic_conv2d(x, w)
    first = torch.autograd.grad(y, (x, w), g, create_graph=True)
    second = torch.autograd.grad(first, (g, x, w), (ggx, ggw))
    return [t.detach() for t in (y, *first, *second)]


def assert_near(actual: Tensor, expected: Tensor, precision: str) -> None:
    """Compare with what float64 gives."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm()
    # One pixel or one channel may cancel, hence the absolute part.
    assert error <= TOLERANCES[precision] * (expected.norm() + expected.numel() ** 0.5)
