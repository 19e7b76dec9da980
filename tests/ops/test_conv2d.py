from __future__ import annotations

import dataclasses
import importlib
import importlib.util
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
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mkdext._system import extension
from mkdext.ops.conv2d import conv2d, conv2d_algorithm, stock_convolutions, winograd_conv2d

# B, Ci, Co, H, W, upscale factor
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 9, 1),
    (3, 8, 16, 12, 24, 1),
    (2, 17, 9, 13, 6, 1),
    (1, 16, 70, 5, 8, 1),
    (2, 9, 3, 1, 21, 1),
    (2, 3, 8, 18, 1, 1),
    (1, 1, 4, 2, 3, 2),
    (2, 5, 12, 6, 9, 2),
    (2, 8, 32, 9, 8, 2),
    (1, 4, 27, 5, 11, 3),
    (2, 16, 72, 4, 4, 3),
]
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
ONE = (2, 16, 24, 10, 9, 1)
_MODULE = importlib.import_module("mkdext.ops.conv2d")
_WINS = _MODULE._wins


@pytest.fixture(autouse=True)
def every_shape(monkeypatch):
    """Winograd's algorithm takes what it can, whether it is faster or not."""
    monkeypatch.setattr(_MODULE, "_wins", lambda shape, channels: min(*shape[1:], channels) > 0)


@pytest.fixture
def by_rule(monkeypatch, every_shape):
    """The rule which shapes it is faster for holds after all."""
    monkeypatch.setattr(_MODULE, "_wins", _WINS)


def _ref(input, weight, bias=None, *, upscale_factor=1):
    output = F.conv2d(input, weight, bias, padding=weight.shape[-1] // 2)
    return F.pixel_shuffle(output, upscale_factor)


def _functions(shape):
    """The operator and the reference."""
    return (partial(function, upscale_factor=shape[-1]) for function in (conv2d, _ref))


def _tensors(shape, has_bias=True, size=3):
    """Input, weight, bias and incoming gradient; cotangents of the gradients of the first three."""
    batch, in_channels, out_channels, height, width, factor = shape
    input = torch.randn(batch, in_channels, height, width)
    weight = torch.randn(out_channels, in_channels, size, size)
    bias = torch.randn(out_channels) if has_bias else None
    grad = torch.randn(batch, out_channels // factor**2, factor * height, factor * width)
    cotangents = (None if t is None else torch.randn_like(t) for t in (input, weight, bias))
    return [input, weight, bias, grad, *cotangents]


def _leaves(shape, has_bias=True):
    given = _tensors(shape, has_bias)[:3]
    return [t.requires_grad_() for t in given if t is not None]


def _in_formats(tensors, formats):
    """The tensors of four dimensions laid out in turn in the formats."""
    formats = itertools.cycle(FORMATS[name] for name in formats)
    return [
        t.contiguous(memory_format=next(formats)) if t is not None and t.dim() == 4 else t
        for t in tensors
    ]


def _to_double(tensors):
    return [None if t is None else t.double() for t in tensors]


def _derivatives(function, tensors):
    """Return the output, its gradients, and the gradients of those with the given cotangents."""
    *leaves, grad = (None if t is None else t.detach().requires_grad_() for t in tensors[:4])
    output = function(*leaves)
    first = torch.autograd.grad(
        output, [t for t in leaves if t is not None], grad, create_graph=True
    )
    cotangents = [t for t in tensors[4:] if t is not None]
    second = torch.autograd.grad(first, (*leaves[:2], grad), cotangents)
    return output.detach(), *(t.detach() for t in first), *second


def _assert_near(actual, expected, tolerance=2e-6):
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm()
    assert error <= tolerance * expected.double().norm().clamp_min(1e-30)


def _assert_right_to_second_order(shape, tensors):
    function, reference = _functions(shape)
    double = _to_double(tensors)
    # A short sum may cancel, so that its error is large beside it, but not beside its terms.
    terms = _derivatives(reference, [None if t is None else t.abs() for t in double])
    results = (_derivatives(function, tensors), _derivatives(reference, double), terms)
    for actual, expected, term in zip(*results, strict=True):
        assert actual.shape == expected.shape
        assert (actual - expected).norm() <= 2e-6 * term.norm()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "formats",
    [["contiguous"], ["channels last"], ["contiguous", "channels last"]],
    ids=", then ".join,
)
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_derivatives_agree_with_the_reference(shape, formats, has_bias):
    _assert_right_to_second_order(shape, _in_formats(_tensors(shape, has_bias), formats))


@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, repeat=5)), ids=", ".join)
@pytest.mark.parametrize("shape", [(2, 9, 16, 6, 13, 1), (2, 9, 32, 6, 5, 2)])
def test_every_mixture_of_layouts_is_right_to_second_order(shape, formats):
    _assert_right_to_second_order(shape, _in_formats(_tensors(shape), formats))


