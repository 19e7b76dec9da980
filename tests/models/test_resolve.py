from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mkdext.models import builtin_teacher, create_model, resolve_teacher


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.pt"
    torch.save(create_model("rcan-b", scale=2).state_dict(), path)
    return path


@pytest.mark.parametrize("name", [None, "rcan-b"])
def test_weights_make_the_teacher_and_a_name_must_agree(weights: Path, name: str | None) -> None:
    teacher = resolve_teacher(name, weights, scale=2)
    lr = torch.rand(1, 3, 5, 6)
    expected = create_model("rcan-b", scale=2)
    expected.load_state_dict(torch.load(weights, weights_only=True))
    assert torch.equal(teacher(lr), expected(lr))
    with pytest.raises(ValueError, match=r"the checkpoint is RCANConfig.* the network is RCANConf"):
        resolve_teacher("rcan-a", weights, scale=2)
    with pytest.raises(ValueError, match="the checkpoint is for x2, the network is x4"):
        resolve_teacher(name, weights, scale=4)


def test_a_teacher_is_in_evaluation_mode_and_takes_no_gradient(weights: Path) -> None:
    teacher = resolve_teacher(None, weights, scale=2)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_named_network_without_weights_is_no_teacher() -> None:
    with pytest.raises(ValueError, match="`teacher` rcan-t needs `teacher_weights` FILE"):
        resolve_teacher("rcan-t", None, scale=4)


def test_the_builtin_teacher_takes_no_other_weights(weights: Path) -> None:
    with pytest.raises(ValueError, match="`teacher` builtin has its own weights"):
        resolve_teacher("builtin", weights, scale=2)


@pytest.mark.parametrize("weights", [None, Path("not-looked-at.pt")])
def test_an_unknown_teacher_is_refused_with_near_names(weights: Path | None) -> None:
    with pytest.raises(ValueError, match=r"`teacher` biultin is unknown, .*; did you mean builtin"):
        resolve_teacher("biultin", weights, scale=4)


@pytest.mark.parametrize("name", [None, "builtin"])
def test_the_builtin_teacher_is_for_scale_4_only(name: str | None) -> None:
    for make in (builtin_teacher, lambda scale: resolve_teacher(name, None, scale)):
        with pytest.raises(ValueError, match=r"scale 4 only, got 3; .* `teacher_weights` FILE"):
            make(3)
