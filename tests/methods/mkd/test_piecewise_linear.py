"""Linear pieces: right to any order, and silent about the derivative of their slopes."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from mkdext.methods.mkd.known_gradient import with_known_gradient
from mkdext.methods.mkd.piecewise_linear import leaky_relu, mean_magnitude


def numbers(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_values_are_those_of_torch():
    x = numbers(3, 4)
    torch.testing.assert_close(leaky_relu(x, 0.2), functional.leaky_relu(x, 0.2))
    torch.testing.assert_close(mean_magnitude(x), x.abs().mean())


def test_derivatives_agree_with_finite_differences():
    x = numbers(3, 4)
    for function in (lambda x: leaky_relu(x, 0.2), mean_magnitude):
        assert gradcheck(function, x)
        assert gradgradcheck(lambda x, f=function: f(x).pow(3), x)


def test_the_gradient_does_not_depend_on_what_only_chose_the_pieces():
    x, weight = numbers(3, 4), torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((weight * leaky_relu(x, 0.2)).sum(), x, create_graph=True)
    assert torch.autograd.grad(slope.sum(), x, allow_unused=True) == (None,)
    (gradient,) = torch.autograd.grad(mean_magnitude(x), x, create_graph=True)
    assert not gradient.requires_grad


def test_a_value_that_is_not_finite_shows():
    assert mean_magnitude(torch.tensor([1.0, float("nan")])).isnan()


def test_a_known_gradient_is_the_gradient():
    x = numbers(5)
    with_known_gradient(x.square().sum(), [x], [2 * x.detach()]).mul(3).backward()
    torch.testing.assert_close(x.grad, 6 * x.detach())