@strategies.composite
def _any_case(draw):
    factor = draw(strategies.sampled_from([1, 1, 2, 3]))
    ranges = [(1, 3), (1, 20), (1, 20 // factor**2 + 1), (1, 13), (1, 13)]
    batch, inputs, outputs, *sides = (draw(strategies.integers(*range)) for range in ranges)
    formats = draw(strategies.lists(strategies.sampled_from(list(FORMATS)), min_size=5, max_size=5))
    return (
        (batch, inputs, outputs * factor**2, *sides, factor),
        formats,
        draw(strategies.booleans()),
    )


@hypothesis.settings(max_examples=80, deadline=None, derandomize=True)
@hypothesis.given(_any_case())
def test_random_shapes_and_layouts_are_right_to_second_order(case):
    shape, formats, has_bias = case
    _assert_right_to_second_order(shape, _in_formats(_tensors(shape, has_bias), formats))


def _strided_variants(input, weight):
    channels_last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
    batch, channels, height, width = input.shape
    yield (
        "transposed",
        input.mT.contiguous().mT,
        weight.transpose(0, 1).contiguous().transpose(0, 1),
    )
    yield "every second column", torch.randn(batch, channels, height, 2 * width)[..., ::2], weight
    yield "some columns", torch.randn(batch, channels, height, width + 3)[..., 1:-2], weight.flip(1)
    many = torch.randn(batch, channels + 3, height, width)
    yield "some channels", many[:, 2:-1], weight[:, :, :1].expand_as(weight)
    yield "some channels of channels last", channels_last(many)[:, 2:-1], channels_last(weight)
    yield "every second channel", channels_last(torch.cat([input, input], 1))[:, ::2], weight.mT
    yield "one sample", input[:1].expand_as(input), weight[:1].expand_as(weight)
    yield "one channel", input[:, :1].expand_as(input), weight[:, :1].expand_as(weight)
    yield "one row", input[:, :, :1].expand_as(input), weight[:, :, :1, :1].expand_as(weight)
    yield "one pixel", channels_last(input)[..., :1].expand_as(input), weight
    overlapping = torch.randn(input.numel()).as_strided(input.shape, (7, 1, 5, 1))
    yield "overlapping", overlapping, weight.flatten().as_strided(weight.shape, (2, 1, 1, 1))
    yield "offset", torch.randn(input.numel() + 3)[3:].view_as(input), weight
    negative = torch.complex(input, input).conj().imag
    assert negative.is_neg()
    yield "negative", negative, torch.complex(weight, weight).conj().imag


_STRIDED = (2, 12, 16, 9, 10, 1)
_VARIANTS = [name for name, _, _ in _strided_variants(*_tensors(_STRIDED)[:2])]


@pytest.mark.parametrize("kind", _VARIANTS)
def test_any_strides_are_right_to_second_order(kind):
    tensors = _tensors(_STRIDED)
    variants = {name: pair for name, *pair in _strided_variants(*tensors[:2])}
    tensors[:2] = variants[kind]
    tensors[2] = torch.randn(32)[::2]
    tensors[4:6] = variants[kind]
    tensors[6] = torch.randn(1).expand(16)
    gradients = torch.randn(16, 12, 3, 3)
    tensors[3] = {name: map for name, map, _ in _strided_variants(tensors[3], gradients)}[kind]
    _assert_right_to_second_order(_STRIDED, tensors)


@pytest.mark.parametrize("kind", _VARIANTS)
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.usefixtures("library")
def test_the_bare_operators_read_any_strides_in_any_format(kind, factor):
    shape = (2, 12, 4 * factor**2, 6, 8, factor)
    input, weight, bias, grad, *_ = _tensors(shape)
    grad = {name: map for name, map, _ in _strided_variants(grad, weight)}[kind]
    input, weight = {name: pair for name, *pair in _strided_variants(input, weight)}[kind]
    reference = partial(_ref, upscale_factor=factor)
    leaves = [t.double().requires_grad_() for t in (input, weight, bias)]
    expected = reference(*leaves)
    gradients = torch.autograd.grad(expected, leaves, grad.double())
    for channels_last in (False, True):
        options = (factor, channels_last)
        _assert_near(torch.ops.mkdext.conv2d(input, weight, bias, *options), expected)
        actual = torch.ops.mkdext.conv2d_backward(grad, input, weight, True, *options)
        for a, e in zip(actual, gradients, strict=True):
            _assert_near(a, e)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("formats", [["contiguous"], ["channels last"]], ids=", ".join)
@pytest.mark.parametrize("size", [48, 24])
def test_the_error_of_float32_is_within_the_bound(size, formats):
    tensors = _in_formats(_tensors((2, 64, 64, size, size, 1)), formats)
    assert conv2d_algorithm(*tensors[:2]) == "winograd"
    results = (_derivatives(conv2d, tensors), _derivatives(_ref, _to_double(tensors)))
    for actual, expected in zip(*results, strict=True):
        _assert_near(actual, expected, 1.5e-6)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("formats", [["contiguous"], ["channels last"]], ids=", ".join)
@pytest.mark.parametrize("shape", [(2, 9, 8, 4, 5, 1), (1, 3, 12, 5, 2, 2)])
def test_third_derivatives_agree_with_the_reference(shape, formats, has_bias):
    tensors = [t for t in _tensors(shape, has_bias)[:3] if t is not None]
    tensors = _in_formats(tensors, formats)
    directions = [torch.randn_like(t) for t in tensors]
    results = []
    for function, values in zip(_functions(shape), (tensors, _to_double(tensors)), strict=True):
        leaves = [t.detach().requires_grad_() for t in values]
        value = function(*leaves).pow(3).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        results.append((value, *torch.autograd.grad(value, leaves)))
    for a, e in zip(*results, strict=True):
        _assert_near(a, e, 1e-5)


@pytest.mark.parametrize("formats", [["contiguous"], ["channels last"]], ids=", ".join)
def test_the_third_derivative_of_every_argument_agrees_with_the_reference(formats):
    shape = (2, 3, 8, 6, 5, 2)
    tensors = _in_formats(_tensors(shape), formats)
    cotangents = _in_formats([torch.randn_like(t) for t in (*tensors[:2], tensors[3])], formats)
    results = []
    for function, to_dtype in zip(_functions(shape), (list, _to_double), strict=True):
        leaves = [t.detach().requires_grad_() for t in to_dtype(tensors)]
        first = torch.autograd.grad(function(*leaves[:3]), leaves[:3], leaves[3], create_graph=True)
        through = (*leaves[:2], leaves[3])
        second = torch.autograd.grad(first, through, leaves[4:], create_graph=True)
        inputs = [leaf for leaf in leaves if leaf is not leaves[2]]
        results.append(torch.autograd.grad(second, inputs, to_dtype(cotangents)))
    for a, e in zip(*results, strict=True):
        _assert_near(a, e)


@pytest.mark.parametrize("shape", [(2, 2, 3, 4, 5, 1), (1, 2, 4, 2, 3, 2)])
def test_finite_differences_confirm_the_derivatives_of_the_fallback(shape):
    leaves = [t.double().detach().requires_grad_() for t in _tensors(shape)[:3]]
    function = partial(conv2d, upscale_factor=shape[-1])
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.usefixtures("library")
def test_finite_differences_confirm_the_derivatives_of_the_kernels():
    # The operator is linear in each argument, so that a large step has no error of its own.
    leaves = _leaves((1, 2, 4, 3, 5, 2))
    function = partial(conv2d, upscale_factor=2)
    options = {"eps": 1.0, "atol": 1e-4, "rtol": 1e-4, "nondet_tol": 0.0}
    with pytest.warns(UserWarning, match="double precision"):
        assert gradcheck(function, leaves, **options)
    with pytest.warns(UserWarning, match="double precision"):
        assert gradgradcheck(function, leaves, **options)


class _Recorder(TorchDispatchMode):
    def __init__(self, namespace="mkdext"):
        super().__init__()
        self.namespace = namespace
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == self.namespace:
            self.calls.append((func._schema.name.split("::")[1], args))
        return func(*args, **(kwargs or {}))

    @property
    def names(self):
        return [name for name, _ in self.calls]


def _takes_operator(call):
    with _Recorder() as recorder:
        call()
    return bool(recorder.calls)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "needs", [needs for n in (1, 2, 3) for needs in itertools.combinations(range(3), n)]
)
def test_a_backward_computes_only_what_is_asked_for(needs):
    tensors = _tensors((2, 3, 4, 5, 6, 1))[:3]
    for index in needs:
        tensors[index].requires_grad_()
    with _Recorder() as recorder:
        conv2d(*tensors).sum().backward()
    if needs == (2,):
        assert recorder.names == ["conv2d"]
    else:
        assert recorder.names == ["conv2d", "conv2d_backward"]
        _, input, weight, want_bias, *_ = recorder.calls[1][1]
        assert (input is not None, weight is not None) == (1 in needs, 0 in needs)
        assert want_bias == (1 in needs and 2 in needs)  # else a plain sum is made
    assert [t.grad is not None for t in tensors] == [index in needs for index in range(3)]
    double = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    _ref(*double).sum().backward()
    for index in needs:
        _assert_near(tensors[index].grad, double[index].grad)


@pytest.mark.usefixtures("library")
def test_a_backward_skips_gradients_that_lead_to_nothing_asked_for():
    leaves = _leaves((2, 3, 4, 5, 6, 1))
    output = conv2d(*(2 * leaf for leaf in leaves))
    with _Recorder() as recorder:
        torch.autograd.grad(output.sum(), leaves[1])
    [(name, (_, input, weight, want_bias, *_))] = recorder.calls
    assert name == "conv2d_backward"
    assert input is not None and weight is None and not want_bias


@pytest.mark.usefixtures("library")
def test_a_double_backward_is_one_call_with_a_mask():
    leaves = _leaves((2, 3, 4, 5, 6, 1))
    output = conv2d(*(2 * leaf for leaf in leaves))
    first = torch.autograd.grad(output, leaves, torch.randn_like(output), create_graph=True)
    with _Recorder() as recorder:
        torch.autograd.grad(first, leaves[1], [torch.randn_like(t) for t in first])
    [(name, arguments)] = recorder.calls
    assert name == "conv2d_double_backward"
    assert arguments[-5:-2] == (False, False, True)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 9, 8, 5, 6, 1), (2, 3, 8, 5, 4, 2)])
