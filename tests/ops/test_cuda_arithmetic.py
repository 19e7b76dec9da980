"""The CUDA kernels without a GPU: their source, compiled for the processor, runs block by block.

What that cannot show is what only a GPU does: the instructions for copies and matrix products (the
emulation has their documented effect), speed, and launching.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mkdext.ops import reference

ROOT = Path(__file__).parent.parent.parent
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "tf32x3": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
PRECISIONS = list(DTYPES)  # in the order of launch.h
# Of a result, as the norm of its error over its own. The sums are float32 or float64; results of
# 16 bits are rounded to 8 or 11 bits, operands of tf32 to 11.
TOLERANCES = {
    "float32": 2e-6,
    "tf32": 5e-4,
    "tf32x3": 1e-6,
    "float64": 1e-14,
    "bfloat16": 2.5e-3,
    "float16": 3e-4,
}
GUARD = 64

# B, Ci, Co, H, W, k: one pixel, sizes one beside those of the tiles (8 or 16 rows, 16 columns, 64
# or 16 channels, steps of 4, 8 or 16 channels), kernels of one and of several squares of taps.
SHAPES = [
    (1, 1, 1, 1, 1, 3),
    (2, 3, 5, 7, 9, 3),
    (1, 16, 64, 8, 16, 3),
    (1, 17, 65, 9, 17, 3),
    (2, 8, 16, 15, 31, 3),
    (1, 65, 17, 3, 18, 3),
    (1, 64, 8, 2, 5, 3),
    (1, 24, 48, 6, 6, 3),
    (2, 3, 4, 5, 4, 1),
    (1, 9, 3, 6, 17, 5),
    (1, 2, 66, 9, 5, 7),
    (1, 18, 5, 2, 3, 9),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"{compiler[0]} is not installed")
    if sys.platform == "win32":
        pytest.skip("needs a compiler with the options of g++")
    library = tmp_path_factory.mktemp("cuda") / "cuda_arithmetic.so"
    include = Path(torch.__file__).parent / "include"
    source = Path(__file__).with_name("cuda_arithmetic.cpp")
    # Unoptimized: it is compiled four times as fast.
    command = [*compiler, "-std=c++20", "-O0", "-g0", "-Wall", "-Wextra", "-Werror", "-fPIC"]
    command += ["-shared", "-isystem", str(include), str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(params=[0, 1], ids=["aligned", "unaligned"])
def shift(kernels, request):
    """Elements beyond an address that is a multiple of 16 bytes; threads run in another order."""
    kernels.set_last_thread_first(ctypes.c_bool(request.param == 1))
    return request.param


class Guarded:
    """A tensor in the midst of memory that a kernel must neither use nor change."""

    def __init__(self, value: torch.Tensor, shift: int = 0) -> None:
        size = value.numel()
        self.memory = torch.full((size + 2 * GUARD + shift,), torch.nan, dtype=value.dtype)
        self.begin = GUARD + shift
        self.tensor = self.memory[self.begin :][:size].view(value.shape)
        self.tensor.copy_(value)

    @property
    def pointer(self) -> int:
        return self.tensor.data_ptr()

    def is_intact(self) -> bool:
        after = self.begin + self.tensor.numel()
        return bool(torch.cat([self.memory[: self.begin], self.memory[after:]]).isnan().all())


def _array(kind, values):
    values = list(values)
    return (kind * len(values))(*values)


def _correlate(kernels, precision, shape, requests, shift=0):
    """Each request is (flipped, [(map, weight), ...]); return the outputs and the launches."""
    batch, ins, outs, height, width, _ = shape
    guarded = [[(Guarded(x, shift), Guarded(w, shift)) for x, w in terms] for _, terms in requests]
    results = [
        Guarded(
            torch.full((batch, ins if flipped else outs, height, width), torch.nan).to(
                DTYPES[precision]
            ),
            shift,
        )
        for flipped, _ in requests
    ]
    pairs = [pair for terms in guarded for pair in terms]
    launches = kernels.correlate(
        PRECISIONS.index(precision),
        _array(ctypes.c_int64, shape),
        len(requests),
        _array(ctypes.c_bool, (flipped for flipped, _ in requests)),
        _array(ctypes.c_int, (len(terms) for _, terms in requests)),
        _array(ctypes.c_void_p, (x.pointer for x, _ in pairs)),
        _array(ctypes.c_void_p, (w.pointer for _, w in pairs)),
        _array(ctypes.c_void_p, (result.pointer for result in results)),
    )
    assert all(g.is_intact() for g in [*results, *itertools.chain.from_iterable(pairs)])
    return [result.tensor for result in results], launches


def _weight_gradient(kernels, precision, shape, grad, input, shift=0):
    batch, ins, outs, _, _, size = shape
    sizes = _array(ctypes.c_int64, shape)
    splits = kernels.splits(PRECISIONS.index(precision), sizes)
    grad, input = Guarded(grad, shift), Guarded(input, shift)
    nothing = torch.full((batch, outs, ins, size, size), torch.nan)
    result = Guarded(nothing.to(DTYPES[precision]), shift)
    parts = nothing.to(torch.float64 if precision == "float64" else torch.float32)
    partial = Guarded(parts.expand(splits, *parts.shape).contiguous())
    launches = kernels.weight_gradient(
        PRECISIONS.index(precision),
        sizes,
        *(ctypes.c_void_p(g.pointer) for g in (grad, input, partial, result)),
    )
    assert all(g.is_intact() for g in (grad, input, partial, result))
    assert launches == (1 if splits == 1 else 2)
    return result.tensor, splits


def _tensors(precision, shape):
    """Random x, w, g, ggx and ggw."""
    batch, ins, outs, height, width, size = shape
    torch.manual_seed(0)
    sizes = [
        (batch, ins, height, width),
        (batch, outs, ins, size, size),
        (batch, outs, height, width),
    ]
    return [torch.randn(sizes[n]).to(DTYPES[precision]) for n in (0, 1, 2, 0, 1)]


@functools.cache
def _expected(precision, shape):
    """The output, its gradients, and the gradients of those with the given cotangents."""
    x, w, g, ggx, ggw = (t.double() for t in _tensors(precision, shape))
    x, w, g = (t.requires_grad_() for t in (x, w, g))
    y = reference.dynamic_conv2d(x, w)
    first = torch.autograd.grad(y, (x, w), g, create_graph=True)
    second = torch.autograd.grad(first, (g, x, w), (ggx, ggw))
    return [t.detach() for t in (y, *first, *second)]


def _assert_near(actual, expected, precision):
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm()
    # One pixel or one channel may cancel, hence the absolute part.
    assert error <= TOLERANCES[precision] * (expected.norm() + expected.numel() ** 0.5)


# Those on tensor cores share their source, and so do the others: together they take every shape.
SHARE = {
    "float32": (0, 1),
    "tf32": (0, 2),
    "tf32x3": (1, 3),
    "float64": (0, 3),
    "bfloat16": (1, 2),
    "float16": (2, 4),
}
CASES = pytest.mark.parametrize(
    ("precision", "shape"),
    [(p, s) for p, (first, step) in SHARE.items() for s in SHAPES[first::step]],
    ids=str,
)
EVERY_PRECISION = pytest.mark.parametrize("precision", PRECISIONS)


@CASES
def test_forward_and_input_gradient_agree_with_the_reference(kernels, precision, shape, shift):
    x, w, g, _, _ = _tensors(precision, shape)
    y, gx, *_ = _expected(precision, shape)
    (actual,), launches = _correlate(kernels, precision, shape, [(False, [(x, w)])], shift)
    _assert_near(actual, y, precision)
    assert launches == 1
    (actual,), _ = _correlate(kernels, precision, shape, [(True, [(g, w)])], shift)
    _assert_near(actual, gx, precision)


@CASES
def test_weight_gradient_agrees_with_the_reference(kernels, precision, shape, shift):
    x, _, g, _, _ = _tensors(precision, shape)
    actual, _ = _weight_gradient(kernels, precision, shape, g, x, shift)
    _assert_near(actual, _expected(precision, shape)[2], precision)


@pytest.mark.parametrize("shape", [(2, 3, 3, 7, 9, 3), (1, 18, 3, 9, 4, 5)], ids=str)
@EVERY_PRECISION
def test_double_backward_adds_two_terms_and_takes_few_launches(kernels, precision, shape):
    x, w, g, ggx, ggw = _tensors(precision, shape)
    requests = [(False, [(ggx, w), (x, ggw)]), (True, [(g, ggw)])]
    actual, launches = _correlate(kernels, precision, shape, requests)
    for a, e in zip(actual, _expected(precision, shape)[3:5], strict=True):
        _assert_near(a, e, precision)
    assert launches == (1 if shape[1] == shape[2] else 2)


@EVERY_PRECISION
def test_a_weight_gradient_of_few_kernels_is_summed_in_parts(kernels, precision):
    shape = (1, 2, 3, 9, 33, 3)
    x, _, g, _, _ = _tensors(precision, shape)
    actual, splits = _weight_gradient(kernels, precision, shape, g, x)
    assert splits > 1
    _assert_near(actual, _expected(precision, shape)[2], precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_weight_gradient_of_many_kernels_is_summed_in_fewer_parts(kernels, precision):
    shape = (130, 1, 1, 5, 17, 1)
    x, _, g, _, _ = _tensors(precision, shape)
    actual, splits = _weight_gradient(kernels, precision, shape, g, x)
    assert splits == 2
    _assert_near(actual, _expected(precision, shape)[2], precision)


@EVERY_PRECISION
def test_no_result_depends_on_the_order_of_threads_and_blocks(kernels, precision):
    shape = (2, 9, 17, 9, 18, 3)
    x, w, g, _, _ = _tensors(precision, shape)
    results = []
    for last_first in (False, True):
        kernels.set_last_thread_first(ctypes.c_bool(last_first))
        (y,), _ = _correlate(kernels, precision, shape, [(False, [(x, w)])])
        results.append((y, _weight_gradient(kernels, precision, shape, g, x)[0]))
    for first, last in zip(*results, strict=True):
        assert torch.equal(first, last)


@EVERY_PRECISION
def test_infinity_and_nan_reach_exactly_the_results_they_are_part_of(kernels, precision):
    shape = (1, 3, 4, 9, 18, 3)
    x, w, *_ = _tensors(precision, shape)
    x[0, 1, 4, 15], x[0, 2, 0, 0] = torch.inf, torch.nan
    (actual,), _ = _correlate(kernels, precision, shape, [(False, [(x, w)])])
    expected = reference.dynamic_conv2d(x.double(), w.double())
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.isinf(), expected.isinf())


@pytest.mark.parametrize("shape", [(1, 3, 4, 9, 18, 3), (1, 2, 3, 5, 13, 5)], ids=str)
@EVERY_PRECISION
def test_infinity_and_nan_reach_exactly_the_elements_of_a_kernel_they_are_part_of(
    kernels, precision, shape
):
    x, _, g, _, _ = _tensors(precision, shape)
    *_, height, width, size = shape
    x[0, 0, height - 1, width // 2], x[0, 1, 2, width - 1] = torch.inf, torch.nan
    actual, _ = _weight_gradient(kernels, precision, shape, g, x)
    # A tap meets the pixels of the map that lie so far from a pixel of the gradient.
    bad = torch.nn.functional.pad(x, [size // 2] * 4).isfinite().logical_not()
    reached = bad.unfold(2, height, 1).unfold(3, width, 1).flatten(4).any(4)
    assert torch.equal(actual.isfinite().logical_not(), reached[:, None].expand_as(actual))


# B, C, H, W, grid, k: bins that divide, overlap, and are more than the pixels.
TEXTURES = [
    (2, 3, 12, 12, 2, 3),
    (1, 9, 7, 11, 3, 2),
    (2, 8, 5, 4, 4, 3),
    (1, 1, 1, 2, 3, 1),
    (1, 17, 13, 6, 1, 5),
]


@pytest.mark.parametrize("wide", [False, True], ids=["32-bit indices", "64-bit indices"])
@pytest.mark.parametrize("shape", TEXTURES, ids=str)
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16", "float16"])
def test_texture_kernels_and_their_transpose_agree_with_the_reference(
    kernels, precision, shape, wide
):
    torch.manual_seed(0)
    dtype = DTYPES[precision]
    batch, channels, _, _, grid, size = shape
    features = torch.randn(shape[:4]).to(dtype)
    cotangent = torch.randn(batch, grid * grid, channels, size, size).to(dtype)
    leaf = features.double().requires_grad_()
    forward = reference.texture_kernels(leaf, grid, size)
    (transposed,) = torch.autograd.grad(forward, leaf, cotangent.double())
    for transpose, given, expected in (
        (False, features, forward.detach()),
        (True, cotangent, transposed),
    ):
        source, result = Guarded(given), Guarded(torch.full_like(expected, torch.nan).to(dtype))
        kernels.texture(
            PRECISIONS.index(precision),
            _array(ctypes.c_int64, shape),
            ctypes.c_bool(transpose),
            ctypes.c_bool(wide),
            ctypes.c_void_p(source.pointer),
            ctypes.c_void_p(result.pointer),
        )
        assert source.is_intact() and result.is_intact()
        _assert_near(result.tensor, expected, precision)
