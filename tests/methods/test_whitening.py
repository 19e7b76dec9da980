"""Maps on a common scale: the numbers, the gradient through them, what moves them and what not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mkdext.methods import (
    DistillationMethod,
    MKDOptions,
    RunningMean,
    Whitened,
    make_method,
    method_class,
    method_names,
)

WHITENED = [name for name in method_names() if method_class(name).whitens]


def maps(channels: int, seed: int) -> Tensor:
    drawn = torch.randn(2, channels, 5, 6, generator=torch.Generator().manual_seed(seed))
    return drawn.double()


def made(name: str) -> Whitened:
    torch.manual_seed(0)
    method = make_method(name, [3, 3], [4, 4], [MKDOptions(grid=2)])
    return Whitened(method, [4, 4]).double()


class Passed(DistillationMethod):
    """Keeps the maps that it is given."""

    def forward(self, student, teacher):
        """Their sum."""
        self.student, self.teacher = list(student), list(teacher)
        return student[0].sum()


def passed(whitened: Whitened, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """What a method sees of these maps."""
    whitened([student], [teacher])
    assert isinstance(whitened.method, Passed)
    return whitened.method.student[0], whitened.method.teacher[0]


def test_a_running_mean_is_that_of_all_and_never_forgets_more_than_a_hundredth():
    mean = RunningMean(2)
    numbers = torch.arange(400.0).view(200, 2).square()
    for count, pair in enumerate(numbers[:100], 1):
        mean.add(pair)
        torch.testing.assert_close(mean.value, numbers[:count].mean(0))
    before = mean.value.clone()
    for pair in numbers[100:]:
        before.lerp_(pair, 0.01)
        mean.add(pair)
    torch.testing.assert_close(mean.value, before)


def test_whitened_maps_are_those_computed_by_hand():
    whitened = Whitened(Passed([1], [2]), [2])
    first = torch.tensor([[[[1.0, 3.0]], [[10.0, 10.0]]]])
    whitened.observe([torch.tensor([[[[3.0, 4.0]]]])], [first])
    student, teacher = passed(whitened, torch.tensor([[[[5.0, -5.0]]]]), first)
    # Means 2 and 10, variances 1 and 0; a hundredth of the root of their mean is the least.
    least = 0.01 * 0.5**0.5
    expected = torch.tensor([[[[-1.0, 1.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(teacher, expected)
    torch.testing.assert_close(student, torch.tensor([[[[1.0, -1.0]]]]) * 2**0.5)
    _, teacher = passed(whitened, student, first + 1)
    torch.testing.assert_close(teacher[0, :, 0, 0], torch.tensor([0.0, 1 / least]))
    # Of both batches: means 4 and 10; variances 5 and 4; squares of the student 12.5 and 0.5.
    second = torch.tensor([[[[5.0, 7.0]], [[8.0, 12.0]]]])
    whitened.observe([torch.tensor([[[[0.0, 1.0]]]])], [second])
    student, teacher = passed(whitened, torch.tensor([[[[1.0, 0.0]]]]), second)
    torch.testing.assert_close(student[0, 0, 0, 0], torch.tensor(6.5**-0.5))
    torch.testing.assert_close(teacher[0, 0, 0], torch.tensor([1.0, 3.0]) / 5**0.5)
    torch.testing.assert_close(teacher[0, 1, 0], torch.tensor([-2.0, 2.0]) / 2**0.5)


def test_maps_far_from_zero_lose_no_digits():
    whitened = Whitened(Passed([1], [3]), [3])
    drawn = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for batch in drawn.chunk(4):
        whitened.observe([torch.ones(2, 1, 16, 16)], [batch * 0.1 + 1000])
    _, teacher = passed(whitened, torch.ones(8, 1, 16, 16), drawn * 0.1 + 1000)
    torch.testing.assert_close(
        teacher.var((0, 2, 3), correction=0), torch.ones(3), rtol=1e-3, atol=0
    )
    assert teacher.mean().abs() < 0.01


def test_a_channel_that_never_varies_is_not_blown_up():
    whitened = Whitened(Passed([1], [3]), [3])
    teacher = torch.randn(2, 3, 8, 8)
    teacher[:, 1] = 0.0
    whitened.observe([torch.zeros(2, 1, 8, 8)], [teacher])
    teacher[:, 1] = 0.01
    student, seen = passed(whitened, torch.zeros(2, 1, 8, 8), teacher)
    assert seen[:, 1].abs().max() < 2
    assert torch.isfinite(student).all() and torch.isfinite(seen).all()


@pytest.mark.parametrize("name", WHITENED)
def test_a_teacher_of_255_levels_and_one_of_colours_up_to_1_teach_the_same(name):
    found = []
    for levels in (1.0, 255.0):
        method = made(name)
        student = [maps(3, point).requires_grad_() for point in (0, 1)]
        teacher = [(maps(4, point) + 0.5) * levels for point in (2, 3)]
        method.observe(student, teacher)
        found.append(method.gradient(student, teacher, parameters=list(method.parameters())))
    one, other = found
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.maps, other.maps)
    torch.testing.assert_close(one.parameters, other.parameters)


@pytest.mark.parametrize("name", ["fitnet", "ickd", "mkd"])
def test_the_size_of_the_students_maps_does_not_matter_to_the_loss(name):
    losses = []
    for size in (1.0, 1e-3):
        method = made(name)
        student = [size * maps(3, point) for point in (0, 1)]
        teacher = [maps(4, point) for point in (2, 3)]
        method.observe(student, teacher)
        losses.append(method(student, teacher).detach())
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", WHITENED)
def test_the_gradient_is_that_of_the_loss_with_all_scales_constant(name):
    method = made(name)
    student = [(5 * maps(3, point)).requires_grad_() for point in (0, 1)]
    teacher = [7 * maps(4, point) + 3 for point in (2, 3)]
    method.observe(student, teacher)
    descent = method.gradient(student, teacher, create_graph=True)
    torch.testing.assert_close(descent.loss, method(student, teacher).detach())
    torch.testing.assert_close(descent.loss, method.once_differentiable(student, teacher).detach())
    if not name.startswith("mkd") or name in ("mkd-case1", "mkd-case2"):  # MKD cuts a part of it
        assert torch.autograd.gradcheck(lambda *s: method(s, teacher), student, fast_mode=True)
        exact = torch.autograd.grad(method(student, teacher), student)
        torch.testing.assert_close(list(descent.maps), list(exact))


@pytest.mark.parametrize("name", ["fitnet", "vid", "at", "ickd", "mkd"])
def test_the_gradient_can_be_differentiated_as_the_meta_gradient_does(name):
    method = made(name)
    student = [(3 * maps(3, point)).requires_grad_() for point in (0, 1)]
    teacher = [7 * maps(4, point) + 3 for point in (2, 3)]
    method.observe(student, teacher)
    for parameter in method.parameters():  # away from zeros, at which nothing would be tested
        parameter.data.add_(0.1 * torch.randn_like(parameter))

    def slopes(*student: Tensor) -> tuple[Tensor, ...]:
        return method.gradient(student, teacher, create_graph=True).maps

    assert torch.autograd.gradcheck(slopes, student, fast_mode=True)


def test_only_what_is_observed_moves_the_scales():
    method = made("mkd")
    student = [maps(3, point).requires_grad_() for point in (0, 1)]
    teacher = [maps(4, point) for point in (2, 3)]
    method.observe(student, teacher)
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    method.gradient(student, teacher, create_graph=True)
    method.once_differentiable(student, teacher)
    method.statistics(student, teacher)
    assert before.keys() == dict(method.named_buffers()).keys() and before
    for name, buffer in method.named_buffers():
        assert torch.equal(buffer, before[name]) and not buffer.requires_grad
    method.observe([2 * s for s in student], [t + 1 for t in teacher])
    moved = [not torch.equal(buffer, before[n]) for n, buffer in method.named_buffers()]
    assert all(moved)


def test_a_method_is_what_it_was_beneath():
    method = made("l2t-ww")
    assert method.meta_parameters() == method.method.meta_parameters()
    assert list(method.parameters()) == list(method.method.parameters())