def test_a_second_derivative_through_one_gradient_only_is_right(shape, target):
    tensors = _in_formats(_tensors(shape), ["channels last"])
    results = []
    for function, values in zip(_functions(shape), (tensors, _to_double(tensors)), strict=True):
        leaves = [t.detach().requires_grad_() for t in values[:4]]
        output = function(*leaves[:3])
        [first] = torch.autograd.grad(output, leaves[target], leaves[3], create_graph=True)
        others = [leaf for leaf in leaves if leaf is not leaves[target]]
        second = torch.autograd.grad(first, others, values[4 + target], allow_unused=True)
        results.append([t for t in second if t is not None])
    for a, e in zip(*results, strict=True):
        _assert_near(a, e)


def test_an_output_that_is_not_used_sends_no_gradient():
    input, weight, bias = _leaves((1, 2, 2, 3, 3, 1))
    unused = conv2d(input, weight, bias)
    other = conv2d(input.detach(), weight, bias)
    first = torch.autograd.grad(other.pow(2).sum(), weight, create_graph=True)
    assert torch.autograd.grad(first[0].sum() + 0 * input.sum(), input)[0].eq(0).all()
    assert unused.requires_grad


@pytest.mark.parametrize("has_bias", [True, False])
# PyTorch's own pixel shuffle of an empty batch has no backward.
@pytest.mark.parametrize(
    ("format", "factor"), [("contiguous", 1), ("channels last", 1), ("channels last", 2)]
)
def test_an_empty_batch_gives_empty_maps_and_zeros_to_second_order(format, factor, has_bias):
    shape = (0, 16, 8, 5, 6, factor)
    tensors = _in_formats(_tensors(shape, has_bias), [format])
    function, _ = _functions(shape)
    output, *derivatives = _derivatives(function, tensors)
    assert output.shape == tensors[3].shape
    expected = [t for t in (*tensors[:3], *tensors[:2], tensors[3]) if t is not None]
    assert [t.shape for t in derivatives] == [t.shape for t in expected]
    assert all(t.eq(0).all() for t in derivatives)


