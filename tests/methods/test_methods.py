"""What holds for every method: right to second order, trainable, clear about its input."""

from __future__ import annotations

import pytest
import torch

from mkdext.methods import MKDOptions, method_class, method_names

STUDENT, TEACHER = [3, 3], [4, 5]


def make(name: str, student=STUDENT, teacher=TEACHER):
    torch.manual_seed(0)
    cls = method_class(name)
    if cls.compares == "pictures":
        student = teacher = [3]
    options = (MKDOptions(grid=2),) if name in ("mkd", "mkd-case3") else ()
    method = cls(student, teacher, *options).double()
    for parameter in method.parameters():  # away from zeros, at which nothing would be tested
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    maps = [torch.randn(2, c, 5, 6, dtype=torch.double, requires_grad=True) for c in student]
    return method, maps, [torch.randn(2, c, 5, 6, dtype=torch.double) for c in teacher]


def loss_of(method, hints):
    return lambda *maps: method(maps, hints)


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_right_to_second_order(name):
    method, maps, hints = make(name)
    function = loss_of(method, hints)
    assert torch.autograd.gradcheck(function, maps, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, maps, fast_mode=True)


@pytest.mark.parametrize("name", method_names())
def test_the_gradient_of_a_methods_own_parameters_is_that_of_its_loss(name):
    method, maps, hints = make(name)
    own = list(method.parameters())
    expected = (
        torch.autograd.grad(method(maps, hints), own, allow_unused=True, materialize_grads=True)
        if own
        else ()
    )
    for create_graph in (False, True):
        loss, _, gradients = method.gradient(maps, hints, create_graph, own)
        torch.testing.assert_close(loss, method(maps, hints).detach())
        torch.testing.assert_close(list(gradients), list(expected))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", method_names())
def test_a_few_steps_bring_the_student_nearer(name):
    method, maps, hints = make(name)
    own = list(method.parameters())
    optimizer = torch.optim.Adam([*maps, *own], 0.02)
    losses = []
    for _ in range(12):
        loss, slopes, gradients = method.gradient(maps, hints, parameters=own)
        losses.append(float(loss))
        for parameter, gradient in zip([*maps, *own], [*slopes, *gradients], strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", method_names())
def test_points_that_do_not_pair_are_refused(name):
    with pytest.raises(ValueError, match="same number of distillation points, got 1 and 2"):
        method_class(name)([4], [4, 5])


@pytest.mark.parametrize("name", ["at", "response", "fakd"])
def test_equal_maps_have_no_loss(name):
    method, maps, _ = make(name)
    assert float(method(maps, [m.detach() for m in maps]).detach()) == 0.0
