from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mkdext._system import extension
from mkdext.ops import dynamic_conv2d, dynamic_conv2d_algorithms, reference

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
    (2, 17, 9, 13, 6, 3),
]
SMALL = [(2, 2, 3, 4, 5, k) for k in (1, 3, 5)] + [(1, 1, 2, 2, 1, 5)]
DTYPES = (torch.float32, torch.float64)


def _runnable(shape, dtype=torch.float32):
    """List the algorithms to force; without compiled kernels there is nothing to choose."""
    if extension.status().state != "loaded":
        return ["auto"]
    is_float32 = dtype != torch.float64
    names = extension.module().dynamic_conv2d_runnable(*shape, is_float32=is_float32)
    return [name for name in names if name != "auto"]


def _each(shapes, dtypes=DTYPES):
    cases = itertools.product(shapes, dtypes)
    return [(shape, dtype, name) for shape, dtype in cases for name in _runnable(shape, dtype)]


ALGORITHMS = pytest.mark.parametrize("algorithm", _runnable((1, 1, 1, 1, 1, 3)))


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


@pytest.mark.parametrize(("shape", "dtype", "algorithm"), _each(SHAPES))
def test_every_sample_is_convolved_with_its_own_kernel(shape, dtype, algorithm):
    input, weight = _tensors(shape, dtype)
    expected = _ref(input.double(), weight.double())
    output = dynamic_conv2d(input, weight, algorithm)
    _assert_near(output, expected, 2e-6 if dtype == torch.float32 else 1e-14)
    _assert_near(reference.dynamic_conv2d(input, weight), expected)


@pytest.mark.parametrize(("shape", "dtype", "algorithm"), _each(SHAPES))
def test_first_and_second_derivatives_agree_with_the_reference(shape, dtype, algorithm):
    input, weight = _tensors(shape, dtype)
    grad = _grad_like(input, weight)
    cotangents = (torch.randn_like(input), torch.randn_like(weight))
    function = partial(dynamic_conv2d, algorithm=algorithm)
    actual = _derivatives(function, input, weight, grad, cotangents)
    double = [t.double() for t in (input, weight, grad)]
    expected = _derivatives(
        reference.dynamic_conv2d, *double, tuple(t.double() for t in cotangents)
    )
    for a, e in zip(actual, expected, strict=True):
        _assert_near(a, e, 2e-6 if dtype == torch.float32 else 1e-13)


@strategies.composite
def _any_case(draw):
    sizes = [(0, 3), (1, 20), (1, 20), (1, 13), (1, 13)]
    shape = (*(draw(strategies.integers(*size)) for size in sizes), draw(_KERNEL_SIZES))
    dtype = draw(strategies.sampled_from(DTYPES))
    return shape, dtype, draw(strategies.sampled_from(_runnable(shape, dtype)))


_KERNEL_SIZES = strategies.sampled_from([1, 3, 3, 3, 5, 7])


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(_any_case())
def test_random_shapes_are_right_to_second_order(case):
    shape, dtype, algorithm = case
    input, weight = _tensors(shape, dtype)
    grad = _grad_like(input, weight)
    tensors = (input, weight, grad, torch.randn_like(input), torch.randn_like(weight))

    def derivatives(function, values):
        return _derivatives(function, *values[:3], values[3:])

    actual = derivatives(partial(dynamic_conv2d, algorithm=algorithm), tensors)
    expected = derivatives(reference.dynamic_conv2d, [t.double() for t in tensors])
    # A short sum may cancel, so that its error is large beside it, but not beside its terms.
    terms = derivatives(reference.dynamic_conv2d, [t.double().abs() for t in tensors])
    tolerance = 2e-6 if dtype == torch.float32 else 1e-14
    for a, e, t in zip(actual, expected, terms, strict=True):
        assert a.shape == e.shape
        assert (a - e).norm() <= tolerance * t.norm()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("size", [48, 24])
@ALGORITHMS
def test_the_error_of_float32_is_within_the_bound(size, algorithm):
    input, weight = _tensors((2, 64, 64, size, size, 3))
    grad = _grad_like(input, weight)
    results = []
    for dtype, function in (
        (torch.float32, partial(dynamic_conv2d, algorithm=algorithm)),
        (torch.float64, reference.dynamic_conv2d),
    ):
        leaves = [t.to(dtype).requires_grad_() for t in (input, weight)]
        output = function(*leaves)
        results.append((output, *torch.autograd.grad(output, leaves, grad.to(dtype))))
    for actual, expected in zip(*results, strict=True):
        _assert_near(actual, expected, 1.5e-6)