# The sums of the gradient of the weight: for few tiles one group, whose vectors of channels are
# shared by the threads; for many, eight.
@pytest.mark.parametrize(
    "shape",
    [(1, 24, 33, 21, 26, 1), (3, 24, 36, 21, 26, 2), (5, 40, 70, 5, 6, 1), (2, 17, 24, 60, 57, 1)],
)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.usefixtures("library", "keep_threads")
def test_the_number_of_threads_changes_no_bit(shape, format):
    tensors = _in_formats(_tensors(shape), [format])
    function, _ = _functions(shape)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(_derivatives(function, tensors))
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("format", FORMATS)
def test_calls_from_several_python_threads_do_not_disturb_each_other(format):
    cases = []
    for seed in range(8):
        torch.manual_seed(seed)
        cases.append(_in_formats(_tensors((2, 5 + seed, 8, 11, 13, 1)), [format]))
    expected = [_derivatives(conv2d, case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            actual = list(pool.map(partial(_derivatives, conv2d), cases))
            for a, e in zip(actual, expected, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, e, strict=True))


def test_every_result_has_memory_of_its_own():
    input, weight, bias = _leaves((2, 16, 16, 8, 8, 1))
    results = [conv2d(input, weight, bias), conv2d(input, weight, bias)]
    results += torch.autograd.grad(results[0].sum(), (input, weight, bias))
    addresses = {t.untyped_storage().data_ptr() for t in (input, weight, bias, *results)}
    assert len(addresses) == 8


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("factor", [1, 2])
def test_the_result_is_in_channels_last_if_input_or_weight_are(factor, format):
    shape = (2, 8, 16, 6, 7, factor)
    function, reference = _functions(shape)
    input, weight, bias, *_ = _in_formats(_tensors(shape), [format])
    for pair in ((input, weight), (input.contiguous(), weight), (input, weight.contiguous())):
        output = function(*pair, bias)
        assert output.is_contiguous(memory_format=FORMATS[format])
        _assert_near(output, reference(*(t.double() for t in (*pair, bias))))


@pytest.mark.parametrize("has_bias", [True, False])
def test_torch_func_grad_gives_first_and_second_derivatives(has_bias):
    input, weight, bias, *_ = _tensors((2, 3, 4, 5, 6, 1), has_bias)

    def meta(function, input, weight, bias):
        def inner(w):
            return torch.func.grad(lambda x: function(x, w, bias).pow(3).sum())(input).pow(2).sum()

        return torch.func.grad(inner)(weight)

    expected = meta(_ref, *_to_double([input, weight, bias]))
    _assert_near(meta(conv2d, input, weight, bias), expected, 1e-5)


# Where the mapped dimension of input, weight and bias lies.
@pytest.mark.parametrize("in_dims", [(0, None, None), (1, 0, 0), (None, 2, None), (None, None, 0)])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("factor", [1, 2])
def test_vmap_maps_any_argument_and_differentiates(in_dims, format, factor):
    shape = (2, 3, 8, 5, 6, factor)
    tensors = _in_formats(_tensors(shape)[:3], [format])
    stacked = [
        t if dim is None else torch.stack([t, t.flip(0), 2 * t], dim)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]

    def gradients(function, values):
        def loss(*values):
            first = torch.func.grad(lambda *v: function(*v).pow(2).sum(), (0, 1, 2))(*values)
            return sum(t.pow(2).sum() for t in first)

        return torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), in_dims)(*values)

    function, reference = _functions(shape)
    expected = gradients(reference, _to_double(stacked))
    for a, e in zip(gradients(function, stacked), expected, strict=True):
        _assert_near(a, e, 1e-5)


@pytest.mark.usefixtures("library")
def test_gradients_of_each_sample_of_a_module_are_right():
    module = _Module()
    images = torch.randn(3, 16, 8, 9)

    def gradients(module, images):
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(parameters, image):
            return torch.func.functional_call(module, parameters, image[None]).pow(2).sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)

    assert _takes_operator(lambda: gradients(module, images))
    actual = gradients(module, images)
    with stock_convolutions():
        expected = gradients(module.double(), images.double())
    for name, gradient in actual.items():
        _assert_near(gradient, expected[name], 1e-5)


def test_a_batch_of_incoming_gradients_gives_a_jacobian():
    input, weight, bias = _leaves((1, 2, 4, 3, 2, 1))
    jacobian = partial(torch.autograd.functional.jacobian, vectorize=True)
    expected = jacobian(_ref, tuple(_to_double([input, weight, bias])))
    for a, e in zip(jacobian(conv2d, (input, weight, bias)), expected, strict=True):
        _assert_near(a, e)


# PyTorch's own, when it loads its derivatives along a direction.
_JIT = pytest.mark.filterwarnings("ignore:.torch.jit.script")


