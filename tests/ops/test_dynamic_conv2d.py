from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mkdext import _extension
from mkdext.ops import dynamic_conv2d, reference

# B, Ci, Co, H, W, k
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 3),
    (2, 3, 5, 7, 9, 3),
    (3, 8, 16, 12, 24, 3),
    (2, 5, 3, 6, 33, 5),
    (2, 4, 9, 3, 2, 5),
    (1, 70, 6, 5, 8, 3),
    (2, 4, 4, 10, 50, 1),
    (1, 2, 3, 30, 17, 7),
    (2, 3, 2, 40, 8, 3),
]
SMALL = [(2, 2, 3, 4, 5, k) for k in (1, 3, 5)] + [(1, 1, 2, 2, 1, 5)]


def _ref(input, weight):
    samples = [
        F.conv2d(x[None], w, padding=w.shape[-1] // 2) for x, w in zip(input, weight, strict=True)
    ]
    return torch.cat(samples)


def _tensors(shape, dtype=torch.float32, requires_grad=False):
    batch, in_channels, out_channels, height, width, size = shape
    input = torch.randn(batch, in_channels, height, width, dtype=dtype)
    weight = torch.randn(batch, out_channels, in_channels, size, size, dtype=dtype)
    return input.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)


def _grad_like(input, weight):
    return torch.randn(input.shape[0], weight.shape[1], *input.shape[2:], dtype=input.dtype)


def _assert_near(actual, expected, tolerance=2e-6):
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm()
    assert error <= tolerance * expected.double().norm().clamp_min(1e-30)