@pytest.mark.parametrize("shape", SMALL)
def test_finite_differences_confirm_the_first_and_second_derivatives(shape):
    inputs = _tensors(shape, torch.float64, requires_grad=True)
    assert gradcheck(dynamic_conv2d, inputs)
    assert gradgradcheck(dynamic_conv2d, inputs)


@pytest.mark.parametrize(("shape", "dtype", "algorithm"), _each([(2, 2, 3, 4, 5, 3)]))
def test_third_derivatives_agree_with_the_reference(shape, dtype, algorithm):
    tensors = _tensors(shape, torch.float64)
    directions = [torch.randn_like(t) for t in tensors]
    results = []
    for dtype_used, function in (
        (dtype, partial(dynamic_conv2d, algorithm=algorithm)),
        (torch.float64, reference.dynamic_conv2d),
    ):
        leaves = [t.to(dtype_used).requires_grad_() for t in tensors]
        value = function(*leaves).pow(3).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        results.append((value, *torch.autograd.grad(value, leaves)))
    for a, e in zip(*results, strict=True):
        _assert_near(a, e, 1e-5 if dtype == torch.float32 else 1e-12)


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
@ALGORITHMS
def test_any_strides_are_right_to_second_order(kind, algorithm):
    _, input, weight = next(itertools.islice(_strided_variants((3, 4, 5, 6, 7, 3)), kind, None))
    grad = _grad_like(input, weight).transpose(2, 3).contiguous().transpose(2, 3)
    cotangents = (
        torch.randn_like(input[:1]).expand_as(input),
        torch.randn_like(weight).transpose(1, 2).contiguous().transpose(1, 2),
    )
    function = partial(dynamic_conv2d, algorithm=algorithm)
    actual = _derivatives(function, input, weight, grad, cotangents)
    expected = _derivatives(reference.dynamic_conv2d, input, weight, grad, cotangents)
    for a, e in zip(actual, expected, strict=True):
        _assert_near(a, e)


@pytest.mark.parametrize(
    ("shape", "dtype", "algorithm"), _each([(0, 3, 4, 5, 6, size) for size in (1, 3, 5)])
)
def test_an_empty_batch_gives_empty_results_to_second_order(shape, dtype, algorithm):
    input, weight = _tensors(shape, dtype, requires_grad=True)
    for function in (partial(dynamic_conv2d, algorithm=algorithm), reference.dynamic_conv2d):
        output = function(input, weight)
        assert output.shape == (0, 4, 5, 6)
        first = torch.autograd.grad(output.pow(2).sum(), (input, weight), create_graph=True)
        second = torch.autograd.grad(sum(t.sum() for t in first), (input, weight))
        assert [t.shape for t in (*first, *second)] == [input.shape, weight.shape] * 2


