"""`apply`, which goes past `Function.apply` where that does nothing."""

from __future__ import annotations

import pytest
import torch
from torch._functorch import utils as functorch
from torch.autograd import Function, forward_ad
from torch.library import opcheck

from mkdext.ops import _dispatch, dynamic_conv2d, spatial_affinity_gap, texture_kernels
from mkdext.ops._dispatch import apply
from mkdext.ops.conv2d import conv2d


class _Scale(Function):
    """What autograd itself could not differentiate."""

    @staticmethod
    def forward(input, factor):
        assert not torch._C._functorch.is_dead_tensor_wrapper(input)
        return input.detach() * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return apply(_Scale, grad, ctx.factor), None

    @staticmethod
    def vmap(info, in_dims, input, factor):
        return apply(_Scale, input, factor), in_dims[0]


@pytest.fixture
def steps(monkeypatch):
    """What PyTorch did of a call: its own `apply`, and making a context."""
    taken = []
    apply, setup = Function.apply.__func__, _Scale.setup_context

    def noted(name, function):
        return lambda *inputs: taken.append(name) or function(*inputs)

    monkeypatch.setattr(_Scale, "apply", classmethod(noted("apply", apply)))
    monkeypatch.setattr(_Scale, "setup_context", staticmethod(noted("context", setup)))
    return taken


def test_a_recorded_call_is_differentiable_twice_and_binds_no_arguments(steps):
    x = torch.tensor([2.0], requires_grad=True)
    y = apply(_Scale, x, 3.0)
    assert steps == ["context"]
    (first,) = torch.autograd.grad(y**2, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (y.item(), first.item(), second.item()) == (6.0, 36.0, 18.0)
    assert "apply" not in steps


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_where_pytorch_records_nothing(steps, context):
    x = torch.ones(2, requires_grad=True)
    with context():
        assert torch.equal(apply(_Scale, x, 3.0), torch.full((2,), 3.0))
    assert apply(_Scale, x.detach(), 3.0).grad_fn is None
    assert not steps


def test_function_transforms_see_the_call(steps):
    x = torch.arange(3.0)
    slope = torch.func.vmap(torch.func.grad(lambda x: apply(_Scale, x, 3.0) ** 2))(x)
    assert torch.equal(slope, 18 * x)
    assert "apply" in steps


def test_a_tensor_that_outlived_its_transform_is_taken_as_what_it_wraps():
    kept = []
    torch.func.grad(lambda x: kept.append(x) or x.sum())(torch.ones(2))
    assert torch.equal(apply(_Scale, kept[0], 3.0), torch.full((2,), 3.0))


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # PyTorch's own, of its derivatives
def test_forward_mode_is_refused_and_not_taken_for_a_constant():
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        with pytest.raises((NotImplementedError, RuntimeError), match="jvp"):
            apply(_Scale, x, 3.0)


PRIVATE = [
    (torch._C, "_are_functorch_transforms_active"),
    (functorch, "unwrap_dead_wrappers"),
    (forward_ad, "_current_level"),
]


@pytest.fixture(params=[None, *PRIVATE], ids=["all", *(name for _, name in PRIVATE)])
def pytorch(request, monkeypatch):
    """PyTorch, and one that lacks a private function."""
    with monkeypatch.context() as lacking:
        if request.param:
            lacking.delattr(*request.param)
        has_all = _dispatch._has_private_functions()
    assert has_all == (request.param is None)
    monkeypatch.setattr(_dispatch, "_HAS_PRIVATE_FUNCTIONS", has_all)
    return request.param


def test_a_pytorch_without_a_private_function_applies_by_the_public_way(steps, pytorch):
    x = torch.tensor([2.0], requires_grad=True)
    y = apply(_Scale, x, 3.0)
    assert steps == (["apply", "context"] if pytorch else ["context"])
    (first,) = torch.autograd.grad(y**2, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (y.item(), first.item(), second.item()) == (6.0, 36.0, 18.0)


def gradients(operator, *shapes):
    """The result, its gradients, and theirs."""
    torch.manual_seed(1)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    result = operator(*inputs)
    first = torch.autograd.grad(result.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    with torch.no_grad():
        unrecorded = operator(*inputs)
    return [result, *first, *second, unrecorded]


@pytest.mark.parametrize(
    ("operator", "shapes"),
    [
        (dynamic_conv2d, [(2, 3, 6, 7), (2, 4, 3, 3, 3)]),
        (lambda x: texture_kernels(x, grid=2, kernel_size=3), [(2, 3, 7, 9)]),
        (spatial_affinity_gap, [(2, 3, 4, 5), (2, 6, 4, 5)]),
        (conv2d, [(2, 64, 48, 48), (64, 64, 3, 3), (64,)]),
    ],
    ids=["dynamic_conv2d", "texture_kernels", "spatial_affinity_gap", "conv2d"],
)
def test_derivatives_are_the_same_without_private_functions(operator, shapes, pytorch, monkeypatch):
    got = gradients(operator, *shapes)
    if pytorch is None:  # asked in a backward pass, and there allowed to be missing
        monkeypatch.delattr(torch._C, "_will_engine_execute_node")
    else:
        monkeypatch.setattr(_dispatch, "_HAS_PRIVATE_FUNCTIONS", True)
    for a, b in zip(got, gradients(operator, *shapes), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("library")
def test_operators_pass_opcheck_without_private_functions(pytorch):
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (torch.randn(2, 3, 5, 6), torch.randn(2, 4, 3, 3, 3), "direct")
    opcheck(torch.ops.mkdext.dynamic_conv2d.default, arguments, test_utils=checks)
    opcheck(torch.ops.mkdext.texture_kernels.default, (arguments[0], 2, 3), test_utils=checks)
