from __future__ import annotations

import importlib
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from mkdext.ops import dynamic_conv2d, reference, texture_kernels

# B, C, H, W, grid, k
CASES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 48, 48, 4, 3),
    (2, 3, 24, 36, 3, 5),
    (2, 3, 7, 9, 2, 3),
    (1, 2, 10, 5, 3, 2),
    (2, 2, 3, 2, 5, 3),
    (1, 2, 50, 47, 8, 3),
    (3, 1, 8, 8, 1, 4),
    # More channels than a vector has lanes, and not a multiple; rows longer and shorter than one.
    (2, 19, 13, 21, 3, 3),
    (1, 33, 5, 3, 2, 3),
    (1, 9, 3, 18, 7, 4),
]


def _ref(features, grid, size):
    """Average bin by bin, as the definition reads."""

    def bins(begin, end, count):
        length = end - begin
        return [
            (begin + i * length // count, begin + math.ceil((i + 1) * length / count))
            for i in range(count)
        ]

    patches = []
    for h0, h1 in bins(0, features.shape[2], grid):
        for w0, w1 in bins(0, features.shape[3], grid):
            rows = [
                torch.stack(
                    [features[:, :, a:b, c:d].mean((2, 3)) for c, d in bins(w0, w1, size)], -1
                )
                for a, b in bins(h0, h1, size)
            ]
            patches.append(torch.stack(rows, 2))
    return torch.stack(patches, 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patches_are_averaged_bin_by_bin(case, dtype):
    *shape, grid, size = case
    features = torch.randn(shape, dtype=dtype)
    expected = _ref(features, grid, size)
    torch.testing.assert_close(texture_kernels(features, grid, size), expected)
    torch.testing.assert_close(reference.texture_kernels(features, grid, size), expected)


@pytest.mark.parametrize("grid", [2, 4, 8, 12])
def test_sizes_that_divide_give_adaptive_average_pooling_rearranged(grid):
    features = torch.randn(2, 5, 48, 48, dtype=torch.float64)
    pooled = F.adaptive_avg_pool2d(features, grid * 3).reshape(2, 5, grid, 3, grid, 3)
    expected = pooled.permute(0, 2, 4, 1, 3, 5).reshape(2, grid * grid, 5, 3, 3)
    torch.testing.assert_close(texture_kernels(features, grid, 3), expected, rtol=0, atol=1e-15)


def test_one_patch_is_adaptive_average_pooling_for_any_size():
    features = torch.randn(2, 3, 7, 11, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(features, 5)[:, None]
    torch.testing.assert_close(texture_kernels(features, 1, 5), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("case", [c for c in CASES if c[1] <= 3 and c[2] <= 10])
def test_finite_differences_confirm_the_first_and_second_derivatives(case):
    *shape, grid, size = case
    features = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(texture_kernels, (features, grid, size))
    assert gradgradcheck(lambda f: texture_kernels(f, grid, size).pow(2), (features,))


@pytest.mark.parametrize("case", CASES)
def test_derivatives_to_third_order_agree_with_the_reference(case):
    *shape, grid, size = case
    features = torch.randn(shape)
    results = []
    for function in (texture_kernels, reference.texture_kernels):
        leaf = features.clone().requires_grad_()
        value = function(leaf, grid, size).pow(4).sum()
        orders = []
        for _ in range(3):
            [gradient] = torch.autograd.grad(value, leaf, create_graph=True)
            orders.append(gradient.detach())
            value = gradient.pow(2).sum()
        results.append(orders)
    for a, e in zip(*results, strict=True):
        assert (a - e).norm() <= 1e-5 * e.norm()


def test_kernels_feed_the_convolution_and_gradients_flow_through_both():
    features = torch.randn(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)

    def knowledge(f):
        return dynamic_conv2d(f, texture_kernels(f, 2, 3))

    assert knowledge(features).shape == (2, 4, 12, 12)
    small = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(knowledge, (small,))


def test_what_is_not_finite_stays_in_the_bins_and_the_channel_that_hold_it():
    features = torch.randn(1, 11, 17, 19)
    expected = _ref(features, 3, 3)
    features[0, 9, 8, 10], features[0, 2, 16, 18] = math.nan, math.inf
    kernels = texture_kernels(features, 3, 3)
    spoiled = ~_ref(features, 3, 3).isfinite()
    assert spoiled.any()
    assert torch.equal(~kernels.isfinite(), spoiled)
    torch.testing.assert_close(kernels[~spoiled], expected[~spoiled])
    kernels = torch.randn(1, 9, 11, 3, 3)
    kernels[0, 4, 9, 1, 1] = math.nan
    leaf = torch.zeros(1, 11, 17, 19, requires_grad=True)
    [actual] = torch.autograd.grad(texture_kernels(leaf, 3, 3), leaf, kernels)
    [held] = torch.autograd.grad(_ref(leaf, 3, 3)[0, 4, 9, 1, 1], leaf)
    assert torch.equal(actual.isnan(), held != 0)


def test_any_strides_are_right():
    features = torch.randn(3, 4, 10, 14)
    variants = [
        features.to(memory_format=torch.channels_last),
        features.transpose(2, 3),
        features[..., ::2],
        features[:1].expand(3, -1, -1, -1),
    ]
    for variant in variants:
        leaf = variant.detach().requires_grad_()
        kernels = texture_kernels(leaf, 2, 3)
        torch.testing.assert_close(kernels, _ref(leaf, 2, 3))
        grad = torch.randn(*kernels.shape[:3], 3, 6)[..., ::2]
        [actual] = torch.autograd.grad(kernels, leaf, grad)
        [expected] = torch.autograd.grad(_ref(leaf, 2, 3), leaf, grad)
        torch.testing.assert_close(actual, expected)


def test_an_empty_batch_gives_empty_kernels_and_gradients():
    features = torch.randn(0, 3, 8, 8, requires_grad=True)
    for function in (texture_kernels, reference.texture_kernels):
        kernels = function(features, 2, 3)
        assert kernels.shape == (0, 4, 3, 3, 3)
        assert torch.autograd.grad(kernels.sum(), features)[0].shape == features.shape


@pytest.mark.usefixtures("keep_threads")
def test_one_and_two_threads_give_the_same_bits():
    features = torch.randn(1, 5, 50, 47, requires_grad=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        kernels = texture_kernels(features, 8, 3)
        results.append((kernels, *torch.autograd.grad(kernels.pow(2).sum(), features)))
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_torch_func_grad_and_vmap_agree_with_the_reference():
    features = torch.randn(2, 3, 4, 7, 9, dtype=torch.float64)

    def gradient(function):
        def loss(f):
            inner = torch.func.grad(lambda f: function(f, 2, 3).pow(3).sum())(f)
            return inner.pow(2).sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=1)(features)

    torch.testing.assert_close(gradient(texture_kernels), gradient(reference.texture_kernels))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_traces_forward_and_backward_without_a_break():
    features = torch.randn(2, 3, 12, 12, requires_grad=True)
    compiled = torch.compile(
        lambda f: texture_kernels(f, 2, 3), backend="aot_eager", fullgraph=True
    )
    [actual] = torch.autograd.grad(compiled(features).pow(2).sum(), features)
    [expected] = torch.autograd.grad(texture_kernels(features, 2, 3).pow(2).sum(), features)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    features = torch.randn(2, 3, 12, 12).to(dtype)
    expected = texture_kernels(features.float(), 2, 3)
    assert torch.equal(texture_kernels(features, 2, 3), expected.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(texture_kernels(features, 2, 3), expected)


def test_other_devices_and_a_missing_extension_use_the_reference(monkeypatch):
    features = torch.randn(2, 3, 12, 12)
    assert texture_kernels(features.to("meta"), 2, 3).shape == (2, 4, 3, 3, 3)
    module = importlib.import_module("mkdext.ops.texture_kernels")
    monkeypatch.setattr(module, "has_kernel", lambda tensor: False)
    expected = reference.texture_kernels(features, 2, 3)
    assert torch.equal(texture_kernels(features, 2, 3), expected)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("batch", [0, 2])
def test_the_registered_operators_pass_opcheck(batch):
    # Autograd is registered above the operators, in Python: see test_dynamic_conv2d.py.
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.mkdext
    features = torch.randn(batch, 3, 7, 9)
    opcheck(ops.texture_kernels.default, (features, 2, 3), test_utils=checks)
    kernels = torch.randn(batch, 4, 3, 3, 3)
    opcheck(ops.texture_kernels_transpose.default, (kernels, 2, 7, 9), test_utils=checks)


@pytest.mark.usefixtures("library")
def test_the_bare_operators_refuse_what_they_cannot_compute():
    with pytest.raises(RuntimeError, match="texture_kernels: sizes must be positive"):
        torch.ops.mkdext.texture_kernels(torch.ones(1, 1, 4, 4), 0, 3)
    with pytest.raises(RuntimeError, match="texture_kernels: kernels must be"):
        torch.ops.mkdext.texture_kernels_transpose(torch.ones(1, 3, 1, 3, 3), 2, 4, 4)


X = torch.ones(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("x", 2, 3), TypeError, "features must be a torch.Tensor, got str"),
        (
            (X.long(), 2, 3),
            TypeError,
            "features must be float32, float64, float16 or bfloat16, got int64",
        ),
        ((X, 2.0, 3), TypeError, "grid must be an int, got float"),
        ((X, 2, True), TypeError, "kernel_size must be an int, got bool"),
        ((X, 0, 3), ValueError, "grid must be at least 1, got 0"),
        ((X, 2, -1), ValueError, "kernel_size must be at least 1, got -1"),
        ((X[0], 2, 3), ValueError, "features must be [B, C, H, W], got [3, 4, 5]"),
        (
            (X[:, :, :0], 2, 3),
            ValueError,
            "features must be [B, C, H, W] with at least one channel, row and column, "
            "got [2, 3, 0, 5]",
        ),
        (
            (X, 10**6, 3),
            ValueError,
            "the result of [2, 1000000000000, 3, 3, 3] needs 201,166 GiB, but this machine has",
        ),
        (
            (X[:0], 10**9, 10),
            ValueError,
            "the result of [1, 1000000000000000000, 3, 10, 10] needs 1.2e+21 bytes, "
            "which overflows",
        ),
    ],
)
def test_bad_input_gets_one_sentence_with_argument_rule_and_value(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(f"texture_kernels: {message}")):
        texture_kernels(*arguments)