def _derivatives(function, input, weight, grad, cotangents):
    """Return the output, its gradients, and the gradients of those with the given cotangents."""
    input, weight, grad = (t.detach().requires_grad_() for t in (input, weight, grad))
    output = function(input, weight)
    first = torch.autograd.grad(output, (input, weight), grad, create_graph=True)
    second = torch.autograd.grad(first, (input, weight, grad), cotangents)
    return output.detach(), *(t.detach() for t in first), *second


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sample_is_convolved_with_its_own_kernel(shape, dtype):
    input, weight = _tensors(shape, dtype)
    expected = _ref(input.double(), weight.double())
    _assert_near(dynamic_conv2d(input, weight), expected, 1e-6 if dtype == torch.float32 else 1e-14)
    _assert_near(reference.dynamic_conv2d(input, weight), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_and_second_derivatives_agree_with_the_reference(shape, dtype):
    input, weight = _tensors(shape, dtype)
    grad = _grad_like(input, weight)
    cotangents = (torch.randn_like(input), torch.randn_like(weight))
    actual = _derivatives(dynamic_conv2d, input, weight, grad, cotangents)
    double = [t.double() for t in (input, weight, grad)]
    expected = _derivatives(
        reference.dynamic_conv2d, *double, tuple(t.double() for t in cotangents)
    )
    for a, e in zip(actual, expected, strict=True):
        _assert_near(a, e, 2e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("shape", SMALL)
def test_finite_differences_confirm_the_first_and_second_derivatives(shape):
    inputs = _tensors(shape, torch.float64, requires_grad=True)
    assert gradcheck(dynamic_conv2d, inputs)
    assert gradgradcheck(dynamic_conv2d, inputs)


def test_third_derivatives_agree_with_the_reference():
    shape = (2, 2, 3, 4, 5, 3)
    results = []
    input, weight = _tensors(shape, torch.float64)
    directions = [torch.randn_like(input), torch.randn_like(weight)]
    for function in (dynamic_conv2d, reference.dynamic_conv2d):
        leaves = (input.clone().requires_grad_(), weight.clone().requires_grad_())
        value = function(*leaves).pow(3).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        results.append((value, *torch.autograd.grad(value, leaves)))
    for a, e in zip(*results, strict=True):
        _assert_near(a, e, 1e-12)


def test_finite_differences_confirm_the_third_derivative():
    input, weight = _tensors((1, 2, 2, 3, 2, 3), torch.float64, requires_grad=True)
    grad = _grad_like(input, weight).requires_grad_()
    ggx = torch.randn_like(input).requires_grad_()
    ggw = torch.randn_like(weight).requires_grad_()

    def second(x, w, g, ggx, ggw):
        first = torch.autograd.grad(dynamic_conv2d(x, w), (x, w), g, create_graph=True)
        return torch.autograd.grad(first, (x, w, g), (ggx, ggw), create_graph=True)

    assert gradcheck(second, (input, weight, grad, ggx, ggw))


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mkdext":
            self.calls.append((func._schema.name.removeprefix("mkdext::"), args))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("needs", ["input", "weight", "both"])
def test_a_backward_computes_only_what_is_asked_for(needs):
    input, weight = _tensors((2, 3, 4, 5, 6, 3))
    input.requires_grad_(needs != "weight")
    weight.requires_grad_(needs != "input")
    with _Recorder() as recorder:
        dynamic_conv2d(input, weight).sum().backward()
    expected = {
        "input": ["dynamic_conv2d_input_grad"],
        "weight": ["dynamic_conv2d_weight_grad"],
        "both": ["dynamic_conv2d_input_grad", "dynamic_conv2d_weight_grad"],
    }
    assert [name for name, _ in recorder.calls] == ["dynamic_conv2d", *expected[needs]]


@pytest.mark.usefixtures("library")
def test_a_backward_skips_gradients_that_lead_to_nothing_asked_for():
    leaves = _tensors((2, 3, 4, 5, 6, 3), requires_grad=True)
    input, weight = (2 * leaf for leaf in leaves)
    output = dynamic_conv2d(input, weight)
    with _Recorder() as recorder:
        torch.autograd.grad(output.sum(), leaves[1])
    assert [name for name, _ in recorder.calls] == ["dynamic_conv2d_weight_grad"]


@pytest.mark.usefixtures("library")
def test_a_double_backward_is_one_call_with_a_mask():
    leaves = _tensors((2, 3, 4, 5, 6, 3), requires_grad=True)
    input, weight = (2 * leaf for leaf in leaves)
    grad = _grad_like(input, weight)
    first = torch.autograd.grad(dynamic_conv2d(input, weight), leaves, grad, create_graph=True)
    with _Recorder() as recorder:
        torch.autograd.grad(first, leaves[1], [torch.randn_like(t) for t in first])
    [(name, arguments)] = recorder.calls
    assert name == "dynamic_conv2d_double_backward"
    assert arguments[-3:] == (False, False, True)


@pytest.mark.parametrize(("use_x", "use_w"), [(True, False), (False, True)])
def test_a_second_derivative_through_one_gradient_only_is_right(use_x, use_w):
    input, weight = _tensors((2, 3, 4, 5, 6, 3), torch.float64)
    grad = _grad_like(input, weight)
    cotangent = torch.randn_like(input if use_x else weight)
    results = []
    for function in (dynamic_conv2d, reference.dynamic_conv2d):
        leaves = [t.clone().requires_grad_() for t in (input, weight, grad)]
        target = leaves[0] if use_x else leaves[1]
        [first] = torch.autograd.grad(function(*leaves[:2]), target, leaves[2], create_graph=True)
        others = [leaf for leaf in leaves if leaf is not target]
        results.append(torch.autograd.grad(first, others, cotangent))
    for a, e in zip(*results, strict=True):
        _assert_near(a, e, 1e-13)


def test_an_output_that_is_not_used_sends_no_gradient():
    input, weight = _tensors((1, 2, 2, 3, 3, 3), requires_grad=True)
    unused = dynamic_conv2d(input, weight)
    other = dynamic_conv2d(input.detach(), weight)
    first = torch.autograd.grad(other.pow(2).sum(), weight, create_graph=True)
    assert torch.autograd.grad(first[0].sum() + 0 * input.sum(), input)[0].eq(0).all()
    assert unused.requires_grad


def _strided_variants(shape):
    input, weight = _tensors(shape)
    yield "transposed", input.transpose(2, 3).contiguous().transpose(2, 3), weight.mT.mT
    yield "channels last", input.to(memory_format=torch.channels_last), weight
    doubled = torch.randn(*input.shape[:3], 2 * input.shape[3])
    yield "every second column", doubled[..., ::2], weight.flip(1)
    yield "expanded", input[:1].expand_as(input), weight[:, :, :1].expand_as(weight)
    yield "offset", torch.randn(input.numel() + 3)[3:].view_as(input), weight


@pytest.mark.parametrize("kind", range(5))
def test_any_strides_are_right_to_second_order(kind):
    _, input, weight = next(itertools.islice(_strided_variants((3, 4, 5, 6, 7, 3)), kind, None))
    grad = _grad_like(input, weight).transpose(2, 3).contiguous().transpose(2, 3)
    cotangents = (
        torch.randn_like(input[:1]).expand_as(input),
        torch.randn_like(weight).transpose(1, 2).contiguous().transpose(1, 2),
    )
    actual = _derivatives(dynamic_conv2d, input, weight, grad, cotangents)
    expected = _derivatives(reference.dynamic_conv2d, input, weight, grad, cotangents)
    for a, e in zip(actual, expected, strict=True):
        _assert_near(a, e)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_an_empty_batch_gives_empty_results_to_second_order(size):
    input, weight = _tensors((0, 3, 4, 5, 6, size), requires_grad=True)
    for function in (dynamic_conv2d, reference.dynamic_conv2d):
        output = function(input, weight)
        assert output.shape == (0, 4, 5, 6)
        first = torch.autograd.grad(output.pow(2).sum(), (input, weight), create_graph=True)
        second = torch.autograd.grad(sum(t.sum() for t in first), (input, weight))
        assert [t.shape for t in (*first, *second)] == [input.shape, weight.shape] * 2


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.usefixtures("keep_threads")
def test_one_and_two_threads_give_the_same_bits(batch):
    input, weight = _tensors((batch, 9, 10, 21, 26, 3))
    grad = _grad_like(input, weight)
    cotangents = (torch.randn_like(input), torch.randn_like(weight))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(_derivatives(dynamic_conv2d, input, weight, grad, cotangents))
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_calls_from_several_python_threads_do_not_disturb_each_other():
    cases = []
    for seed in range(8):
        torch.manual_seed(seed)
        input, weight = _tensors((2, 5, 6, 11, 13, 3))
        cotangents = (torch.randn_like(input), torch.randn_like(weight))
        cases.append((dynamic_conv2d, input, weight, _grad_like(input, weight), cotangents))
    expected = [_derivatives(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            actual = list(pool.map(lambda case: _derivatives(*case), cases))
            for a, e in zip(actual, expected, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, e, strict=True))


def test_torch_func_grad_gives_first_and_second_derivatives():
    input, weight = _tensors((2, 3, 4, 5, 6, 3), torch.float64)

    def meta(function):
        def inner(w):
            return torch.func.grad(lambda x: function(x, w).pow(3).sum())(input).pow(2).sum()

        return torch.func.grad(inner)(weight)

    _assert_near(meta(dynamic_conv2d), meta(reference.dynamic_conv2d), 1e-12)


@pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (1, None)])
def test_vmap_folds_into_the_batch_and_differentiates(in_dims):
    input, weight = _tensors((2, 3, 4, 5, 6, 3), torch.float64)
    inputs = torch.stack([input, 2 * input], in_dims[0] or 0) if in_dims[0] is not None else input
    weights = torch.stack([weight, weight.flip(0)]) if in_dims[1] == 0 else weight

    def gradient(function):
        def loss(x, w):
            first = torch.func.grad(lambda w: function(x, w).pow(2).sum())(w)
            return first.pow(2).sum()

        return torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims)(inputs, weights)

    for a, e in zip(gradient(dynamic_conv2d), gradient(reference.dynamic_conv2d), strict=True):
        _assert_near(a, e, 1e-12)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_traces_forward_and_backward_without_a_break():
    input, weight = _tensors((2, 3, 4, 5, 6, 3), requires_grad=True)
    compiled = torch.compile(dynamic_conv2d, backend="aot_eager", fullgraph=True)
    actual = torch.autograd.grad(compiled(input, weight).pow(2).sum(), (input, weight))
    expected = torch.autograd.grad(dynamic_conv2d(input, weight).pow(2).sum(), (input, weight))
    for a, e in zip(actual, expected, strict=True):
        _assert_near(a, e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    input, weight = (t.to(dtype).requires_grad_() for t in _tensors((2, 3, 4, 5, 6, 3)))
    output = dynamic_conv2d(input, weight)
    assert torch.equal(output, dynamic_conv2d(input.float(), weight.float()).to(dtype))
    output.float().sum().backward()
    assert (input.grad.dtype, weight.grad.dtype) == (dtype, dtype)


def test_autocast_computes_in_float32_whatever_the_mixture():
    input, weight = _tensors((2, 3, 4, 5, 6, 3), requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = dynamic_conv2d(input.bfloat16(), weight)
        assert output.dtype == torch.float32
        output.sum().backward()
    assert torch.equal(output, dynamic_conv2d(input.bfloat16().float(), weight))
    assert input.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("width", [8, 11])
def test_a_value_that_is_not_finite_stays_in_its_sample_and_neighbourhood(value, width):
    input, weight = _tensors((2, 3, 4, 6, width, 3))
    grad = _grad_like(input, weight)
    input[0, 1, 3, width - 1] = value
    leaf = weight.clone().requires_grad_()
    output = dynamic_conv2d(input, leaf)
    reached = torch.zeros(6, width, dtype=torch.bool)
    reached[2:5, width - 2 :] = True
    assert torch.equal(~output[0].isfinite().any(0), reached)
    assert output[1].isfinite().all()
    [gradient] = torch.autograd.grad(output, leaf, grad)
    # The last column meets kernel columns 1 and 2 only: at 0 it lies outside.
    assert gradient[0, :, 1, :, 0].isfinite().all()
    assert not gradient[0, :, 1, :, 1:].isfinite().any()
    assert gradient[0, :, [0, 2]].isfinite().all() and gradient[1].isfinite().all()


def test_without_the_extension_the_reference_answers(monkeypatch):
    module = importlib.import_module("mkdext.ops.dynamic_conv2d")
    monkeypatch.setattr(module, "has_kernel", lambda tensor: False)
    input, weight = _tensors((2, 3, 4, 5, 6, 3))
    assert torch.equal(dynamic_conv2d(input, weight), reference.dynamic_conv2d(input, weight))


def test_other_devices_use_the_reference():
    input, weight = (t.to("meta") for t in _tensors((2, 3, 4, 5, 6, 3)))
    assert dynamic_conv2d(input, weight).shape == (2, 4, 5, 6)


# The autograd formulas belong to Python classes above the operators, so there is no kernel for the
# Autograd key that "test_autograd_registration" could find.
_CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("batch", [0, 2])
def test_the_registered_operators_pass_opcheck(batch):
    ops = torch.ops.mkdext
    input, weight = _tensors((batch, 3, 4, 5, 6, 3))
    grad, ggx, ggw = _grad_like(input, weight), torch.randn_like(input), torch.randn_like(weight)
    opcheck(ops.dynamic_conv2d.default, (input, weight), test_utils=_CHECKS)
    opcheck(ops.dynamic_conv2d_input_grad.default, (grad, weight), test_utils=_CHECKS)
    opcheck(ops.dynamic_conv2d_weight_grad.default, (grad, input, 3), test_utils=_CHECKS)
    for tensors in ((input, weight, ggx, ggw), (None, weight, ggx, None), (input, None, None, ggw)):
        for wanted in ((True, True, True), (False, True, True), (True, False, False)):
            arguments = (grad, *tensors, *wanted)
            opcheck(ops.dynamic_conv2d_double_backward.default, arguments, test_utils=_CHECKS)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(2, 3, 4), torch.ones(2, 4, 3, 3, 3)),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 4, 5, 3, 3)),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 4, 3, 2, 2)),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 4, 3, 3, 3).double()),
        (torch.ones(2, 3, 4, 4).int(), torch.ones(2, 4, 3, 3, 3).int()),
    ],
)
def test_the_bare_operator_refuses_what_it_cannot_compute(arguments):
    with pytest.raises(RuntimeError, match="dynamic_conv2d"):
        torch.ops.mkdext.dynamic_conv2d(*arguments)


