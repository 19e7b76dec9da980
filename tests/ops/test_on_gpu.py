"""The CUDA operators on a GPU; everything here is skipped where there is none.

`tests/ops/test_cuda_arithmetic.py` tests the same kernels without one.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from mkdext._system import cuda, extension
from mkdext.ops import dynamic_conv2d, dynamic_conv2d_algorithms, reference, texture_kernels
from tests.ops.cuda_checks import random_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")
# B, Ci, Co, H, W, k
SHAPES = [
    (1, 1, 1, 1, 1, 3),
    (3, 64, 64, 48, 48, 3),
    (2, 16, 144, 24, 24, 3),
    (2, 64, 16, 33, 17, 3),
    (2, 64, 16, 33, 24, 3),
    (2, 17, 65, 9, 31, 3),
    (2, 5, 3, 6, 33, 5),
    (2, 4, 4, 10, 50, 1),
    (1, 3, 70, 30, 17, 7),
]
# The norm of the error relative to that of the result.
TOLERANCES = {
    "float32": 2e-6,
    "tf32": 1e-3,
    "tf32x3": 2e-6,
    "float64": 1e-13,
    "bfloat16": 1e-2,
    "float16": 2e-3,
}


@pytest.fixture(autouse=True, scope="module")
def cuda_operators() -> None:
    status = cuda.status()
    if status.state == "missing" and not extension.is_required():
        pytest.skip(f"{status.reason}: {status.fix}")
    assert cuda.available(CUDA), f"{status.reason}: {status.fix}"


def _tensors(shape, dtype=torch.float32):
    """Random x, w, g, ggx and ggw on the GPU."""
    return random_tensors(shape, dtype, "cuda")


def _form(precision):
    """`dynamic_conv2d` in a precision, and the dtype for it."""
    if precision in ("tf32", "tf32x3"):
        return partial(dynamic_conv2d, algorithm=precision), torch.float32
    return partial(dynamic_conv2d, algorithm="direct"), getattr(torch, precision)


def _derivatives(function, x, w, g, ggx, ggw):
    x, w, g = (t.detach().requires_grad_() for t in (x, w, g))
    y = function(x, w)
    first = torch.autograd.grad(y, (x, w), g, create_graph=True)
    second = torch.autograd.grad(first, (x, w, g), (ggx, ggw))
    return [t.detach() for t in (y, *first, *second)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_all_seven_products_agree_with_the_reference(precision, shape):
    function, dtype = _form(precision)
    tensors = _tensors(shape, dtype)
    actual = _derivatives(function, *tensors)
    expected = _derivatives(reference.dynamic_conv2d, *(t.double().cpu() for t in tensors))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype and a.device.type == "cuda"
        error = (a.double().cpu() - e).norm()
        assert error <= TOLERANCES[precision] * (e.norm() + e.numel() ** 0.5)


def test_finite_differences_confirm_the_derivatives():
    x, w = (t.requires_grad_() for t in _tensors((2, 2, 3, 4, 5, 3), torch.float64)[:2])
    assert gradcheck(dynamic_conv2d, (x, w), fast_mode=True)
    assert gradgradcheck(dynamic_conv2d, (x, w), fast_mode=True)
    assert gradgradcheck(lambda x: texture_kernels(x, 2, 3).square(), (x,), fast_mode=True)


def test_pytorch_accepts_the_registrations():
    x, w, g, ggx, ggw = _tensors((2, 3, 4, 5, 6, 3))
    ops = torch.ops.mkdext
    opcheck(ops.dynamic_conv2d.default, (x, w))
    opcheck(ops.dynamic_conv2d_input_grad.default, (g, w))
    opcheck(ops.dynamic_conv2d_weight_grad.default, (g, x, 3))
    arguments = (g, x, w, ggx, ggw, True, True, True)
    opcheck(ops.dynamic_conv2d_double_backward.default, arguments)
    opcheck(ops.texture_kernels.default, (x, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(3, 64, 48, 48, 8, 3), (2, 17, 50, 33, 3, 2), (1, 3, 2, 2, 3, 1)]
)
def test_texture_kernels_agree_with_the_reference(shape, dtype):
    *sizes, grid, size = shape
    features = torch.randn(sizes, device=CUDA).to(dtype).requires_grad_()
    result = texture_kernels(features, grid, size)
    cotangent = torch.randn_like(result)
    (gradient,) = torch.autograd.grad(result, features, cotangent)
    leaf = features.detach().double().cpu().requires_grad_()
    expected = reference.texture_kernels(leaf, grid, size)
    (expected_gradient,) = torch.autograd.grad(expected, leaf, cotangent.double().cpu())
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, 1e-2)
    for a, e in ((result, expected), (gradient, expected_gradient)):
        assert a.dtype == dtype
        assert (a.double().cpu() - e).norm() <= tolerance * e.norm()


def test_views_and_other_memory_formats_are_right():
    x, w = _tensors((3, 8, 16, 12, 10, 3))[:2]
    expected = dynamic_conv2d(x, w)
    assert torch.equal(dynamic_conv2d(x.to(memory_format=torch.channels_last), w), expected)
    assert dynamic_conv2d(x[:0], w[:0]).shape == (0, 16, 12, 10)


@pytest.mark.parametrize("shape", [(2, 24, 72, 17, 24, 3), (2, 40, 16, 17, 24, 3)], ids=str)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_no_result_depends_on_where_the_operands_lie(precision, shape):
    function, dtype = _form(precision)
    tensors = _tensors(shape, dtype)
    shifted = [
        torch.empty(t.numel() + 1, device=CUDA, dtype=dtype)[1:].view(t.shape).copy_(t)
        for t in tensors
    ]
    for a, b in zip(
        _derivatives(function, *tensors), _derivatives(function, *shifted), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_results_do_not_vary_from_run_to_run(precision):
    function, dtype = _form(precision)
    tensors = _tensors((4, 64, 64, 48, 48, 3), dtype)
    first = _derivatives(function, *tensors)
    for _ in range(5):
        again = _derivatives(function, *tensors)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_work_goes_to_the_current_stream():
    x, w = _tensors((8, 64, 64, 48, 48, 3))[:2]
    expected = dynamic_conv2d(x, w)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1)
        dynamic_conv2d(x * 2, w)  # its memory is there and its kernels are loaded when they count
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x * 2
        actual = dynamic_conv2d(late, w)
    assert not stream.query()  # nothing waited for the sleep
    stream.synchronize()
    assert torch.equal(actual, expected * 2)


def test_a_graph_captures_all_derivatives():
    tensors = _tensors((2, 16, 16, 24, 24, 3))
    expected = _derivatives(dynamic_conv2d, *tensors)
    static = [torch.zeros_like(t) for t in tensors]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _derivatives(dynamic_conv2d, *static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _derivatives(dynamic_conv2d, *static)
    for target, value in zip(static, tensors, strict=True):
        target.copy_(value)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_synchronizes():
    tensors = _tensors((2, 16, 16, 24, 24, 3))
    _derivatives(dynamic_conv2d, *tensors)
    texture_kernels(tensors[0], 4, 3)
    try:
        torch.cuda.set_sync_debug_mode("error")
        _derivatives(dynamic_conv2d, *tensors)
        texture_kernels(tensors[0], 4, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_computes_in_its_dtype():
    x, w = _tensors((2, 16, 16, 24, 24, 3))[:2]
    with torch.autocast("cuda", torch.bfloat16):
        output = dynamic_conv2d(x, w.bfloat16())
        assert texture_kernels(x, 4, 3).dtype == torch.float32
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, dynamic_conv2d(x.bfloat16(), w.bfloat16()))


def test_float32_is_computed_on_tensor_cores_where_they_are_fast():
    x, w = _tensors((2, 16, 16, 24, 24, 3))[:2]
    fast = torch.cuda.get_device_capability() in [(8, 0), (9, 0), (10, 0), (10, 3)]
    taken = dynamic_conv2d_algorithms(x, w)["forward"]
    assert taken == ("tf32x3" if fast else "direct")
    assert torch.equal(dynamic_conv2d(x, w), dynamic_conv2d(x, w, taken))
    halves = (x.half(), w.half())
    assert dynamic_conv2d_algorithms(*halves)["forward"] == "direct"


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_tf32_is_taken_only_when_pytorch_allows_it(setting):
    x, w = _tensors((2, 16, 16, 24, 24, 3))[:2]
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        taken = dynamic_conv2d_algorithms(x, w)["forward"]
        assert (taken == "tf32") is (setting == "tf32")
        assert torch.equal(dynamic_conv2d(x, w), dynamic_conv2d(x, w, taken))
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("algorithm", ["winograd", "tf32", "tf32x3"])
def test_an_algorithm_that_cannot_run_here_tells_which_can(algorithm):
    x, w = _tensors((2, 3, 4, 5, 6, 3), torch.float64)[:2]
    with pytest.raises(ValueError, match=f'"{algorithm}" needs .*: "auto" and "direct" can'):
        dynamic_conv2d(x, w, algorithm)


def test_tensors_on_two_devices_are_refused():
    x, w = _tensors((2, 3, 4, 5, 6, 3))[:2]
    with pytest.raises(ValueError, match="must be on one device, got cuda:0 and cpu"):
        dynamic_conv2d(x, w.cpu())


def test_memory_that_runs_out_is_pytorch_s_error_and_nothing_is_kept():
    size = torch.cuda.get_device_properties(0).total_memory
    x = torch.zeros(1, 1, 1024, 1024, device=CUDA)
    w = torch.zeros(1, 1, 1, 1, 1, device=CUDA).expand(1, size // 2**22 + 1, 1, 1, 1)
    before = torch.cuda.memory_allocated()
    with pytest.raises(torch.OutOfMemoryError):
        dynamic_conv2d(x, w)
    assert torch.cuda.memory_allocated() == before
    assert dynamic_conv2d(x, w[:, :1]).shape == x.shape


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_function_gives_the_same():
    x, w = _tensors((2, 16, 16, 24, 24, 3))[:2]
    compiled = torch.compile(dynamic_conv2d, fullgraph=True)
    assert torch.equal(compiled(x, w), dynamic_conv2d(x, w))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_work_goes_to_the_device_of_the_tensors():
    x, w = (t.to("cuda:1") for t in _tensors((2, 16, 16, 24, 24, 3))[:2])
    assert torch.cuda.current_device() == 0
    assert torch.equal(dynamic_conv2d(x, w).cpu(), dynamic_conv2d(x.to(CUDA), w.to(CUDA)).cpu())
