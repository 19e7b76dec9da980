"""The CUDA operators as nvcc compiles them, run end to end without a GPU.

Host code, launches and kernels are those of csrc/cuda; the CUDA runtime is runtime.cpp, and the
GPU is machine.py, which refuses races and accesses that are not allowed. What it cannot show is
what a GPU makes of the PTX, and speed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.cuda_checks import (
    assert_near,
    check_double_backward,
    check_forward_and_input_gradient,
    check_infinity_and_nan,
    check_texture_kernels,
    check_weight_gradient,
    expected,
    tensors,
)
from tests.ops.cuda_operators import PRECISIONS
from tests.ops.ptx.fault import Fault
from tests.ops.ptx.operators import PtxOperators, buffers_of
from tests.ops.ptx.toolchain import compile_operators, find_nvcc, toolkit_version

pytestmark = pytest.mark.slow

EVERY_PRECISION = pytest.mark.parametrize("precision", PRECISIONS)

# What the mangled names of a precision's kernels contain.
NAMES = {
    "float32": "IfLi",
    "tf32": "4Tf32E",
    "tf32x3": "6Tf32x3E",
    "float64": "IdLi",
    "bfloat16": "4Bf16E",
    "float16": "4Fp16E",
}
TEXTURE_NAMES = {
    "float32": "ff",
    "float64": "dd",
    "bfloat16": "N3c108BFloat16Ef",
    "float16": "N3c104HalfEf",
}
# B, Ci, Co, H, W, k: many and few channels both ways with rows that are copied 16 bytes at a time,
# rows that are not, and a kernel of several squares of taps.
SHAPES = [
    (1, 16, 56, 9, 24, 3),
    (1, 56, 8, 3, 16, 3),
    (2, 17, 5, 7, 9, 3),
    (1, 9, 18, 6, 17, 5),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    if not (version := toolkit_version(nvcc)).startswith("13."):
        pytest.skip(f"the machine was made for the PTX of nvcc 13, not of {version}")
    return compile_operators(nvcc, tmp_path_factory.mktemp("ptx"))


@pytest.fixture(scope="module")
def operators(compiled: tuple[Path, str]) -> PtxOperators:
    return PtxOperators(*compiled)


@pytest.fixture
def launched(operators: PtxOperators) -> Iterator[set[str]]:
    """The kernels that a test launches."""
    names: set[str] = set()

    def note(name: str, blocks: int, *_: int) -> tuple[range, None]:
        names.add(name)
        return range(blocks), None

    operators.launches.on_launch = note
    yield names
    operators.launches.on_launch = None


@EVERY_PRECISION
def test_every_kernel_of_a_precision_agrees_with_the_reference(operators, launched, precision):
    for shape in SHAPES:
        for shift in (0, 1):
            check_forward_and_input_gradient(operators, precision, shape, shift)
            check_weight_gradient(operators, precision, shape, shift)
    names = {name for name in operators.launches.kernels if NAMES[precision] in name}
    assert names and names <= launched


@EVERY_PRECISION
def test_double_backward_adds_two_terms_of_one_launch_or_two(operators, precision):
    check_double_backward(operators, precision, (1, 3, 3, 7, 9, 3))
    check_double_backward(operators, precision, (1, 18, 17, 4, 5, 5))
    check_double_backward(operators, precision, (1, 16, 8, 3, 8, 3))
    check_double_backward(
        operators, precision, (1, 8, 64, 9, 16, 3), launches=1 if precision == "float64" else 2
    )


@EVERY_PRECISION
def test_a_weight_gradient_in_parts_and_one_in_one_agree_with_the_reference(operators, precision):
    assert check_weight_gradient(operators, precision, (1, 2, 3, 9, 33, 3)) > 1
    assert check_weight_gradient(operators, precision, (1, 8, 8, 9, 16, 3)) > 1
    assert check_weight_gradient(operators, precision, (1, 2, 3, 2, 5, 3)) == 1


@pytest.mark.parametrize("shape", [(1, 3, 4, 9, 18, 3), (1, 8, 4, 9, 24, 3)], ids=str)
@EVERY_PRECISION
def test_infinity_and_nan_reach_exactly_the_results_they_are_part_of(operators, precision, shape):
    check_infinity_and_nan(operators, precision, shape)


@pytest.mark.parametrize("shape", [(2, 3, 12, 12, 2, 3), (1, 9, 7, 11, 3, 2)], ids=str)
@pytest.mark.parametrize("precision", TEXTURE_NAMES)
def test_texture_kernels_and_their_transpose_agree_with_the_reference(operators, precision, shape):
    check_texture_kernels(operators, precision, shape)


class WideTextures(PtxOperators):
    """Texture kernels with indices of 64 bits, which the host takes for far larger maps only."""

    def run(self, function, precision, shape, transpose, source, target, *, read, written):
        batch, channels, height, width, grid, size = shape
        threads = batch * channels * (grid * size) ** 2
        if transpose:
            threads = batch * -(-channels // 8) * height * width
        direction = "transpose" if transpose else "forward"
        template = f"{direction}_kernelI{TEXTURE_NAMES[PRECISIONS[precision]]}lE"
        (name,) = (name for name in self.launches.kernels if template in name)
        parameters = struct.pack("<6qQQq", *shape, source.value, target.value, threads)
        blocks = (-(-threads // 256), 1, 1)
        buffers = buffers_of(read, written)
        self.launches.machine.launch(name, blocks, (256, 1, 1), parameters, buffers)


@pytest.mark.parametrize("precision", TEXTURE_NAMES)
def test_texture_kernels_with_indices_of_64_bits_agree_with_the_reference(compiled, precision):
    check_texture_kernels(WideTextures(*compiled), precision, (1, 9, 7, 11, 3, 2))


def first_blocks(*_: object) -> tuple[range, None]:
    return range(2), None


@EVERY_PRECISION
def test_a_block_of_the_weight_gradient_goes_over_many_tiles_of_pixels(
    operators, monkeypatch, precision
):
    monkeypatch.setattr(operators.launches, "on_launch", first_blocks)
    shape = (512, 3, 2, 5, 33, 3)
    x, _, g, _, _ = tensors(precision, shape)
    actual, splits = operators.weight_gradient(precision, shape, g, x)
    assert splits == 1
    assert_near(actual[:2], expected(precision, shape)[2][:2], precision)


def lacking_one(ptx: str, kernel: str, pattern: str) -> Iterator[str]:
    """The PTX without one instruction of a kernel, for all that are like the pattern."""
    begin = ptx.index(f".entry {kernel}(")
    end = ptx.find(".entry ", begin + 1)
    for match in re.compile(pattern).finditer(ptx, begin, end if end > 0 else len(ptx)):
        yield ptx[: match.start()] + ptx[match.end() :]


BARRIER, AWAITING = r"\tbar\.sync [^;]*;", r"\tcp\.async\.wait_all;"


# Rows of 33 pixels are copied element by element where those of 40 are copied 16 bytes at a time.
@pytest.mark.parametrize(
    ("precision", "width", "pattern"),
    [
        ("float32", 33, BARRIER),
        ("float32", 33, AWAITING),
        ("tf32", 33, BARRIER),
        ("tf32", 40, BARRIER),
        ("tf32", 40, AWAITING),
        ("bfloat16", 40, BARRIER),
        ("bfloat16", 40, AWAITING),
    ],
)
def test_no_barrier_and_no_awaiting_of_copies_can_be_left_out(compiled, precision, width, pattern):
    library, ptx = compiled
    shape = (128, 32, 36, 5, width, 3)
    x, w, g, _, _ = tensors(precision, shape)

    def run(operators: PtxOperators) -> set[str]:
        names = set()
        operators.launches.on_launch = lambda name, *_: (names.add(name), first_blocks())[1]
        operators.correlate(precision, shape, [(False, [(x, w)])])
        operators.correlate(precision, shape, [(True, [(g, w)])])
        operators.weight_gradient(precision, shape, g, x)
        return names

    kernels = run(PtxOperators(library, ptx))
    mutants = [mutant for kernel in kernels for mutant in lacking_one(ptx, kernel, pattern)]
    assert mutants
    for mutant in mutants:
        with pytest.raises(Fault, match=r"race|under way"):
            run(PtxOperators(library, mutant))


def test_operands_that_are_not_rounded_to_tf32_lose_accuracy(compiled):
    library, ptx = compiled
    mutant = PtxOperators(library, ptx.replace("cvt.rna.tf32.f32", "mov.b32"))
    with pytest.raises(AssertionError):
        check_forward_and_input_gradient(mutant, "tf32", (1, 16, 64, 8, 16, 3))
