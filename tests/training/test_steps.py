from __future__ import annotations

import dataclasses

import pytest
import torch

from mkdext.distill import MKDOptions
from mkdext.models import forward_with_features
from mkdext.training import BUILTIN_DEMO, MetaOptions, NonFiniteError
from mkdext.training.plan import prepare
from mkdext.training.steps import require_finite

TINY = dataclasses.replace(
    BUILTIN_DEMO, iterations=4, batch_size=2, patch_size=8, mkd=MKDOptions(grid=2)
)


def patches() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)


def test_each_stage_begins_with_fresh_moments():
    step = prepare(dataclasses.replace(TINY, hint_share=0.5)).step
    counts = []
    for index in range(4):
        step(index, *patches())
        (count,) = {float(state["step"]) for state in step.optimizer.state.values()}
        counts.append(count)
    assert counts == [1, 2, 1, 2]


@pytest.mark.parametrize("rollback", [True, False])
def test_the_inner_loop_moves_the_student_only_without_rollback(rollback):
    meta = MetaOptions(rollback=rollback, inner_lr=0.1)
    step = prepare(dataclasses.replace(TINY, meta=meta)).step
    before = [p.clone() for p in step.student.parameters()]
    lr, hr = patches()
    hints = step.teacher_features(step.distillation, lr)
    _, features = forward_with_features(step.student, step.distillation.student_points, lr)
    step.meta_step(step.distillation, lr, hr, hints, features)
    same = [torch.equal(p, b) for p, b in zip(step.student.parameters(), before, strict=True)]
    assert all(same) == rollback


def test_a_value_that_is_not_finite_changes_no_parameter():
    step = prepare(dataclasses.replace(TINY, method="vanilla")).step
    before = [p.clone() for p in step.student.parameters()]
    lr, hr = patches()
    with pytest.raises(NonFiniteError, match="reconstruction is nan"):
        step(0, lr, hr * float("nan"))
    assert all(torch.equal(p, b) for p, b in zip(step.student.parameters(), before, strict=True))


@pytest.mark.parametrize("rollback", [True, False])
@pytest.mark.parametrize("mode", ["unrolled", "replayed"])
@pytest.mark.parametrize("steps", [1, 2])
def test_features_that_the_inner_loop_begins_from_are_those_of_the_student(steps, mode, rollback):
    """Shared or computed again from the same parameters, they lead to the same gradients."""
    meta = MetaOptions(steps=steps, mode=mode, rollback=rollback, inner_lr=0.1)
    results = []
    for shared in (True, False):
        step = prepare(dataclasses.replace(TINY, meta=meta)).step
        if not shared:
            compute = step.meta_step
            step.meta_step = lambda *given, compute=compute, step=step: compute(
                *given[:-1], again(step, given[1])
            )
        step(0, *patches())
        phi = step.distillation.method.parameters()
        results.append([p.detach().clone() for p in (*step.student.parameters(), *phi)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def again(step, lr: torch.Tensor) -> list[torch.Tensor]:
    return forward_with_features(step.student, step.distillation.student_points, lr)[1]


def test_the_first_value_that_is_not_finite_is_named():
    values = {"fine": torch.tensor(1.0), "some_loss": torch.tensor(float("inf"))}
    with pytest.raises(NonFiniteError, match="some loss is inf"):
        require_finite(values | {"other": torch.tensor(float("nan"))})
