from __future__ import annotations

import dataclasses

import pytest
import torch

from mkdext.distill import MKDOptions
from mkdext.training import BUILTIN_DEMO, MetaOptions, NonFiniteError
from mkdext.training.plan import prepare

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
    step.meta_step(step.distillation, lr, hr, step.teacher_features(step.distillation, lr))
    same = [torch.equal(p, b) for p, b in zip(step.student.parameters(), before, strict=True)]
    assert all(same) == rollback


def test_a_value_that_is_not_finite_changes_no_parameter():
    step = prepare(dataclasses.replace(TINY, method="vanilla")).step
    before = [p.clone() for p in step.student.parameters()]
    lr, hr = patches()
    with pytest.raises(NonFiniteError, match="reconstruction is nan"):
        step(0, lr, hr * float("nan"))
    assert all(torch.equal(p, b) for p, b in zip(step.student.parameters(), before, strict=True))