_PROGRAM = """
import torch
from mkdext import _extension
from mkdext.ops import dynamic_conv2d, reference
print(_extension.module().instruction_set())
for k, dtype in ((1, torch.float32), (3, torch.float32), (5, torch.float32), (3, torch.float64)):
    leaves = [torch.randn(2, 5, 9, 27, dtype=dtype), torch.randn(2, 6, 5, k, k, dtype=dtype)]
    results = []
    for function in (dynamic_conv2d, reference.dynamic_conv2d):
        x, w = (t.clone().requires_grad_() for t in leaves)
        first = torch.autograd.grad(function(x, w).pow(2).sum(), (x, w), create_graph=True)
        results.append(torch.autograd.grad(sum(t.pow(2).sum() for t in first), (x, w)))
    for a, e in zip(*results):
        assert (a - e).norm() <= 1e-5 * e.norm(), (k, dtype)
"""


def _run_with(instruction_set):
    environment = {**os.environ, "MKDEXT_INSTRUCTION_SET": instruction_set}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-W", "error", "-c", _PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_every_instruction_set_of_this_processor_is_right(instruction_set):
    if instruction_set not in _extension.module().cpu_features():
        pytest.skip(f"this processor has no {instruction_set}")
    result = _run_with(instruction_set)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == instruction_set