# One sample is work for three threads, so that a batch of one is cut within the sample.
@pytest.mark.parametrize(
    ("shape", "dtype", "algorithm"),
    _each([(batch, 24, 33, 21, 26, 3) for batch in (1, 3, 5)], [torch.float32])
    + _each([(1, 24, 33, 21, 26, 3), (1, 16, 20, 21, 26, 5)], [torch.float64]),
)
@pytest.mark.usefixtures("library", "keep_threads")
def test_the_number_of_threads_changes_no_bit(shape, dtype, algorithm):
    input, weight = _tensors(shape, dtype)
    grad = _grad_like(input, weight)
    cotangents = (torch.randn_like(input), torch.randn_like(weight))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        function = partial(dynamic_conv2d, algorithm=algorithm)
        results.append(_derivatives(function, input, weight, grad, cotangents))
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@ALGORITHMS
def test_calls_from_several_python_threads_do_not_disturb_each_other(algorithm):
    function = partial(dynamic_conv2d, algorithm=algorithm)
    cases = []
    for seed in range(8):
        torch.manual_seed(seed)
        input, weight = _tensors((2, 5, 6, 11, 13, 3))
        cotangents = (torch.randn_like(input), torch.randn_like(weight))
        cases.append((function, input, weight, _grad_like(input, weight), cotangents))
    expected = [_derivatives(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            actual = list(pool.map(lambda case: _derivatives(*case), cases))
            for a, e in zip(actual, expected, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, e, strict=True))


@pytest.mark.parametrize(("shape", "dtype", "algorithm"), _each([(2, 3, 4, 5, 6, 3)]))
def test_torch_func_grad_gives_first_and_second_derivatives(shape, dtype, algorithm):
    input, weight = _tensors(shape, dtype)

    def meta(function):
        def inner(w):
            return torch.func.grad(lambda x: function(x, w).pow(3).sum())(input).pow(2).sum()

        return torch.func.grad(inner)(weight)

    actual = meta(partial(dynamic_conv2d, algorithm=algorithm))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    _assert_near(actual, meta(reference.dynamic_conv2d), tolerance)


@pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (1, None)])
@pytest.mark.parametrize(("shape", "dtype", "algorithm"), _each([(2, 3, 4, 5, 6, 3)]))
def test_vmap_folds_into_the_batch_and_differentiates(in_dims, shape, dtype, algorithm):
    input, weight = _tensors(shape, dtype)
    inputs = torch.stack([input, 2 * input], in_dims[0] or 0) if in_dims[0] is not None else input
    weights = torch.stack([weight, weight.flip(0)]) if in_dims[1] == 0 else weight

    def gradient(function):
        def loss(x, w):
            first = torch.func.grad(lambda w: function(x, w).pow(2).sum())(w)
            return first.pow(2).sum()

        return torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims)(inputs, weights)

    actual = gradient(partial(dynamic_conv2d, algorithm=algorithm))
    for a, e in zip(actual, gradient(reference.dynamic_conv2d), strict=True):
        _assert_near(a, e, 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@ALGORITHMS
def test_torch_compile_traces_forward_and_backward_without_a_break(algorithm):
    input, weight = _tensors((2, 3, 4, 5, 6, 3), requires_grad=True)
    function = partial(dynamic_conv2d, algorithm=algorithm)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    actual = torch.autograd.grad(compiled(input, weight).pow(2).sum(), (input, weight))
    expected = torch.autograd.grad(function(input, weight).pow(2).sum(), (input, weight))
    for a, e in zip(actual, expected, strict=True):
        _assert_near(a, e)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_need_not_trace_whether_a_device_has_autocast(monkeypatch):
    untraceable = torch.compiler.disable(torch.amp.is_autocast_available)  # as in PyTorch 2.11
    monkeypatch.setattr(torch.amp, "is_autocast_available", untraceable)
    input, weight = _tensors((2, 3, 4, 5, 6, 3))
    compiled = torch.compile(dynamic_conv2d, backend="eager", fullgraph=True)
    assert torch.equal(compiled(input, weight), dynamic_conv2d(input, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ALGORITHMS
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype, algorithm):
    input, weight = (t.to(dtype).requires_grad_() for t in _tensors((2, 3, 4, 5, 6, 3)))
    output = dynamic_conv2d(input, weight, algorithm)
    assert torch.equal(output, dynamic_conv2d(input.float(), weight.float(), algorithm).to(dtype))
    output.float().sum().backward()
    assert (input.grad.dtype, weight.grad.dtype) == (dtype, dtype)


@pytest.mark.usefixtures("library")
@ALGORITHMS
def test_autocast_computes_in_float32_whatever_the_mixture(algorithm):
    input, weight = _tensors((2, 3, 4, 5, 6, 3), requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = dynamic_conv2d(input.bfloat16(), weight, algorithm)
        assert output.dtype == torch.float32
        output.sum().backward()
    assert torch.equal(output, dynamic_conv2d(input.bfloat16().float(), weight, algorithm))
    assert input.grad.dtype == weight.grad.dtype == torch.float32


def test_autocast_does_not_mix_float64_with_another_dtype():
    input, weight = _tensors((2, 3, 4, 5, 6, 3))
    message = "input and weight must have one dtype, got float64 and float32"
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match=message):
        dynamic_conv2d(input.double(), weight)


def _reach(position, sizes, algorithm):
    """Mark what a value at a position of a map may reach in a map on the other side of a kernel."""
    reached = []
    for at, size in zip(position, sizes, strict=True):
        index = torch.arange(size)
        if algorithm == "winograd":  # the outputs 4t to 4t + 3 are made of 4t - 1 to 4t + 4
            index, reach = index // 4 * 4 + 1.5, 2.5
        else:
            reach = 1
        reached.append((index - at).abs() <= reach)
    return reached[0][:, None] & reached[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("width", [8, 11])
@pytest.mark.parametrize("row", [0, 3, 4, 8])
@ALGORITHMS
def test_a_value_that_is_not_finite_stays_in_its_sample_and_neighbourhood(
    value, width, row, algorithm
):
    input, weight = _tensors((2, 3, 4, 9, width, 3), requires_grad=True)
    grad = _grad_like(input, weight)
    must = _reach((row, width - 1), (9, width), "direct")
    may = _reach((row, width - 1), (9, width), algorithm)

    def check_map(result):
        assert result[1].isfinite().all()
        assert not result[0][:, must].isfinite().any()
        assert result[0][:, ~may].isfinite().all()

    broken = input.detach().clone()
    broken[0, 1, row, width - 1] = value
    output = dynamic_conv2d(broken, weight, algorithm)
    check_map(output)
    # In the last column no product of kernel column 0 has the value, and alike for the rows.
    taps = torch.ones(3, 3, dtype=torch.bool)
    taps[:, 0] = False
    taps[2 if row == 0 else slice(0), :] = False
    taps[0 if row == 8 else slice(0), :] = False
    [gradient] = torch.autograd.grad(output, weight, grad)
    assert not gradient[0, :, 1][:, taps].isfinite().any()
    assert gradient[0, :, 1][:, ~taps].isfinite().all() or algorithm == "winograd"
    assert gradient[0, :, [0, 2]].isfinite().all() and gradient[1].isfinite().all()

    output = dynamic_conv2d(input, weight, algorithm)
    grad[0, 2, row, width - 1] = value
    input_gradient, gradient = torch.autograd.grad(output, (input, weight), grad)
    check_map(input_gradient)
    # Every element of the kernel has a product with the value, if only with a zero of the padding.
    assert not gradient[0, 2].isfinite().any()
    assert gradient[0, [0, 1, 3]].isfinite().all() and gradient[1].isfinite().all()


@pytest.mark.usefixtures("library")
@ALGORITHMS
def test_the_algorithm_goes_with_derivatives_of_every_order(algorithm):
    leaves = _tensors((2, 3, 4, 5, 6, 3), requires_grad=True)

    def value(input, weight):
        return dynamic_conv2d(input, weight, algorithm).pow(4).sum()

    def loss(input, weight):
        gradients = torch.func.grad(value, argnums=(0, 1))(input, weight)
        return sum(gradient.pow(2).sum() for gradient in gradients)

    with _Recorder() as recorder:
        total = value(*leaves)
        for _ in range(4):
            gradients = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum(gradient.pow(2).sum() for gradient in gradients)
        torch.func.vmap(torch.func.grad(loss))(*(leaf.detach()[None] for leaf in leaves))
    names = {name for name, _ in recorder.calls}
    assert len(names) == 4
    assert {arguments[-1] for _, arguments in recorder.calls} == {algorithm}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 64, 64, 12, 12, 3), torch.float32),
        ((2, 64, 64, 12, 12, 3), torch.float64),
        ((2, 16, 16, 12, 12, 5), torch.float32),
        ((2, 3, 4, 5, 6, 3), torch.bfloat16),
        ((0, 8, 8, 5, 6, 3), torch.float32),
    ],
)
def test_the_automatic_choice_is_told_and_taken(shape, dtype):
    input, weight = (t.to(dtype).requires_grad_() for t in _tensors(shape))
    chosen = dynamic_conv2d_algorithms(input, weight)
    assert list(chosen) == ["forward", "input_grad", "weight_grad"]
    assert set(chosen.values()) <= set(_runnable(shape, dtype))
    output = dynamic_conv2d(input, weight)
    grad = torch.randn_like(output)
    results = (output, *torch.autograd.grad(output, (input, weight), grad))
    for index, algorithm in enumerate(chosen.values()):
        output = dynamic_conv2d(input, weight, algorithm)
        forced = (output, *torch.autograd.grad(output, (input, weight), grad))
        assert torch.equal(forced[index], results[index])


