"""The direct kernels at the edges of their blocks: every kernel size, odd sizes, few channels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mkdext._system import extension
from mkdext.ops import dynamic_conv2d, reference

pytestmark = pytest.mark.usefixtures("library")

# B, Ci, Co, H, W
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 1, 3, 5, 1),
    (1, 3, 1, 1, 40),
    (1, 3, 16, 9, 31),  # a ragged last vector in every row
    (1, 16, 3, 13, 24),  # whole vectors in every row
    (2, 9, 5, 24, 24),
    (1, 70, 8, 6, 49),  # several blocks of channels
    (1, 2, 17, 3, 1100),  # rows longer than a block
    (1, 2, 2, 130, 9),  # several blocks of rows
]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def _direct(input, weight):
    return dynamic_conv2d(input, weight, "direct")


def _tensors(shape, size, dtype=torch.float32):
    batch, in_channels, out_channels, height, width = shape
    input = torch.randn(batch, in_channels, height, width, dtype=dtype)
    weight = torch.randn(batch, out_channels, in_channels, size, size, dtype=dtype)
    return input, weight, torch.randn(batch, out_channels, height, width, dtype=dtype)


def _derivatives(function, input, weight, grad, cotangents):
    """Return the output, its gradients, and the gradients of those with the given cotangents."""
    leaves = [t.detach().requires_grad_() for t in (input, weight, grad)]
    output = function(*leaves[:2])
    first = torch.autograd.grad(output, leaves[:2], leaves[2], create_graph=True)
    second = torch.autograd.grad(first, leaves, cotangents)
    return output.detach(), *(t.detach() for t in first), *second


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_derivatives_to_second_order_agree_with_the_reference(shape, size, dtype):
    tensors = _tensors(shape, size, dtype)
    cotangents = tuple(torch.randn_like(t) for t in tensors[:2])
    actual = _derivatives(_direct, *tensors, cotangents)
    expected = _derivatives(
        reference.dynamic_conv2d,
        *(t.double() for t in tensors),
        tuple(t.double() for t in cotangents),
    )
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e).norm() <= TOLERANCE[dtype] * e.norm()


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("size", [1, 5, 7])
def test_the_number_of_threads_changes_no_bit(size):
    tensors = _tensors((2, 37, 19, 29, 51), size)
    cotangents = tuple(torch.randn_like(t) for t in tensors[:2])
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(_derivatives(_direct, *tensors, cotangents))
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("width", [8, 11, 24])
@pytest.mark.parametrize("row", [0, 3, 5])
def test_a_value_that_is_not_finite_reaches_what_it_is_a_part_of(value, size, width, row):
    input, weight, grad = _tensors((2, 3, 6, 6, width), size)
    pad, column = size // 2, width - 1
    input[0, 1, row, column] = value
    weight.requires_grad_()
    output = _direct(input, weight)
    reached = torch.zeros(6, width, dtype=torch.bool)
    reached[max(0, row - pad) : row + pad + 1, column - pad :] = True
    assert torch.equal(~output[0].isfinite().any(0), reached)
    assert output[1].isfinite().all()
    [gradient] = torch.autograd.grad(output, weight, grad)
    rows = torch.arange(size).view(-1, 1)
    met = (row - rows + pad >= 0) & (row - rows + pad < 6) & (torch.arange(size) >= pad)
    assert torch.equal(~gradient[0, :, 1].isfinite(), met.expand(6, size, size))
    assert gradient[0, :, [0, 2]].isfinite().all() and gradient[1].isfinite().all()


def test_a_kernel_far_larger_than_the_map_is_right():
    tensors = _tensors((1, 2, 3, 4, 5), 201, torch.float64)
    cotangents = tuple(torch.randn_like(t) for t in tensors[:2])
    actual = _derivatives(_direct, *tensors, cotangents)
    expected = _derivatives(reference.dynamic_conv2d, *tensors, cotangents)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_the_weight_gradient_of_a_map_of_one_long_row_is_right():
    input, weight, grad = _tensors((1, 1, 1, 1, 2**17), 101)
    weight.requires_grad_()
    [gradient] = torch.autograd.grad(_direct(input, weight), weight, grad)
    padded = torch.nn.functional.pad(input[0, 0, 0].double(), (50, 50))
    expected = padded.unfold(0, 2**17, 1) @ grad[0, 0, 0].double()
    actual = gradient[0, 0, 0].double()
    assert (actual[50] - expected).norm() <= 1e-5 * expected.norm()
    assert not actual[:50].any() and not actual[51:].any()


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_every_instruction_set_of_this_processor_passes(instruction_set):
    features = extension.module().cpu_features()
    if instruction_set not in features or instruction_set == features[-1]:
        pytest.skip(f"{instruction_set} is missing here or what the other tests run on")
    environment = {**os.environ, "MKDEXT_INSTRUCTION_SET": instruction_set}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--numprocesses=0",
        "-q",
        "-k",
        "not instruction_set",
        __file__,
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
