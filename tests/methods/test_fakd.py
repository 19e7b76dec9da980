"""FAKD against its definition, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mkdext.methods import method_class

Maps = tuple[list[Tensor], list[Tensor]]


@pytest.fixture(scope="module")
def maps() -> Maps:
    generator = torch.Generator().manual_seed(0)

    def features(channels: int) -> Tensor:
        return torch.rand(2, channels, 5, 4, generator=generator, dtype=torch.float64)

    return [features(3), features(4)], [features(6), features(4)]


@pytest.fixture(scope="module")
def fakd():
    return method_class("fakd")([3, 4], [6, 4])


def affinity(features: Tensor) -> Tensor:
    columns = features.flatten(2) / features.flatten(2).norm(dim=1, keepdim=True)
    return torch.einsum("bci,bcj->bij", columns, columns)


def gap(student: Tensor, teacher: Tensor) -> Tensor:
    return (affinity(student) - affinity(teacher)).abs().mean()


def test_the_loss_is_the_sum_over_the_points_of_the_mean_gap(fakd, maps):
    expected = sum(gap(s, t) for s, t in zip(*maps, strict=True))
    torch.testing.assert_close(fakd(*maps), expected)


def test_the_gradient_and_its_derivative_are_those_of_the_definition(fakd, maps):
    student, teacher = maps
    results = []
    for loss in (fakd, lambda s, t: sum(map(gap, s, t))):
        leaves = [f.clone().requires_grad_() for f in student]
        first = torch.autograd.grad(loss(leaves, teacher), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(3).sum() for g in first), leaves)
        results.append((*first, *second))
    torch.testing.assert_close(*results)


def test_a_rotation_of_the_channels_is_the_same_knowledge(fakd, maps):
    _, teacher = maps
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    rotated = torch.einsum("ij,bjhw->bihw", rotation, teacher[0])
    assert gap(rotated[:, :3], teacher[0]) > 0.01
    assert fakd([rotated, teacher[1]], teacher) < 1e-12


def test_statistics_are_means_over_the_points(fakd, maps):
    sizes = torch.stack([affinity(t).abs().mean() for t in maps[1]])
    gaps = torch.stack([gap(s, t) for s, t in zip(*maps, strict=True)])
    assert fakd.statistics(*maps) == {
        "affinity_teacher": pytest.approx(sizes.mean().item()),
        "gap": pytest.approx((gaps / sizes).mean().item()),
    }


def test_it_has_the_weight_published_for_levels_to_255_and_nothing_to_learn(fakd):
    assert 255 * fakd.published_weight == pytest.approx(10)
    assert not list(fakd.parameters())