@pytest.mark.usefixtures("library")
def test_the_names_are_those_of_the_kernels():
    devices = extension.module().dynamic_conv2d_devices()
    names = ", ".join(name for name in devices if "cpu" in devices[name])
    with pytest.raises(ValueError, match=f"{names}, got fft$"):
        torch.ops.mkdext.dynamic_conv2d(X, W, "fft")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("dtype", "size"), [("float64", 3), ("float32", 5), ("bfloat16", 1)])
def test_forcing_an_algorithm_that_cannot_do_it_tells_which_can(dtype, size):
    input, weight = (t.to(getattr(torch, dtype)) for t in _tensors((2, 3, 4, 5, 6, size)))
    message = (
        'dynamic_conv2d: algorithm "winograd" needs float32 and a 3x3 kernel, '
        f'got {dtype} and {size}x{size}: "auto" and "direct" can'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dynamic_conv2d(input, weight, "winograd")
    with pytest.raises(RuntimeError, match="algorithm winograd cannot run"):
        torch.ops.mkdext.dynamic_conv2d(
            *(t if dtype == "float64" else t.float() for t in (input, weight)), "winograd"
        )


@pytest.mark.parametrize(
    ("algorithm", "error", "message"),
    [
        (
            "fft",
            ValueError,
            'algorithm must be "auto", "direct", "winograd", "tf32" or "tf32x3", got "fft"',
        ),
        (None, TypeError, "algorithm must be a str, got NoneType"),
        (3, TypeError, "algorithm must be a str, got int"),
    ],
)
@pytest.mark.usefixtures("library")
def test_an_unknown_algorithm_is_refused_with_the_names(algorithm, error, message):
    with pytest.raises(error, match=f"^{re.escape('dynamic_conv2d: ' + message)}$"):
        dynamic_conv2d(X, W, algorithm)


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_without_a_kernel_only_auto_can(algorithm, monkeypatch):
    message = (
        f'algorithm "{algorithm}" needs tensors on the CPU or CUDA, where compiled operators run, '
        'got meta: only "auto" can'
    )
    with pytest.raises(ValueError, match=message):
        dynamic_conv2d(X.to("meta"), W.to("meta"), algorithm)
    reference_only = dict.fromkeys(("forward", "input_grad", "weight_grad"), "reference")
    assert dynamic_conv2d_algorithms(X.to("meta"), W.to("meta")) == reference_only
    module = importlib.import_module("mkdext.ops.dynamic_conv2d")
    monkeypatch.setattr(module, "has_kernel", lambda tensor: False)
    message = f'algorithm "{algorithm}" needs compiled operators, got none: only "auto" can'
    with pytest.raises(ValueError, match=message):
        dynamic_conv2d(X, W, algorithm)
    assert dynamic_conv2d_algorithms(X, W) == reference_only


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
    opcheck(ops.dynamic_conv2d.default, (input, weight, "direct"), test_utils=_CHECKS)
    opcheck(ops.dynamic_conv2d_input_grad.default, (grad, weight, "direct"), test_utils=_CHECKS)
    opcheck(ops.dynamic_conv2d_weight_grad.default, (grad, input, 3, "direct"), test_utils=_CHECKS)
    for tensors, wanted in (
        ((input, weight, ggx, ggw), (True, True, True)),
        ((input, weight, ggx, ggw), (False, True, True)),
        ((None, weight, ggx, None), (True, True, True)),
        ((input, None, None, ggw), (True, False, True)),
    ):
        arguments = (grad, *tensors, *wanted, "direct")
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


def _run_with(instruction_set, *arguments):
    environment = {**os.environ, "MKDEXT_INSTRUCTION_SET": instruction_set}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _other_instruction_sets():
    if extension.status().state != "loaded":
        return []
    module = extension.module()
    return [name for name in module.cpu_features() if name != module.instruction_set()]


@pytest.mark.usefixtures("library")
def test_the_instruction_set_is_the_one_asked_for_or_the_best():
    module = extension.module()
    wanted = os.environ.get("MKDEXT_INSTRUCTION_SET") or module.cpu_features()[-1]
    assert module.instruction_set() == wanted


# What depends on the instruction set; each of these names at least one test above.
_NUMERIC = (
    "the_instruction_set_is",
    "its_own_kernel",
    "first_and_second_derivatives_agree",
    "random_shapes",
    "error_of_float32",
    "any_strides",
    "empty_batch",
    "changes_no_bit",
    "not_finite",
)


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("instruction_set", _other_instruction_sets())
def test_every_other_instruction_set_of_this_processor_is_right(instruction_set):
    options = ["-q", "-p", "no:cacheprovider", "-k", " or ".join(_NUMERIC)]
    result = _run_with(instruction_set, "-m", "pytest", "--numprocesses=0", *options, __file__)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("library")
def test_an_unknown_instruction_set_is_refused_by_name():
    result = _run_with(
        "mmx", "-c", "from mkdext._system import extension as e; e.module().instruction_set()"
    )
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
        (
            X[:0, :, :1, :1].expand(0, 3, 10**6, 10**6),
            W[:0],
            ValueError,
            "input of [1, 3, 1000000, 1000000] needs 11,176 GiB, but this machine has",
        ),
        (
            X[:1, :1, :1, :1].expand(1, 1, 1, 10**8),
            W[:1, :1, :1, :1, :1].expand(1, 1, 1, 10001, 10001),
            ValueError,
            "a zero-padded map of [1, 10001, 100010000] needs 3,726 GiB, but this machine has",
        ),
    ],
)
def test_bad_input_gets_one_sentence_with_argument_rule_and_value(input, weight, error, message):
    with pytest.raises(error, match="^" + re.escape(f"dynamic_conv2d: {message}")):
        dynamic_conv2d(input, weight)
