from __future__ import annotations

import dataclasses

import pytest
import torch

from mkdext.training import DataFreeOptions, MetaOptions
from mkdext.training.assembly import Training
from mkdext.training.setup import prepare
from mkdext.training.stages import StudentStage
from mkdext.training.step import Batch


@pytest.fixture
def options(teachers) -> DataFreeOptions:
    return DataFreeOptions(
        teacher_weights=teachers["rcan"],
        scale=(2,),
        patch_size=8,
        batch_size=2,
        source="procedural",
        iterations=8,
        warmup=0,
    )


def begin(training: Training, index: int, before: StudentStage | None = None) -> StudentStage:
    stage = training.student_stages[index]
    stage.begin(before)
    return stage


def take(stage: StudentStage, step: int, low: torch.Tensor, scale: int = 2) -> dict:
    return stage.take(step, Batch(low, None, scale=scale))


def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_student_imitates_the_picture_of_the_teacher(options):
    training = prepare(options.resolved())
    stage, teacher = begin(training, 0), training.networks.teachers[2]
    expected = (stage.network(images()) - teacher(images())).abs().mean().detach()
    losses = [take(stage, step, images())["reconstruction"].item() for step in range(6)]
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[-1] < losses[0]


def test_squared_errors_are_summed_and_their_gradient_is_cut(options):
    """One step of the SGD of DFSR: the gradient has norm 0.4, then comes the weight decay."""
    options = dataclasses.replace(
        options, error="squared", reduction="sum", optimizer="sgd", lr=0.1
    )
    training = prepare(options.resolved())
    stage, teacher = begin(training, 0), training.networks.teachers[2]
    parameters = dict(stage.network.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    loss = (stage.network(images()) - teacher(images())).square().sum()
    gradients = torch.autograd.grad(loss, parameters.values())
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 0.4
    values = take(stage, 0, images())
    assert values["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert values["student_gradient"].item() == pytest.approx(norm.item(), rel=1e-4)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        step = 0.1 * (gradient * 0.4 / norm + 1e-4 * before[name])
        torch.testing.assert_close(parameter.detach(), before[name] - step, rtol=1e-4, atol=1e-6)


def test_a_stage_begins_with_the_weights_of_the_one_before_and_a_fresh_optimizer(options):
    training = prepare(dataclasses.replace(options, stages=4).resolved())
    stage = begin(training, 0)
    for step in (0, 1):
        take(stage, step, images())
        assert len(stage.step.optimizer.state)
    grown = begin(training, 1, stage)
    assert len(grown.network.stages()) == 2 and not grown.step.optimizer.state
    state = grown.network.state_dict()
    for name, weight in stage.network.state_dict().items():
        assert torch.equal(state[stage.network.name_in(grown.network, name)], weight)
    take(grown, 2, images())
    assert grown.step.optimizer.param_groups[0]["lr"] == options.lr


def test_features_are_compared_where_the_student_has_grown_to(options):
    """And the parts of the method go along with the parts of the student."""
    options = dataclasses.replace(
        options, method="mkd", stages=4, meta=MetaOptions(every=1, lr=1e-2), kd_fade=False
    )
    training = prepare(options.resolved())
    stage, kept = None, {}
    for index in range(4):
        stage = begin(training, index, stage)
        distillation = stage.step.distillation
        assert distillation.points == [f"body.{part}" for part in range(index + 1)]
        assert stage.step.teacher.points == [f"body.{part}" for part in range(index + 1)]
        state = distillation.method.state_dict()
        assert all(torch.equal(state[name], weight) for name, weight in kept.items())
        values = take(stage, stage.part.first, images())
        assert values["meta_gradient"] > 0
        kept = {name: w.clone() for name, w in distillation.method.state_dict().items()}


def test_a_stage_without_a_point_compares_pictures_alone(options, teachers):
    options = dataclasses.replace(
        options,
        method="at",
        student="edsr-s",
        student_points=("body.3",),
        stages=2,
        teacher_points=("body.3",),
        hint_share=0.5,
    )
    training = prepare(options.resolved())
    first = begin(training, 0)
    assert first.step.distillation is None
    assert "distillation" not in take(first, 0, images())
    last = begin(training, 1, first)
    assert last.step.distillation.points == ["body.3"]
    assert take(last, 4, images())["distillation"] > 0


def test_a_student_of_y_imitates_the_teacher_over_y(options, teachers):
    """Over red, green and blue the sum of squares would be 3 * (255 / 219)^2 times as large."""
    options = dataclasses.replace(
        options,
        teacher_weights=teachers["vdsr"],
        student="vdsr-half",
        error="squared",
        reduction="sum",
    )
    training = prepare(options.resolved())
    stage, teacher = begin(training, 0), training.networks.teachers[2]
    with torch.no_grad():
        of_colours = (stage.network(images()) - teacher(images())).square().sum()
    loss = take(stage, 0, images())["reconstruction"]
    assert of_colours / loss == pytest.approx(4.0674, rel=1e-3)


def test_students_of_several_scales_share_weights_optimizer_and_method(options, teachers):
    options = dataclasses.replace(
        options,
        teacher_weights=teachers["vdsr"],
        student="vdsr-half",
        scale=(2, 4),
        method="response",
        stages=18,
        iterations=18,
        source="generator",
        patch_size=16,
    )
    training = prepare(options.resolved())
    stage = begin(training, 1, begin(training, 0))
    two, four = stage.steps[2], stage.steps[4]
    assert two.student.luma is four.student.luma and two.optimizer is four.optimizer
    assert two.distillation.method is four.distillation.method
    assert two.teacher.network is training.networks.teachers[2]
    assert four.teacher.network is training.networks.teachers[4]
    before = [p.detach().clone() for p in two.student.parameters()]
    take(stage, 1, torch.rand(2, 3, 8, 8), scale=4)
    after = list(two.student.parameters())
    assert all(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
