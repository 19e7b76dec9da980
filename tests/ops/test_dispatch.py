"""`apply`, which goes past `Function.apply` where that does nothing."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function, forward_ad

from mkdext.ops._dispatch import apply


class _Scale(Function):
    @staticmethod
    def forward(input, factor):
        return input * factor

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
def calls(monkeypatch):
    """How often PyTorch's own `apply` was taken."""
    count = []
    monkeypatch.setattr(
        _Scale,
        "apply",
        classmethod(lambda cls, *inputs: count.append(1) or Function.apply.__func__(cls, *inputs)),
    )
    return count


def test_a_recorded_call_is_differentiable_twice(calls):
    x = torch.tensor([2.0], requires_grad=True)
    (first,) = torch.autograd.grad(apply(_Scale, x, 3.0) ** 2, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (first.item(), second.item()) == (36.0, 18.0)
    assert not calls


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_where_pytorch_records_nothing(calls, context):
    x = torch.ones(2, requires_grad=True)
    with context():
        assert not apply(_Scale, x, 3.0).requires_grad
    assert apply(_Scale, x.detach(), 3.0).grad_fn is None
    assert not calls


def test_function_transforms_see_the_call(calls):
    x = torch.arange(3.0)
    slope = torch.func.vmap(torch.func.grad(lambda x: apply(_Scale, x, 3.0) ** 2))(x)
    assert torch.equal(slope, 18 * x)
    assert calls


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
