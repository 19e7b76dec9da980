from __future__ import annotations

import importlib
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from mkdext._system.memory import LiveBytes
from mkdext.ops import reference, spatial_affinity_gap

MODULE = importlib.import_module("mkdext.ops.spatial_affinity")

# B, C_s, C_t, h, w
CASES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 4, 6),
    (5, 2, 3, 3, 1),
    (1, 6, 2, 5, 7),
]
# Elements of a tile: few points, a map or two, everything.
TILES = [5, 50, 10**6]


def _ref(student, teacher):
    """The cosine of every pair of columns, as the definition reads."""
    cosines = [
        F.cosine_similarity(f.flatten(2)[..., None], f.flatten(2)[:, :, None], dim=1)
        for f in (student, teacher)
    ]
    return F.l1_loss(*cosines)


def _maps(case, dtype=torch.float64, requires_grad=False):
    batch, cs, ct, height, width = case
    return [
        torch.randn(batch, c, height, width, dtype=dtype).requires_grad_(requires_grad)
        for c in (cs, ct)
    ]


@pytest.fixture(params=TILES)
def tiles(request, monkeypatch):
    monkeypatch.setattr(MODULE, "_TILE_ON_CPU", request.param)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("case", CASES)
def test_the_gap_is_the_mean_difference_of_the_cosines_of_all_pairs(case):
    maps = _maps(case)
    for function in (spatial_affinity_gap, reference.spatial_affinity_gap):
        torch.testing.assert_close(function(*maps), _ref(*maps))


def test_maps_larger_than_a_tile_agree_with_the_reference_in_float32():
    maps = _maps((2, 5, 3, 23, 37), torch.float32, requires_grad=True)
    assert 2 * math.isqrt(MODULE._TILE_ON_CPU) < 23 * 37
    results = [
        (gap, *torch.autograd.grad(gap, maps))
        for gap in (spatial_affinity_gap(*maps), reference.spatial_affinity_gap(*maps))
    ]
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("tiles", TILES[:1], indirect=True)
def test_finite_differences_confirm_the_first_and_second_derivatives():
    maps = _maps((2, 3, 2, 2, 2), requires_grad=True)
    assert gradcheck(spatial_affinity_gap, maps)
    assert gradgradcheck(spatial_affinity_gap, maps)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("case", CASES[1:])
def test_derivatives_to_third_order_agree_with_the_reference(case, wanted):
    maps = _maps(case)
    weights = [torch.randn_like(f) for f in maps]
    results = []
    for function in (spatial_affinity_gap, reference.spatial_affinity_gap):
        leaves = [maps[i].clone().requires_grad_() for i in wanted]
        both = [leaves[wanted.index(i)] if i in wanted else maps[i] for i in (0, 1)]
        value = function(*both)
        orders = [value.detach()]
        for _ in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            orders += [gradient.detach() for gradient in gradients]
            # The columns' own directions are in no gradient, so a square alone would not see them.
            value = sum((g * weights[i]).sum() for g, i in zip(gradients, wanted, strict=True))
            value = value + sum(g.square().sum() for g in gradients)
        results.append(orders)
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).norm() <= 1e-9 * expected.norm() + 1e-12


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [3, 16, 600])
def test_equal_features_have_no_gap_and_no_gradient_to_the_last_bit(dtype, channels):
    student = torch.randn(2, channels, 5, 4, dtype=dtype, requires_grad=True)
    gap = spatial_affinity_gap(student, student.detach().clone())
    assert gap.item() == 0
    [gradient] = torch.autograd.grad(gap, student)
    assert gradient.abs().max() == 0


def test_the_gap_does_not_depend_on_the_scale_of_a_column():
    student, teacher = _maps(CASES[1])
    scale = torch.rand(2, 1, 4, 6, dtype=torch.float64) + 0.1
    expected = spatial_affinity_gap(student, teacher)
    torch.testing.assert_close(spatial_affinity_gap(student * scale, teacher), expected)