@pytest.mark.usefixtures("library")
def test_an_unknown_instruction_set_is_refused_by_name():
    result = _run_with("mmx")
    assert result.returncode != 0
    assert "MKDEXT_INSTRUCTION_SET must be one of" in result.stderr
    assert "got 'mmx'" in result.stderr


X = torch.ones(2, 3, 4, 5)
W = torch.ones(2, 6, 3, 3, 3)


@pytest.mark.parametrize(
    ("input", "weight", "error", "message"),
    [
        ([1.0], W, TypeError, "input must be a torch.Tensor, got list"),
        (X, None, TypeError, "weight must be a torch.Tensor, got NoneType"),
        (X.int(), W, TypeError, "input must be float32, float64, float16 or bfloat16, got int32"),
        (X, W.bool(), TypeError, "weight must be float32, float64, float16 or bfloat16, got bool"),
        (X.to_sparse(), W, TypeError, "input must be a dense tensor, got torch.sparse_coo"),
        (X, W.double(), TypeError, "input and weight must have one dtype, got float32 and float64"),
        (X, W.to("meta"), ValueError, "input and weight must be on one device, got cpu and meta"),
        (X[0], W, ValueError, "input must be [B, Ci, H, W], got [3, 4, 5]"),
        (
            X[:, :0],
            W,
            ValueError,
            "input must be [B, Ci, H, W] with at least one channel, row and column, "
            "got [2, 0, 4, 5]",
        ),
        (
            X[..., :0],
            W,
            ValueError,
            "input must be [B, Ci, H, W] with at least one channel, row and column, "
            "got [2, 3, 4, 0]",
        ),
        (X, W[0], ValueError, "weight must be [B, Co, Ci, k, k], got [6, 3, 3, 3]"),
        (X, W[:1], ValueError, "weight must be [B, Co, Ci, k, k] with B=2, got [1, 6, 3, 3, 3]"),
        (
            X,
            W[:, :, :2],
            ValueError,
            "weight must be [B, Co, Ci, k, k] with Ci=3, got [2, 6, 2, 3, 3]",
        ),
        (
            X,
            W[:, :0],
            ValueError,
            "weight must be [B, Co, Ci, k, k] with Co at least 1, got [2, 0, 3, 3, 3]",
        ),
        (
            X,
            W[..., :2, :2],
            ValueError,
            "weight must be [B, Co, Ci, k, k] with one odd k, got [2, 6, 3, 2, 2]",
        ),
        (
            X,
            W[..., :1],
            ValueError,
            "weight must be [B, Co, Ci, k, k] with one odd k, got [2, 6, 3, 3, 1]",
        ),
        (
            X[:, :, :1, :1].expand(2, 3, 10**6, 10**6),
            W,
            ValueError,
            "input of [2, 3, 1000000, 1000000] needs 22,352 GiB, but this machine has",
        ),
        (
            X[:, :, :1, :1].expand(2, 3, 10**5, 10**4),
            W[:, :1].expand(2, 10**13, 3, 3, 3),
            ValueError,
            "weight of [2, 10000000000000, 3, 3, 3] needs",
        ),
        (
            X[:1, :, :1, :1].expand(1, 3, 10**3, 10**3),
            W[:1, :1, :, :1, :1].expand(1, 10**8, 3, 1, 1),
            ValueError,
            "the result of [1, 100000000, 1000, 1000] needs 372,529 GiB, but this machine has",
        ),
        (
            X[:, :, :1, :1].expand(2, 3, 10**9, 10**9),
            W,
            ValueError,
            "input of [2, 3, 1000000000, 1000000000] needs 2.4e+19 bytes, which overflows",
        ),
    ],
)
def test_bad_input_gets_one_sentence_with_argument_rule_and_value(input, weight, error, message):
    with pytest.raises(error, match="^" + re.escape(f"dynamic_conv2d: {message}")):
        dynamic_conv2d(input, weight)