@_JIT
def test_derivatives_along_a_direction_are_those_of_the_stock_convolution():
    tensors = _tensors(ONE)
    values, directions = tuple(tensors[:3]), tuple(tensors[4:])

    def hessian_product(function):
        def gradient(*values):
            return torch.func.grad(lambda *v: function(*v).pow(3).sum(), (0, 1, 2))(*values)

        return torch.func.jvp(gradient, values, directions)

    def flat(results):
        return [tensor for result in results for tensor in result]

    with _Recorder() as recorder:
        actual = torch.func.jvp(conv2d, values, directions)
        second = hessian_product(conv2d)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(values[0], directions[0])
            tangent = forward_ad.unpack_dual(conv2d(dual, *values[1:])).tangent
    assert not recorder.calls
    expected = torch.func.jvp(_ref, values, directions)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert all(map(torch.equal, flat(second), flat(hessian_product(_ref))))
    _assert_near(tangent, _ref(directions[0], values[1]))


@_JIT
@pytest.mark.usefixtures("library")
def test_a_direction_through_a_result_of_the_kernels_is_refused_and_not_dropped():
    input, weight, bias = _leaves(ONE)
    output = conv2d(input, weight, bias)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        with pytest.raises((NotImplementedError, RuntimeError), match="jvp"):
            torch.autograd.grad(output, input, grad)


class _Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(16, 16, 3)

    def forward(self, image):
        return conv2d(image, self.layer.weight, self.layer.bias, upscale_factor=2)


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_sees_plain_convolutions(dynamic):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    module, image = _Module(), torch.randn(2, 16, 8, 9)
    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic)
    output = compiled(image)
    [graph] = graphs
    assert "mkdext" not in graph.code
    assert "conv2d" in graph.code
    with stock_convolutions():
        assert torch.equal(output, module(image))
    _assert_near(module(image), output)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_forward_and_backward_give_the_same_gradients():
    tensors = _leaves((2, 16, 8, 5, 6, 2))
    function = partial(conv2d, upscale_factor=2)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    actual = torch.autograd.grad(compiled(*tensors).pow(2).sum(), tensors)
    expected = torch.autograd.grad(function(*tensors).pow(2).sum(), tensors)
    for a, e in zip(actual, expected, strict=True):
        _assert_near(a, e, 4e-6)


_EXPORTS = {
    "strict": partial(torch.export.export, strict=True),
    "not strict": partial(torch.export.export, strict=False),
    "jit": torch.jit.trace,
    "fx": lambda module, arguments: torch.fx.symbolic_trace(module),
}


@pytest.mark.parametrize("name", _EXPORTS)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_what_is_exported_or_traced_has_plain_convolutions(name):
    module, image = _Module().eval(), torch.randn(2, 16, 8, 9)
    exported = _EXPORTS[name](module, (image,))
    run = exported.module() if name in ("strict", "not strict") else exported
    assert "mkdext" not in run.code
    assert "conv" in run.code
    with stock_convolutions():
        expected = module(image)
    assert not _takes_operator(lambda: run(image))
    assert torch.equal(run(image), expected)


def test_fake_tensors_pass_through_plain_convolutions():
    with torch._subclasses.FakeTensorMode():
        input, weight, bias = _leaves((2, 16, 8, 5, 6, 2))
        assert conv2d_algorithm(input, weight) == "stock"
        output = conv2d(input, weight, bias, upscale_factor=2)
        gradient, *_ = torch.autograd.grad(output.sum(), (input, weight, bias))
    assert output.shape == (2, 2, 10, 12)
    assert gradient.shape == input.shape


def test_other_devices_use_the_stock_convolution():
    input, weight, bias, *_ = (t.to("meta") for t in _tensors(ONE))
    assert conv2d_algorithm(input, weight) == "stock"
    assert conv2d(input, weight, bias, upscale_factor=2).shape == (2, 6, 20, 18)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("enabled", [True, False])
def test_under_autocast_all_is_as_with_the_stock_convolution(dtype, enabled):
    leaves = _leaves(ONE)
    with torch.autocast("cpu", dtype=dtype, enabled=enabled):
        assert (conv2d_algorithm(*leaves[:2]) == "stock") == (enabled or not _is_loaded())
        output, expected = conv2d(*leaves), _ref(*leaves)
        if enabled:
            mixed = conv2d(leaves[0].to(dtype), *leaves[1:])
            assert torch.equal(mixed, _ref(leaves[0].to(dtype), *leaves[1:]))
    assert output.dtype == expected.dtype == (dtype if enabled else torch.float32)
    gradients = [torch.autograd.grad(t.float().sum(), leaves) for t in (output, expected)]
    for a, e in zip((output, *gradients[0]), (expected, *gradients[1]), strict=True):
        assert torch.equal(a, e) if enabled else a.shape == e.shape
        _assert_near(a, e)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float64, 3),
        (torch.bfloat16, 3),
        (torch.float16, 3),
        (torch.float32, 1),
        (torch.float32, 5),
        (torch.float32, 7),
    ],
)
@pytest.mark.parametrize("factor", [1, 2])
def test_other_types_and_kernels_get_the_stock_convolution(dtype, size, factor):
    shape = (*ONE[:-1], factor)
    leaves = [t.to(dtype).requires_grad_() for t in _tensors(shape, size=size)[:3]]
    assert conv2d_algorithm(*leaves[:2]) == "stock"
    results = []
    for function in _functions(shape):
        output = function(*leaves)
        results.append((output, *torch.autograd.grad(output.float().sum(), leaves)))
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


class _Subclass(torch.Tensor):
    pass


def test_a_subclass_of_tensor_gets_the_stock_convolution():
    input, weight, *_ = _tensors(ONE)
    output = conv2d(input.as_subclass(_Subclass), weight)
    assert type(output) is _Subclass
    assert torch.equal(output.as_subclass(torch.Tensor), _ref(input, weight))