def test_opposite_points_against_equal_ones_have_the_largest_gap():
    student = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
    # Of four affinities two are -1 instead of 1.
    assert spatial_affinity_gap(student, torch.ones(1, 3, 1, 2)).item() == pytest.approx(1)


def test_columns_of_zeros_have_finite_derivatives():
    student, teacher = _maps(CASES[1], requires_grad=True)
    with torch.no_grad():
        student[0, :, 1, 2] = 0
        teacher[1] = 0
    gradients = torch.autograd.grad(
        spatial_affinity_gap(student, teacher), (student, teacher), create_graph=True
    )
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), (student, teacher))
    assert all(g.isfinite().all() for g in (*gradients, *second))


def test_what_is_not_finite_makes_the_gap_not_finite():
    student, teacher = _maps(CASES[1])
    student[0, 0, 0, 0] = math.nan
    assert spatial_affinity_gap(student, teacher).isnan()


def test_any_strides_are_right():
    features = torch.randn(3, 4, 6, 8, dtype=torch.float64)
    teacher = torch.randn(3, 2, 6, 8, dtype=torch.float64)
    variants = [
        features.to(memory_format=torch.channels_last),
        features.transpose(2, 3).contiguous().transpose(2, 3),
        features[:1].expand(3, -1, -1, -1),
        features.repeat(1, 1, 1, 2)[..., ::2],
    ]
    for variant in variants:
        results = []
        for function in (spatial_affinity_gap, reference.spatial_affinity_gap):
            leaf = variant.detach().requires_grad_()
            gap = function(leaf, teacher)
            results.append((gap, *torch.autograd.grad(gap, leaf)))
        torch.testing.assert_close(*results)


def test_an_empty_batch_has_no_gap_and_an_empty_gradient():
    for function in (spatial_affinity_gap, reference.spatial_affinity_gap):
        maps = _maps((0, 3, 5, 4, 6), requires_grad=True)
        gap = function(*maps)
        assert gap.item() == 0
        gradients = torch.autograd.grad(gap, maps, create_graph=True)
        assert [g.shape for g in gradients] == [f.shape for f in maps]
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), maps)
        assert [g.shape for g in second] == [f.shape for f in maps]


@pytest.mark.usefixtures("keep_threads")
def test_two_threads_give_the_result_of_one():
    maps = _maps((2, 5, 3, 20, 21), torch.float32, requires_grad=True)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        gap = spatial_affinity_gap(*maps)
        results.append((gap, *torch.autograd.grad(gap, maps)))
    torch.testing.assert_close(*results)


def _nested(function):
    """The sum of the squares of a gradient, and the gradient of that."""

    def loss(student, teacher):
        inner = torch.func.grad(function, argnums=(0, 1))(student, teacher)
        return sum(g.square().sum() for g in inner)

    return torch.func.grad(loss, argnums=(0, 1))


