from __future__ import annotations

import pytest
import torch
from torch import nn

from mkdext.models import builtin_teacher, default_points, features_at, resized
from mkdext.ops.conv2d import stock_convolutions
from mkdext.training.teacher import Teacher

POINTS = ("body.0", "body.3")
HR = torch.full((2, 3, 32, 32), float("nan"))  # not looked at


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return builtin_teacher().eval()


@pytest.fixture
def low() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)


def test_maps_have_the_students_sizes_and_the_layout_of_the_operators(network, low):
    maps = Teacher(network, POINTS, [(8, 8), (16, 4)])(low, HR).maps
    assert [list(m.shape) for m in maps] == [[2, 32, 8, 8], [2, 32, 16, 4]]
    assert all(m.is_contiguous() and not m.requires_grad for m in maps)
    own = features_at(network, POINTS, low)
    assert torch.equal(maps[0], own[0])
    assert torch.equal(maps[1], resized(own[1:], [(16, 4)])[0])


def test_maps_can_be_saved_for_a_backward_pass(network, low):
    (feature, _) = Teacher(network, POINTS, [(8, 8)] * 2)(low, HR).maps
    weight = torch.ones(1, requires_grad=True)
    (weight * feature).sum().backward()
    assert weight.grad is not None


def test_bfloat16_is_near_float32_and_comes_as_float32(network, low):
    exact = Teacher(network, POINTS, [(8, 8)] * 2)(low, HR).maps
    teacher = Teacher(network, POINTS, [(8, 8)] * 2, torch.bfloat16)
    assert teacher.own_maps(low)[0].dtype == torch.bfloat16
    for near, right in zip(teacher(low, HR).maps, exact, strict=True):
        assert near.dtype == torch.float32
        gap = (near - right).norm() / right.norm()
        assert 0 < gap < 0.02


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_same_and_ends_at_its_last_point(network, low, monkeypatch):
    whole = torch.compile
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda m, **o: whole(m, backend=backend, **o))
    teacher = Teacher(network, POINTS, [(8, 8)] * 2)
    with stock_convolutions():  # as a compiled network has them
        expected = teacher(low, HR).maps
    teacher.compile(low, HR)
    assert len(graphs) == 1
    for _ in range(2):
        assert all(map(torch.equal, teacher(low, HR).maps, expected))
    assert len(graphs) == 1
    assert not any(module._forward_hooks for module in network.modules())


def test_a_failure_of_the_compiler_is_told_in_a_sentence(network, low, monkeypatch):
    def no_compiler(module, **options):
        def run(low):
            raise RuntimeError("no compiler found\nSet TORCHDYNAMO_VERBOSE=1")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    teacher = Teacher(network, POINTS, [(8, 8)] * 2)
    with pytest.raises(ValueError, match=r"^`teacher_compile`: .*RuntimeError: no compiler found$"):
        teacher.compile(low, HR)
    assert len(teacher(low, HR).maps) == 2


def test_the_builtin_points_of_a_teacher_work(network, low):
    points = default_points(network)
    assert len(Teacher(network, points, [(8, 8)] * 4)(low, HR).maps) == 4


def test_the_picture_is_given_where_it_is_asked_for(network, low):
    without = Teacher(network, POINTS, [(8, 8)] * 2)(low, HR)
    maps, picture = Teacher(network, POINTS, [(8, 8)] * 2, picture=(32, 32))(low, HR)
    assert without.picture is None
    assert all(map(torch.equal, maps, without.maps))
    with torch.no_grad():
        assert torch.equal(picture, network(low))
    assert torch.equal(Teacher(network).enlarged(low).picture, picture)
