from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mkdext.methods import method_class
from mkdext.methods.pisr import PrivilegedEncoder, privileged_loss


def maps(dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(0)
    student = [torch.randn(2, c, 2, 3, dtype=dtype, requires_grad=True) for c in (2, 3)]
    return student, [torch.randn(2, c, 2, 3, dtype=dtype) for c in (4, 2)]


def make(dtype: torch.dtype = torch.float32):
    torch.manual_seed(1)
    return method_class("pisr")([2, 3], [4, 2]).to(dtype)


def plain_head(head, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution is a linear map of each pixel's channels."""
    first, slope, second = head[0], head[1].weight, head[2]
    rows = x.movedim(1, -1) @ first.weight[:, :, 0, 0].T + first.bias
    rows = torch.where(rows > 0, rows, slope * rows)
    return (rows @ second.weight[:, :, 0, 0].T + second.bias).movedim(-1, 1)


def plain_loss(pisr, student, teacher) -> torch.Tensor:
    total = torch.zeros((), dtype=teacher[0].dtype)
    for mean, scale, s, t in zip(pisr.means, pisr.scales, student, teacher, strict=True):
        s, t = (x / x.abs().sum() * x.numel() for x in (s, t))
        b = 0.1 * plain_head(scale, s).exp().add(1).log() + 1e-8
        likelihood = torch.distributions.Laplace(plain_head(mean, s), b).log_prob(t)
        total = total - likelihood.mean()
    return total


def test_loss_and_gradients_are_those_of_the_likelihood():
    pisr, (student, teacher) = make(torch.float64), maps(torch.float64)
    for parameter in pisr.parameters():  # away from zeros, behind which there is no gradient
        parameter.data += 0.1 * torch.randn_like(parameter)
    loss, slopes, own = pisr.gradient(student, teacher, parameters=list(pisr.parameters()))
    expected = plain_loss(pisr, student, teacher)
    torch.testing.assert_close(loss, expected.detach())
    wanted = torch.autograd.grad(expected, [*student, *pisr.parameters()])
    torch.testing.assert_close([*slopes, *own], list(wanted))
    assert all(gradient.any() for gradient in wanted)


@pytest.mark.parametrize("size", [1e-3, 300])
def test_the_size_of_the_maps_does_not_count(size):
    """Scales next to nothing would make a loss of their own, and growing maps a way around it."""
    pisr, (student, teacher) = make(torch.float64), maps(torch.float64)
    loss = pisr(student, teacher)
    grown = [[size * m for m in side] for side in (student, teacher)]
    torch.testing.assert_close(pisr(*grown), loss)
    for m, slope in zip(student, torch.autograd.grad(loss, student), strict=True):
        assert slope.abs().max() > 1e-3
        assert (slope * m).sum().abs().item() < 1e-12


def test_it_is_differentiable_twice():
    pisr, (student, teacher) = make(torch.float64), maps(torch.float64)
    inputs = (*student, *pisr.parameters())
    assert torch.autograd.gradcheck(lambda *_: pisr(student, teacher), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *_: pisr(student, teacher), inputs, fast_mode=True)


def test_a_few_steps_of_student_and_heads_reduce_it():
    pisr, (student, teacher) = make(), maps()
    optimizer = torch.optim.Adam([*student, *pisr.parameters()], 1e-2)
    losses, gaps = [], []
    for _ in range(20):
        optimizer.zero_grad()
        loss = pisr(student, teacher)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gaps.append(pisr.statistics(student, teacher)["gap"])
    assert losses[-1] < losses[0] - 1
    assert gaps[-1] < gaps[0]


def test_its_heads_are_trained_with_the_student_and_its_weight_is_the_published_one():
    pisr = make()
    assert pisr.privileged and pisr.published_weight == 2e-3
    assert pisr.meta_parameters() == []


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8])
def test_the_encoder_reduces_by_any_scale(scale):
    encoder = PrivilegedEncoder(scale)
    high = torch.rand(2, 3, 6 * scale, 5 * scale, requires_grad=True)
    assert encoder(high).shape == (2, 3, 6, 5)
    convolutions = [m for m in encoder if isinstance(m, torch.nn.Conv2d)]
    assert [(m.kernel_size[0], m.stride[0]) for m in convolutions] == [
        (5, 1),
        (5, scale),
        (3, 1),
        (3, 1),
    ]


def test_a_scale_below_one_is_refused():
    with pytest.raises(ValueError, match="PrivilegedEncoder: scale must be at least 1, got 0"):
        PrivilegedEncoder(0)


def test_the_teacher_imitates_the_low_resolution_image_by_a_small_weight():
    torch.manual_seed(0)
    sr, high, encoded, low = (torch.rand(2, 3, side, side) for side in (8, 8, 2, 2))
    loss, reconstruction, imitation = privileged_loss(sr, high, encoded, low)
    torch.testing.assert_close(reconstruction, (sr - high).abs().mean())
    torch.testing.assert_close(imitation, (encoded - low).abs().mean())
    torch.testing.assert_close(
        loss, functional.l1_loss(sr, high) + 1e-4 * functional.l1_loss(encoded, low)
    )