def _reach(position, sizes, tile):
    """Mark what a value at a position of a map may reach in a map on the other side of a kernel."""
    reached = []
    for at, size in zip(position, sizes, strict=True):
        index, reach = torch.arange(size), 1
        if tile:  # the outputs 4t to 4t + 3 are made of 4t - 1 to 4t + 4
            index, reach = index // 4 * 4 + 1.5, 2.5
        reached.append((index - at).abs() <= reach)
    return reached[0][:, None] & reached[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("width", [8, 11])
@pytest.mark.parametrize("row", [0, 3, 4, 8])
@pytest.mark.parametrize("format", FORMATS)
def test_a_value_that_is_not_finite_stays_in_its_sample_and_neighbourhood(
    value, width, row, format
):
    tensors = _in_formats(_tensors((2, 3, 12, 9, width, 1)), [format])
    input, weight, bias, grad = (t.detach().requires_grad_() for t in tensors[:4])
    position, sides = (row, width - 1), (9, width)
    must, may = (_reach(position, sides, tile) for tile in (False, True))

    def check_map(result):
        assert result[1].isfinite().all()
        assert not result[0][:, must].isfinite().any()
        assert result[0][:, ~may].isfinite().all()

    broken = input.detach().clone()
    broken[(0, 1, *position)] = value
    output = conv2d(broken, weight, bias)
    check_map(output)
    # In the last column no product of kernel column 0 has the value, and alike for the rows.
    taps = torch.ones(3, 3, dtype=torch.bool)
    taps[:, 0] = False
    taps[2 if row == 0 else slice(0), :] = False
    taps[0 if row == 8 else slice(0), :] = False
    gradient, of_bias = torch.autograd.grad(output, (weight, bias), grad)
    assert not gradient[:, 1][:, taps].isfinite().any()
    assert gradient[:, [0, 2]].isfinite().all() and of_bias.isfinite().all()

    output = conv2d(input, weight, bias)
    broken = grad.detach().clone()
    broken[(0, 2, *position)] = value
    input_gradient, gradient, of_bias = torch.autograd.grad(output, (input, weight, bias), broken)
    check_map(input_gradient)
    others = torch.arange(12) != 2
    # Every element of the kernel has a product with the value, if only with a zero of the padding.
    assert not gradient[2].isfinite().any() and not of_bias[2].isfinite()
    assert gradient[others].isfinite().all() and of_bias[others].isfinite().all()


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_or_bias_that_is_not_finite_stays_in_its_channel(which, format):
    tensors = _in_formats(_tensors((2, 3, 12, 9, 10, 1)), [format])
    tensors[which][2] = float("nan")
    output = conv2d(*tensors[:3])
    others = torch.arange(12) != 2
    assert output[:, 2].isnan().all()
    assert output[:, others].isfinite().all()


def _is_loaded():
    return extension.status().state == "loaded"


@pytest.mark.usefixtures("library", "by_rule")
@pytest.mark.parametrize("format", FORMATS)
def test_the_choice_is_told_and_taken(format):
    input, weight, bias, *_ = _in_formats(_tensors((2, 32, 32, 24, 24, 1)), [format])
    assert conv2d_algorithm(input, weight) == "winograd"
    assert conv2d_algorithm(input, nn.Parameter(weight)) == "winograd"
    assert _takes_operator(lambda: conv2d(input, weight, bias, upscale_factor=2))
    assert torch.equal(winograd_conv2d(input, weight, bias), conv2d(input, weight, bias))
    for others in ((input, weight.double()), (input[0], weight), (input, weight[:, 1:])):
        assert conv2d_algorithm(*others) == "stock"
        assert winograd_conv2d(*others) is None


def test_without_the_extension_the_stock_convolution_answers(monkeypatch):
    missing = dataclasses.replace(extension.status(), state="missing")
    monkeypatch.setattr(extension, "status", lambda: missing)
    spec = _MODULE.__spec__
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tensors = _tensors(ONE)[:3]
    with module.stock_convolutions():
        pass
    assert module.conv2d_algorithm(*tensors[:2]) == "stock"
    assert torch.equal(module.conv2d(*tensors), _ref(*tensors))


@pytest.mark.usefixtures("library")
def test_stock_convolutions_hold_in_all_threads_until_the_last_has_left():
    input, weight, bias, *_ = _tensors(ONE)

    def algorithm():
        return conv2d_algorithm(input, weight)

    with ThreadPoolExecutor(1) as pool:
        one, two = stock_convolutions(), stock_convolutions()
        with one:
            assert pool.submit(algorithm).result() == "stock"
            assert torch.equal(conv2d(input, weight, bias), _ref(input, weight, bias))
            pool.submit(two.__enter__).result()
        assert algorithm() == "stock"  # the other is still within
        pool.submit(two.__exit__, None, None, None).result()
    assert algorithm() == "winograd"
    with pytest.raises(KeyError), stock_convolutions():
        raise KeyError
    assert algorithm() == "winograd"


@pytest.mark.usefixtures("library")
def test_derivatives_keep_the_algorithm_of_their_result():
    leaves = _leaves(ONE)
    grad = torch.randn(2, 24, 10, 9)

    def derivatives(output):
        first = torch.autograd.grad(output, leaves, grad, create_graph=True)
        return *first, *torch.autograd.grad(first[1].pow(2).sum(), leaves[0])

    with stock_convolutions():
        stock = conv2d(*leaves)
    ours = conv2d(*leaves)
    with _Recorder() as recorder:
        actual = derivatives(stock)
        assert not recorder.calls
        with stock_convolutions():
            kept = derivatives(ours)
        assert recorder.names == ["conv2d_backward", "conv2d_double_backward"]
    assert all(torch.equal(a, e) for a, e in zip(actual, derivatives(_ref(*leaves)), strict=True))
    assert all(torch.equal(a, e) for a, e in zip(kept, derivatives(ours), strict=True))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.usefixtures("library")
def test_where_nothing_is_recorded_the_result_is_the_same(context):
    leaves = _leaves(ONE)
    expected = conv2d(*leaves)
    with context():
        assert _takes_operator(lambda: conv2d(*leaves))
        output = conv2d(*leaves)
    assert not output.requires_grad
    assert torch.equal(output, expected)


@pytest.mark.parametrize("which", [0, 1])
def test_a_change_in_place_before_the_backward_is_detected(which):
    leaves = _leaves(ONE)
    used = [leaf.clone() for leaf in leaves]
    output = conv2d(*used)
    used[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_bias_and_the_result_may_change_before_the_backward():
    leaves = _leaves(ONE)
    used = [leaf.clone() for leaf in leaves]
    output = conv2d(*used)
    used[2].add_(1)
    output.mul_(2)
    gradients = torch.autograd.grad(output.sum(), leaves)
    double = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for a, e in zip(gradients, torch.autograd.grad(2 * _ref(*double).sum(), double), strict=True):
        _assert_near(a, e)


@pytest.mark.parametrize("format", FORMATS)
def test_steps_of_an_optimizer_keep_the_layout_of_the_weights(format):
    def weights(function, dtype):
        torch.manual_seed(0)
        input, weight, bias, *_ = _in_formats(_tensors((2, 16, 16, 8, 9, 1)), [format])
        layer = nn.ParameterList(t.to(dtype) for t in (weight / 12, bias))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            function(input.to(dtype), *layer).pow(2).mean().backward()
            assert layer[0].grad.is_contiguous(memory_format=FORMATS[format])
            optimizer.step()
        assert layer[0].is_contiguous(memory_format=FORMATS[format])
        return layer

    double = weights(_ref, torch.float64)
    for actual, expected in zip(weights(conv2d, torch.float32), double, strict=True):
        _assert_near(actual, expected, 1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_computes_the_same_gradients(reentrant):
    leaves = _leaves(ONE)
    output = checkpoint(conv2d, *leaves, use_reentrant=reentrant)
    output.pow(2).sum().backward()
    expected = torch.autograd.grad(conv2d(*leaves).pow(2).sum(), leaves)
    assert all(torch.equal(leaf.grad, e) for leaf, e in zip(leaves, expected, strict=True))


# The autograd formulas belong to Python classes above the operators, so there is no kernel for the
# Autograd key that "test_autograd_registration" could find.
_CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("batch", "factor", "channels_last"), [(2, 1, False), (2, 1, True), (2, 2, True), (0, 2, False)]
)
def test_the_registered_operators_pass_opcheck(batch, factor, channels_last):
    shape = (batch, 3, 4, 5, 6, factor)
    format = "channels last" if channels_last else "contiguous"
    input, weight, bias, grad, ggx, ggw, ggb = _in_formats(_tensors(shape), [format])
    check = partial(opcheck, test_utils=_CHECKS)
    options = (factor, channels_last)
    for given in (bias, None):
        check(torch.ops.mkdext.conv2d.default, (input, weight, given, *options))
    for given in (
        (input, weight, True),
        (input, weight, False),
        (None, weight, False),
        (input, None, True),
        (input, None, False),
    ):
        check(torch.ops.mkdext.conv2d_backward.default, (grad, *given, *options))
    for tensors, wanted in (
        ((input, weight, ggx, ggw, ggb), (True, True, True)),
        ((input, weight, ggx, ggw, None), (False, True, True)),
        ((None, weight, ggx, None, ggb), (True, False, True)),
        ((input, None, None, ggw, None), (True, True, False)),
        ((None, None, None, ggw, None), (False, True, False)),
    ):
        arguments = (grad, *tensors, *wanted, *options)
        check(torch.ops.mkdext.conv2d_double_backward.default, arguments)


_HUGE = 2**32  # its square overflows


def _refused():
    input, weight, bias, grad = (
        torch.ones(2, 3, 4, 5),
        *(torch.ones(shape) for shape in ((8, 3, 3, 3), (8,), (2, 8, 4, 5))),
    )
    forward = torch.ops.mkdext.conv2d
    for case in (
        (input[0], weight, None, 1),
        (input, weight[0], None, 1),
        (input[:, :2], weight, None, 1),
        (input[:, :0], weight[:, :0], None, 1),
        (input[:, :, :0], weight, None, 1),
        (input, weight[:0], None, 1),
        (input, weight[..., :2], None, 1),
        (input, torch.ones(8, 3, 5, 5), None, 1),
        (input.double(), weight.double(), None, 1),
        (input, weight.half(), None, 1),
        (input.int(), weight.int(), None, 1),
        (input, weight, bias[:7], 1),
        (input, weight, bias[None], 1),
        (input, weight, bias.double(), 1),
        (input, weight, None, 0),
        (input, weight, None, -2),
        (input, weight, None, 3),
        (input, weight, None, _HUGE),
    ):
        yield forward, case
    backward = torch.ops.mkdext.conv2d_backward
    for case in (
        (grad, None, None, False, 1),
        (grad, None, weight, True, 1),
        (grad[0], input, weight, False, 1),
        (grad[:1], input, None, False, 1),
        (grad[..., :4], input, weight, False, 1),
        (grad[:, :7], None, weight, False, 1),
        (grad, input[:, :2], weight, False, 1),
        (grad, input[0], None, False, 1),
        (grad, None, weight[0], False, 1),
        (grad[:, :, :0], None, weight, False, 1),
        (grad.double(), input, weight, False, 1),
        (grad, input.double(), None, False, 1),
        (grad, input, weight, False, 2),
        (grad, input, weight, False, 0),
        (torch.ones(2, 2, 8, 5), input, weight, False, 2),
    ):
        yield backward, case
    double_backward = torch.ops.mkdext.conv2d_double_backward
    for tensors, wanted in (
        ((input, weight, None, None, None), (True, True, True)),
        ((input, None, input, None, None), (True, False, False)),
        ((None, weight, None, weight, None), (True, False, False)),
        ((None, weight, input, None, None), (True, True, False)),
        ((input, None, None, weight, None), (False, False, True)),
        ((input, weight, input[:1], None, None), (True, False, False)),
        ((input, weight[:7], input, None, None), (True, False, False)),
        ((input, weight, input, weight[:, :2], None), (True, False, False)),
        ((input[..., :4], weight, input, weight, None), (True, False, False)),
        ((input, weight, input, weight, bias[:7]), (True, False, False)),
        ((input, weight, input.double(), None, None), (False, False, True)),
        ((input, weight, input[0], None, None), (False, False, True)),
    ):
        yield double_backward, (grad, *tensors, *wanted, 1)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_bare_operators_refuse_what_they_cannot_compute(channels_last):
    for operator, arguments in _refused():
        with pytest.raises(RuntimeError, match="conv2d: "):
            operator(*arguments, channels_last)


def _other_instruction_sets():
    if not _is_loaded():
        return []
    module = extension.module()
    return [name for name in module.cpu_features() if name != module.instruction_set()]


# What depends on the instruction set; each of these names at least one test above.
_NUMERIC = (
    "agree_with_the_reference",
    "mixture_of_layouts",
    "random_shapes",
    "any_strides",
    "error_of_float32",
    "only_what_is_asked_for",
    "empty_batch",
    "changes_no_bit",
    "not_finite",
)


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("instruction_set", _other_instruction_sets())
def test_every_other_instruction_set_of_this_processor_is_right(instruction_set):
    environment = {
        **os.environ,
        "MKDEXT_INSTRUCTION_SET": instruction_set,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    options = ["-q", "--numprocesses=0", "-p", "no:cacheprovider", "-k", " or ".join(_NUMERIC)]
    command = [sys.executable, "-W", "error", "-m", "pytest", *options, __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


X = torch.ones(2, 3, 4, 5)
W = torch.ones(8, 3, 3, 3)
B = torch.ones(8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], W), TypeError, "input must be a torch.Tensor, got list"),
        ((X, None), TypeError, "weight must be a torch.Tensor, got NoneType"),
        ((X, W, 1.0), TypeError, "bias must be a torch.Tensor, got float"),
        (
            (X.int(), W),
            TypeError,
            "input must be float32, float64, float16 or bfloat16, got int32",
        ),
        (
            (X, W.bool()),
            TypeError,
            "weight must be float32, float64, float16 or bfloat16, got bool",
        ),
        ((X, W, B.long()), TypeError, "bias must be float32, float64, float16 or bfloat16"),
        ((X.to_sparse(), W), TypeError, "input must be a dense tensor, got torch.sparse_coo"),
        (
            (X, W.double()),
            TypeError,
            "input and weight must have one dtype, got float32 and float64",
        ),
        (
            (X, W, B.half()),
            TypeError,
            "input and bias must have one dtype, got float32 and float16",
        ),
        ((X, W.to("meta")), ValueError, "input and weight must be on one device, got cpu and meta"),
        (
            (X, W, B.to("meta")),
            ValueError,
            "input and bias must be on one device, got cpu and meta",
        ),
        ((X[0], W), ValueError, "input must be [B, Ci, H, W], got [3, 4, 5]"),
        (
            (X[:, :0], W),
            ValueError,
            "input must be [B, Ci, H, W] with at least one channel, row and column, "
            "got [2, 0, 4, 5]",
        ),
        (
            (X[..., :0], W),
            ValueError,
            "input must be [B, Ci, H, W] with at least one channel, row and column, "
            "got [2, 3, 4, 0]",
        ),
        ((X, W[0]), ValueError, "weight must be [Co, Ci, k, k], got [3, 3, 3]"),
        ((X, W[:, :2]), ValueError, "weight must be [Co, Ci, k, k] with Ci=3, got [8, 2, 3, 3]"),
        (
            (X, W[:0]),
            ValueError,
            "weight must be [Co, Ci, k, k] with Co at least 1, got [0, 3, 3, 3]",
        ),
        (
            (X, W[..., :2, :2]),
            ValueError,
            "weight must be [Co, Ci, k, k] with one odd k, got [8, 3, 2, 2]",
        ),
        (
            (X, W[..., :1]),
            ValueError,
            "weight must be [Co, Ci, k, k] with one odd k, got [8, 3, 3, 1]",
        ),
        ((X, W, B[:7]), ValueError, "bias must be [8], got [7]"),
        ((X, W, B[None]), ValueError, "bias must be [8], got [1, 8]"),
        ((X, W, B, True), TypeError, "upscale_factor must be an int, got bool"),
        ((X, W, B, 2.0), TypeError, "upscale_factor must be an int, got float"),
        ((X, W, B, 0), ValueError, "upscale_factor must be at least 1, got 0"),
        (
            (X, W, B, 3),
            ValueError,
            "the output channels must be a multiple of upscale_factor^2 = 9, got 8",
        ),
        (
            (X, W, B, _HUGE),
            ValueError,
            "the output channels must be a multiple of upscale_factor^2 = 18446744073709551616",
        ),
    ],
)
def test_bad_input_gets_one_sentence_with_argument_rule_and_value(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(f"conv2d: {message}")):
        conv2d(*arguments[:3], upscale_factor=arguments[3] if len(arguments) > 3 else 1)
