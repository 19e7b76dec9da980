"""The CUDA kernels without a GPU: their source, compiled for the processor, runs block by block.

What that cannot show is what nvcc makes of it, launches included (ptx/ runs that), and speed.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.cuda_checks import (
    check_double_backward,
    check_forward_and_input_gradient,
    check_infinity_and_nan,
    check_texture_kernels,
    check_weight_gradient,
    tensors,
)
from tests.ops.cuda_operators import PRECISIONS, CudaOperators

pytestmark = pytest.mark.slow

# B, Ci, Co, H, W, k: one pixel, sizes one beside those of the tiles (8 or 16 rows, 16 columns, 64
# or 16 channels, steps of 4, 8 or 16 channels), kernels of one and of several squares of taps, and
# rows that are copied 16 bytes at a time.
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
    (1, 16, 64, 9, 24, 3),
    (2, 24, 40, 17, 8, 3),
    (1, 72, 16, 5, 40, 3),
    (1, 8, 72, 3, 16, 3),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CudaOperators:
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
    return CudaOperators(ctypes.CDLL(str(library)))


@pytest.fixture(params=[0, 1], ids=["aligned", "unaligned"])
def shift(kernels, request):
    """Elements beyond an address that is a multiple of 16 bytes; threads run in another order."""
    kernels.library.set_last_thread_first(ctypes.c_bool(request.param == 1))
    return request.param


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
    check_forward_and_input_gradient(kernels, precision, shape, shift)


@CASES
def test_weight_gradient_agrees_with_the_reference(kernels, precision, shape, shift):
    check_weight_gradient(kernels, precision, shape, shift)


@pytest.mark.parametrize(
    "shape", [(2, 3, 3, 7, 9, 3), (1, 18, 17, 9, 4, 5), (1, 56, 64, 9, 8, 3)], ids=str
)
@EVERY_PRECISION
def test_double_backward_adds_two_terms_in_one_launch(kernels, precision, shape):
    check_double_backward(kernels, precision, shape)


@EVERY_PRECISION
def test_double_backward_takes_two_launches_where_the_kernels_differ(kernels, precision):
    launches = 1 if precision == "float64" else 2
    check_double_backward(kernels, precision, (1, 16, 64, 9, 8, 3), launches)


@EVERY_PRECISION
def test_a_weight_gradient_of_few_kernels_is_summed_in_parts(kernels, precision):
    assert check_weight_gradient(kernels, precision, (1, 2, 3, 9, 33, 3)) > 1
    assert check_weight_gradient(kernels, precision, (1, 8, 16, 17, 32, 3)) > 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_weight_gradient_of_many_kernels_is_summed_in_fewer_parts(kernels, precision):
    assert check_weight_gradient(kernels, precision, (130, 1, 1, 5, 17, 1)) == 2


@pytest.mark.parametrize("shape", [(2, 9, 17, 9, 18, 3), (2, 16, 24, 9, 24, 3)], ids=str)
@EVERY_PRECISION
def test_no_result_depends_on_the_order_of_threads_and_blocks(kernels, precision, shape):
    x, w, g, _, _ = tensors(precision, shape)
    results = []
    for last_first in (False, True):
        kernels.library.set_last_thread_first(ctypes.c_bool(last_first))
        (y,), _ = kernels.correlate(precision, shape, [(False, [(x, w)])])
        results.append((y, kernels.weight_gradient(precision, shape, g, x)[0]))
    for first, last in zip(*results, strict=True):
        assert torch.equal(first, last)


@pytest.mark.parametrize("shape", [(1, 8, 16, 9, 24, 3), (1, 40, 8, 5, 16, 3)], ids=str)
@EVERY_PRECISION
def test_no_result_depends_on_where_the_operands_lie(kernels, precision, shape):
    x, w, g, _, _ = tensors(precision, shape)
    results = []
    for shift in (0, 1):
        (y,), _ = kernels.correlate(precision, shape, [(False, [(x, w)])], shift)
        (gx,), _ = kernels.correlate(precision, shape, [(True, [(g, w)])], shift)
        results.append((y, gx, kernels.weight_gradient(precision, shape, g, x, shift)[0]))
    for aligned, unaligned in zip(*results, strict=True):
        assert torch.equal(aligned, unaligned)


@pytest.mark.parametrize("shape", [(1, 3, 4, 9, 18, 3), (1, 8, 4, 9, 24, 3)], ids=str)
@EVERY_PRECISION
def test_infinity_and_nan_reach_exactly_the_results_they_are_part_of(kernels, precision, shape):
    check_infinity_and_nan(kernels, precision, shape)


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 9, 18, 3), (1, 2, 3, 5, 13, 5), (1, 8, 16, 9, 24, 3)], ids=str
)
@EVERY_PRECISION
def test_infinity_and_nan_reach_exactly_the_elements_of_a_kernel_they_are_part_of(
    kernels, precision, shape
):
    x, _, g, _, _ = tensors(precision, shape)
    *_, height, width, size = shape
    x[0, 0, height - 1, width // 2], x[0, 1, 2, width - 1] = torch.inf, torch.nan
    actual, _ = kernels.weight_gradient(precision, shape, g, x)
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
    check_texture_kernels(kernels, precision, shape, ctypes.c_bool(wide))