@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 2)])
def test_torch_func_grad_and_vmap_agree_with_the_reference(in_dims):
    student, teacher = _maps((2, 3, 5, 3, 4))
    mapped = [
        f if dim is None else torch.stack([f, f.flip(0)], dim)
        for f, dim in zip((student, teacher), in_dims, strict=True)
    ]
    results = []
    for function in (spatial_affinity_gap, reference.spatial_affinity_gap):
        inside = torch.func.vmap(_nested(function), in_dims)(*mapped)

        def outside(s, t, function=function):
            return torch.func.vmap(function, in_dims)(s, t).square().sum()

        results.append((inside, torch.func.grad(outside, argnums=(0, 1))(*mapped)))
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_traces_forward_and_backward_without_a_break():
    maps = _maps(CASES[1], torch.float32, requires_grad=True)
    compiled = torch.compile(
        lambda s, t: spatial_affinity_gap(s, t), backend="aot_eager", fullgraph=True
    )
    actual = torch.autograd.grad(compiled(*maps), maps)
    torch.testing.assert_close(actual, torch.autograd.grad(spatial_affinity_gap(*maps), maps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    maps = [f.to(dtype) for f in _maps(CASES[1])]
    expected = spatial_affinity_gap(*(f.float() for f in maps))
    assert torch.equal(spatial_affinity_gap(*maps), expected.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spatial_affinity_gap(*maps), expected)
        assert torch.equal(spatial_affinity_gap(maps[0].float(), maps[1]), expected)


@pytest.mark.parametrize("batch", [0, 2])
def test_the_registered_operators_pass_opcheck(batch):
    # Autograd is registered above the operators, in Python.
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.mkdext
    points = [torch.randn(batch, channels, 12) for channels in (3, 5, 4)]
    opcheck(ops.spatial_affinity_gap.default, points, test_utils=checks)
    opcheck(ops.spatial_affinity_sign_product.default, points, test_utils=checks)


def test_the_affinities_are_never_held():
    # 4096 points: an affinity matrix has 67 MB; the points, the product and two tiles 1.3 MB.
    student, teacher = torch.randn(1, 2, 4096), torch.randn(1, 3, 4096)
    for kernel in (MODULE._gap, MODULE._sign_product):
        with LiveBytes() as memory:
            kernel(student, teacher, student)
        assert 4 * MODULE._TILE_ON_CPU < memory.peak < 2e6


def test_tensors_without_data_have_a_gap_and_gradients_to_second_order():
    student = torch.empty(2, 3, 8, 8, device="meta", requires_grad=True)
    teacher = torch.empty(2, 5, 8, 8, device="meta")
    gap = spatial_affinity_gap(student, teacher)
    [gradient] = torch.autograd.grad(gap, student, create_graph=True)
    [second] = torch.autograd.grad(gradient.square().sum(), student)
    assert gap.shape == ()
    assert gradient.shape == second.shape == student.shape


X, Y = torch.ones(2, 3, 4, 5), torch.ones(2, 6, 4, 5)
SIZES = "teacher must be [B, C_t, h, w] with B=2, h=4 and w=5, got "


@pytest.mark.parametrize(
    ("student", "teacher", "error", "message"),
    [
        ("x", Y, TypeError, "student must be a torch.Tensor, got str"),
        (X, None, TypeError, "teacher must be a torch.Tensor, got NoneType"),
        (
            X,
            Y.long(),
            TypeError,
            "teacher must be float32, float64, float16 or bfloat16, got int64",
        ),
        (
            X,
            Y.double(),
            TypeError,
            "student and teacher must have one dtype, got float32 and float64",
        ),
        (
            X,
            Y.to("meta"),
            ValueError,
            "student and teacher must be on one device, got cpu and meta",
        ),
        (X[0], Y, ValueError, "student must be [B, C_s, h, w], got [3, 4, 5]"),
        (X, Y[0], ValueError, "teacher must be [B, C_t, h, w], got [6, 4, 5]"),
        (
            X[:, :0],
            Y,
            ValueError,
            "student must be [B, C_s, h, w] with at least one channel, row and column, "
            "got [2, 0, 4, 5]",
        ),
        (X, Y[:1], ValueError, SIZES + "[1, 6, 4, 5]"),
        (X, Y[:, :, 1:], ValueError, SIZES + "[2, 6, 3, 5]"),
        (X, Y.mT, ValueError, SIZES + "[2, 6, 5, 4]"),
        (
            torch.ones(1).expand(2, 10**6, 10**6, 1),
            torch.ones(1).expand(2, 1, 10**6, 1),
            ValueError,
            "student of [2, 1000000, 1000000, 1] needs 7,451 GiB, but this machine has",
        ),
    ],
)
def test_bad_input_gets_one_sentence_with_argument_rule_and_value(student, teacher, error, message):
    with pytest.raises(error, match="^" + re.escape(f"spatial_affinity_gap: {message}")):
        spatial_affinity_gap(student, teacher)
