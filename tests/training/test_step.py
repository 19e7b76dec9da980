from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from mkdext._system.saved_state import SavedState, write_state
from mkdext.meta import InnerAdam
from mkdext.methods import DistillationMethod, MKDOptions, method_names
from mkdext.methods.registry import _METHODS
from mkdext.models import builtin_teacher, create_model, forward_with_features
from mkdext.training import BUILTIN_DEMO, MetaOptions, NonFiniteError
from mkdext.training import step as step_module
from mkdext.training.assembly import Networks
from mkdext.training.schedule import Phase
from mkdext.training.setup import prepare
from mkdext.training.stages import StudentStage
from mkdext.training.step import Batch, TrainingStep, apply, require_finite

TINY = dataclasses.replace(
    BUILTIN_DEMO, iterations=4, batch_size=2, patch_size=8, mkd=MKDOptions(grid=2)
)


def patches() -> Batch:
    torch.manual_seed(0)
    return Batch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32), scale=4)


def stage_of(options, networks: Networks | None = None) -> StudentStage:
    """The first stage of a student, at its beginning."""
    stage = prepare(options.resolved(), networks).student_stages[0]
    stage.begin(None)
    return stage


def meta_step(step: TrainingStep, batch: Batch) -> dict[str, torch.Tensor]:
    """A meta step alone, from the student's features."""
    batch = step.taught(batch, with_maps=True)
    _, features = forward_with_features(step.student, step.distillation.points, batch.low)
    return step.meta_step(step.distillation, batch, step.reconstruction(batch), features)


def test_each_stage_begins_with_fresh_moments():
    before, counts = None, []
    for stage in prepare(dataclasses.replace(TINY, hint_share=0.5).resolved()).stages:
        stage.begin(before)
        for index in range(stage.schedule.first, stage.schedule.end):
            stage.take(index, patches())
            (count,) = {float(state["step"]) for state in stage.optimizer.state.values()}
            counts.append(count)
        before = stage
    assert counts == [1, 2, 1, 2]


@pytest.mark.parametrize("rollback", [True, False])
def test_the_inner_loop_moves_the_student_only_without_rollback(rollback):
    meta = MetaOptions(rollback=rollback, inner_lr=0.1)
    stage = stage_of(dataclasses.replace(TINY, meta=meta))
    step = stage.step
    before = [p.clone() for p in step.student.parameters()]
    meta_step(step, patches())
    same = [torch.equal(p, b) for p, b in zip(step.student.parameters(), before, strict=True)]
    assert all(same) == rollback


def test_a_value_that_is_not_finite_changes_no_parameter():
    stage = stage_of(dataclasses.replace(TINY, method="vanilla"))
    step = stage.step
    before = [p.clone() for p in step.student.parameters()]
    batch = patches()
    with pytest.raises(NonFiniteError, match="reconstruction is nan"):
        stage.take(0, batch._replace(high=batch.high * float("nan")))
    assert all(torch.equal(p, b) for p, b in zip(step.student.parameters(), before, strict=True))


def test_in_bfloat16_the_student_is_nearly_the_same_and_the_meta_gradient_exactly():
    results = []
    for dtype in ("float32", "bfloat16"):
        stage = stage_of(dataclasses.replace(TINY, student_dtype=dtype))
        step = stage.step
        before = [p.clone() for p in step.student.parameters()]
        values = stage.take(0, patches())
        moved = [p - b for p, b in zip(step.student.parameters(), before, strict=True)]
        assert all(p.dtype == torch.float32 and p.grad is None for p in step.student.parameters())
        results.append((values, torch.cat([m.flatten() for m in moved])))
    (exact, moved), (half, moved_half) = results
    for name in ("meta_objective", "meta_gradient", "inner_first", "inner_last"):
        torch.testing.assert_close(half[name], exact[name])
    for name in ("reconstruction", "distillation", "student_gradient"):
        assert half[name] != exact[name]
        torch.testing.assert_close(half[name], exact[name], rtol=0.05, atol=0)
    assert functional.cosine_similarity(moved, moved_half, dim=0) > 0.9


@pytest.mark.parametrize(
    ("steps", "mode", "rollback"),
    [(1, "unrolled", True), (1, "replayed", False), (2, "unrolled", False), (2, "replayed", True)],
)
def test_features_that_the_inner_loop_begins_from_are_those_of_the_student(steps, mode, rollback):
    """Shared or computed again from the same parameters, they lead to the same gradients."""
    meta = MetaOptions(steps=steps, mode=mode, rollback=rollback, inner_lr=0.1)
    results = []
    for shared in (True, False):
        stage = stage_of(dataclasses.replace(TINY, meta=meta))
        step = stage.step
        if not shared:
            compute = step.meta_step
            step.meta_step = lambda *given, compute=compute, step=step: compute(
                *given[:-1], again(step, given[1].low)
            )
        stage.take(0, patches())
        phi = step.distillation.method.parameters()
        results.append([p.detach().clone() for p in (*step.student.parameters(), *phi)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def again(step, low: torch.Tensor) -> list[torch.Tensor]:
    return forward_with_features(step.student, step.distillation.points, low)[1]


@pytest.mark.parametrize("rollback", [True, False])
def test_what_batch_normalisation_has_seen_is_the_students_own_step_alone(rollback):
    meta = MetaOptions(rollback=rollback, inner_lr=1e-12)
    statistics = []
    for method, teacher in (("mkd", {4: builtin_teacher()}), ("vanilla", {})):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 48, 3, padding=1)
        student = nn.Sequential(*layers, nn.PixelShuffle(4))
        options = dataclasses.replace(TINY, method=method, student_points=("0", "2"), meta=meta)
        stage = stage_of(options, Networks(student, teacher))
        assert ("meta_objective" in stage.take(0, patches())) == (method == "mkd")
        statistics.append((student[1].running_mean, student[1].num_batches_tracked))
    torch.testing.assert_close(*statistics)


class Matched(DistillationMethod):
    """A 1x1 convolution to the teacher's channels, L2."""

    def __init__(self, student_channels, teacher_channels):
        """Make the convolution."""
        super().__init__(student_channels, teacher_channels)
        self.match = nn.Conv2d(student_channels[0], teacher_channels[0], 1)

    def forward(self, student, teacher):
        """Mean squared gap at the first point."""
        return functional.mse_loss(self.match(student[0]), teacher[0])


class Scaled(Matched):
    """The same times a number, which the meta-gradient trains."""

    def __init__(self, student_channels, teacher_channels):
        """Make the number."""
        super().__init__(student_channels, teacher_channels)
        self.scale = nn.Parameter(torch.ones(()))

    def meta_parameters(self):
        """The number."""
        return [self.scale]

    def forward(self, student, teacher):
        """Mean squared gap, scaled."""
        return self.scale * super().forward(student, teacher)


@pytest.fixture
def matched(monkeypatch):
    monkeypatch.setitem(_METHODS, "mkd", Matched)
    meta = MetaOptions(inner_lr=0.1)
    return dataclasses.replace(TINY, kd_weight=0.5, kd_maps="raw", meta=meta)


def test_adapters_descend_the_weighted_loss_with_the_student(matched):
    stage = stage_of(dataclasses.replace(matched, kd_fade=False))
    step = stage.step
    assert step.distillation.optimizer is None
    weight = step.distillation.method.match.weight
    student = step.student.head[0].weight
    batch = patches()
    sr, maps = forward_with_features(step.student, step.distillation.points, batch.low)
    gap = step.distillation.method(maps, step.taught(batch, with_maps=True).maps)
    loss = functional.l1_loss(sr, batch.high) + 0.5 * gap
    expected = torch.autograd.grad(loss, (weight, student))
    before = weight.detach().clone()
    given = []
    step.optimizer.register_step_pre_hook(
        lambda *_: given.extend(p.grad.clone() for p in (weight, student))
    )
    stage.take(0, batch)
    torch.testing.assert_close(given, list(expected))
    assert not torch.equal(weight, before)


def test_adapters_move_along_in_the_inner_loop(matched, monkeypatch):
    """The meta-gradient for other parameters is that of the joint step, by finite differences."""
    monkeypatch.setitem(_METHODS, "mkd", Scaled)
    meta = MetaOptions(steps=2, inner_lr=1e-4)
    stage = stage_of(dataclasses.replace(matched, meta=meta))
    step = stage.step
    step.student.double()
    step.distillation.method.double()
    scale = step.distillation.method.scale
    batch = step.taught(patches(), with_maps=True)
    batch = Batch(batch.low.double(), batch.high.double(), [m.double() for m in batch.maps])

    def objective(value: float) -> float:
        with torch.no_grad():
            scale.fill_(value)
        return meta_step(step, batch)

    taken = []
    step.distillation.optimizer.register_step_pre_hook(lambda *_: taken.append(scale.grad.item()))
    objective(1.0)
    around = [float(objective(1 + sign * 1e-4)["meta_objective"]) for sign in (1, -1)]
    assert taken[0] == pytest.approx((around[0] - around[1]) / 2e-4, rel=1e-4)


def test_the_method_has_an_optimizer_of_its_own(matched, monkeypatch):
    monkeypatch.setitem(_METHODS, "mkd", Scaled)
    meta = MetaOptions(inner_lr=1e-12, kappa=1.0, lr=5e-3, weight_decay=0.25)
    step = stage_of(dataclasses.replace(matched, meta=meta)).step
    meta_step(step, patches())
    # The loss grows with the number, and the first step of Adam is as long as its rate.
    assert step.distillation.method.scale.item() == pytest.approx(1 - 5e-3)
    assert step.distillation.optimizer.param_groups[0]["weight_decay"] == 0.25


@pytest.mark.parametrize("kappa", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("maps", ["whitened", "raw"])
def test_the_method_moves_along_the_sum_of_both_its_gradients_each_of_norm_1(kappa, maps):
    meta = MetaOptions(inner_lr=0.1, kappa=kappa)
    step = stage_of(dataclasses.replace(TINY, kd_maps=maps, meta=meta)).step
    method, phi = step.distillation.method, step.distillation.meta_parameters
    batch = step.taught(patches(), with_maps=True)
    low, high = batch.low, batch.high
    _, features = forward_with_features(step.student, step.distillation.points, low)
    theta = {n: p for n, p in step.student.named_parameters()}
    method.observe(features, batch.maps)
    slopes = method.gradient(features, batch.maps, create_graph=True).maps
    moved = torch.autograd.grad(
        features, theta.values(), slopes, create_graph=True, materialize_grads=True
    )
    moved = {n: p - 0.1 * g for (n, p), g in zip(theta.items(), moved, strict=True)}
    error = functional.l1_loss(functional_call(step.student, moved, (low,)), high)
    equation_3 = together(torch.autograd.grad(error, phi))
    kept = method([f.detach() for f in features], batch.maps)
    kept = together(torch.autograd.grad(kept, phi))
    expected = equation_3 / equation_3.norm() + kappa * kept / kept.norm() if kappa else equation_3
    given = []
    step.distillation.optimizer.register_step_pre_hook(
        lambda *_: given.append(together([p.grad for p in phi]))
    )
    values = meta_step(step, batch)
    torch.testing.assert_close(given[0], expected, rtol=1e-3, atol=1e-5 * float(expected.norm()))
    torch.testing.assert_close(values["meta_gradient"], equation_3.norm(), rtol=1e-4, atol=0)
    if kappa:
        torch.testing.assert_close(values["meta_distillation_gradient"], kept.norm())
        cosine = functional.cosine_similarity(equation_3, kept, dim=0)
        torch.testing.assert_close(values["meta_cosine"], cosine, rtol=1e-3, atol=1e-4)
    else:
        assert "meta_cosine" not in values


def together(gradients) -> torch.Tensor:
    return torch.cat([gradient.detach().flatten() for gradient in gradients])


@pytest.mark.parametrize("name", ["fitnet", "at", "mkd"])
def test_a_ratio_makes_one_gradient_so_many_times_the_other(name):
    """On a batch that was measured, what the student descends is the sum of both."""
    step = stage_of(
        dataclasses.replace(TINY, method=name, kd_ratio=2.0, method_training="plain")
    ).step
    batch = step.taught(patches(), with_maps=True)
    sr, features = forward_with_features(step.student, step.distillation.points, batch.low)
    parameters = list(step.student.parameters())
    step.distillation.method.observe(features, batch.maps)
    slopes = step.distillation.method.gradient(features, batch.maps).maps
    materialized = {"materialize_grads": True, "retain_graph": True}
    error = functional.l1_loss(sr, batch.high)
    of_error = together(torch.autograd.grad(error, parameters, **materialized))
    of_method = together(torch.autograd.grad(features, parameters, slopes, **materialized))
    given = []
    step.optimizer.register_step_pre_hook(
        lambda *_: given.append(together([p.grad for p in parameters]))
    )
    buffers = {n: b.clone() for n, b in step.distillation.method.named_buffers()}
    for buffer in step.distillation.method.buffers():
        buffer.zero_()  # as if nothing had been seen
    values = step(0, batch, Phase(1e-3, 1.0, 0.5 * 2.0))  # half faded
    assert all(torch.equal(b, buffers[n]) for n, b in step.distillation.method.named_buffers())
    share = of_error.norm() / of_method.norm()
    torch.testing.assert_close(given[0], of_error + share * of_method, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(values["gradient_ratio"], torch.tensor(1.0))
    cosine = functional.cosine_similarity(of_error, of_method, dim=0)
    torch.testing.assert_close(values["gradient_cosine"], cosine, rtol=1e-3, atol=1e-5)


def test_the_gradients_are_measured_every_tenth_step_and_not_while_hints_are_given():
    step = stage_of(dataclasses.replace(TINY, method="at")).step
    now = Phase(1e-3, 1.0, 0.1)
    measured = [i for i in range(12) if "gradient_ratio" in step(i, patches(), now)]
    assert measured == [0, 10]
    hints = stage_of(dataclasses.replace(TINY, method="at", hint_share=0.5, kd_ratio=1.0))
    assert "gradient_ratio" not in hints.take(0, patches())
    assert float(hints.step.distillation.balance.distillation.count) == 0


@pytest.mark.parametrize("method", ["mkd", "vid"])
def test_a_checkpoint_holds_all_that_the_weights_of_losses_and_gradients_follow(method, tmp_path):
    meta = MetaOptions(every=2, kappa=0.5)
    given = {"iterations": 16, "kd_ratio": 0.5, "optimizer": "muon", "meta": meta}
    options = dataclasses.replace(TINY, method=method, **given)
    whole, resumed = stage_of(options), stage_of(options)
    kept = tmp_path / "state.pt"
    for step in range(14):
        if step == 3:
            write_state(kept, whole.state_dict())
        whole.take(step, patches()._replace(low=patches().low * (1 + step)))
    resumed.load(SavedState.read(kept, ""))
    for step in range(3, 14):
        resumed.take(step, patches()._replace(low=patches().low * (1 + step)))
    for one, other in zip(together_of(whole), together_of(resumed), strict=True):
        assert torch.equal(one, other)


def together_of(stage) -> list[torch.Tensor]:
    distillation = stage.step.distillation
    modules = stage.network, distillation.method, distillation.balance
    return [tensor for module in modules for tensor in module.state_dict().values()]


def test_a_ratio_has_no_weight_where_there_is_no_gradient_yet():
    """A student that begins as its teacher has no gap; the weight is 0 until there is one."""
    network = create_model("rcan-a", 4)
    options = dataclasses.replace(TINY, method="response", kd_ratio=1.0, imitation=1.0)
    step = stage_of(options, Networks(network, {4: copy.deepcopy(network)})).step
    before = [p.detach().clone() for p in network.parameters()]
    values = step(0, patches(), Phase(1e-3, 1.0, 1.0, imitation=1.0))
    assert float(values["gradient_ratio"]) == 0 and float(values["student_gradient"]) == 0
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("closing", [False, True])
def test_a_step_on_the_reconstruction_loss_may_close_the_inner_loop(closing, matched, monkeypatch):
    monkeypatch.setitem(_METHODS, "mkd", Scaled)
    meta = MetaOptions(inner_lr=0.1, closing_step=closing)
    stage = stage_of(dataclasses.replace(matched, meta=meta))
    step = stage.step
    step.distillation.method.scale.data.zero_()  # so that the other step leads nowhere
    batch = step.taught(patches(), with_maps=True)
    low, high = batch.low, batch.high
    loss_of = step.reconstruction(batch)
    values = step.meta_step(step.distillation, batch, loss_of, features=None)
    named = dict(step.student.named_parameters())
    loss = functional.l1_loss(step.student(low), high)
    slopes = torch.autograd.grad(loss, named.values(), allow_unused=True, materialize_grads=True)
    if closing:
        named = {n: p - 0.1 * s for (n, p), s in zip(named.items(), slopes, strict=True)}
    expected = functional.l1_loss(functional_call(step.student, named, (low,)), high)
    torch.testing.assert_close(values["meta_objective"], expected.detach())


@pytest.mark.parametrize("way", ["plain", "meta"])
@pytest.mark.parametrize("name", method_names())
def test_every_method_trains_either_way(name, way):
    options = dataclasses.replace(TINY, method=name, method_training=way).resolved()
    teachers = {} if options.privileged else {4: builtin_teacher()}
    stage = stage_of(options, Networks(create_model("rcan-a", 4), teachers))
    step = stage.step
    own = [p.detach().clone() for p in step.distillation.method.parameters()]
    values = stage.take(0, patches())
    assert ("meta_gradient" in values) == (way == "meta" and bool(own))
    moved = zip(step.distillation.method.parameters(), own, strict=True)
    assert not own or sum(not torch.equal(p, before) for p, before in moved) >= len(own) / 2


def test_an_inner_loop_with_the_students_own_optimizer_has_its_rate_and_moments(monkeypatch):
    rates = {"lr": 3e-3, "lr_min": 1e-3, "warmup": 0}
    stage = stage_of(dataclasses.replace(TINY, method="l2t-ww", iterations=8, **rates))
    step = stage.step
    stage.take(0, patches())
    stage.take(1, patches())
    inner, state = step.inner_optimizer(dict(step.student.named_parameters()))
    assert inner == InnerAdam(step.optimizer.param_groups[0]["lr"])
    assert 1e-3 < inner.lr < 3e-3
    assert state is not None
    moments = [step.optimizer.state[p]["exp_avg"].clone() for p in step.student.parameters()]
    given = []
    compute = step_module.meta_gradient

    def watched(*arguments):
        given.extend(tensor.clone() for tensor in arguments[-1])
        return compute(*arguments)

    monkeypatch.setattr(step_module, "meta_gradient", watched)
    stage.take(4, patches())  # The next meta step is due.
    assert given[0] == 2
    torch.testing.assert_close(given[1 : 1 + len(moments)], moments)


def test_a_method_of_pictures_compares_what_the_networks_give():
    stage = stage_of(dataclasses.replace(TINY, method="response"))
    step = stage.step
    low = patches().low
    with torch.no_grad():
        gap = (step.student(low) - step.teacher.network(low)).abs().mean()
    torch.testing.assert_close(stage.take(0, patches())["distillation"], gap)


@pytest.mark.parametrize("hint_share", [0.0, 0.5])
def test_a_share_of_the_reconstruction_loss_is_taken_against_the_teachers_picture(hint_share):
    stage = stage_of(dataclasses.replace(TINY, imitation=0.25, hint_share=hint_share))
    step, batch = stage.step, patches()
    with torch.no_grad():
        sr, imitated = step.student(batch.low), step.teacher.network(batch.low)
    expected = 0.75 * (sr - batch.high).abs().mean() + 0.25 * (sr - imitated).abs().mean()
    now = Phase(lr=1e-3, reconstruction=1.0, distillation=0.0, imitation=0.25)
    values = step(2, batch, now)
    torch.testing.assert_close(values["reconstruction"], expected)


def test_a_student_of_y_is_compared_over_y_with_photographs_and_a_teacher_of_colours():
    stage = stage_of(dataclasses.replace(TINY, student="vdsr-half", imitation=0.25))
    step, batch = stage.step, patches()
    with torch.no_grad():
        pictures = step.student(batch.low), batch.high, step.teacher.network(batch.low)
    weights = torch.tensor([65.481, 128.553, 24.966]) / 255
    sr, high, imitated = (torch.einsum("bchw,c->bhw", picture, weights) for picture in pictures)
    expected = 0.75 * (sr - high).abs().mean() + 0.25 * (sr - imitated).abs().mean()
    now = Phase(lr=1e-3, reconstruction=1.0, distillation=0.0, imitation=0.25)
    values = step(2, batch, now)
    torch.testing.assert_close(values["reconstruction"], expected)


@pytest.mark.parametrize("name", ["imitation", "imitation_end"])
def test_nobody_can_be_imitated_without_a_teacher(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be 0 with `method` vanilla.*got 0\.5"):
        dataclasses.replace(TINY, method="vanilla", **{name: 0.5})
    with pytest.raises(ValueError, match=rf"`{name}` must be from 0 to 1, got 1\.5"):
        dataclasses.replace(TINY, **{name: 1.5})


def test_a_teacher_whose_picture_does_not_count_is_not_asked():
    options = dataclasses.replace(TINY, kd_weight=0.0, imitation=0.0, imitation_end=1.0)
    stage = stage_of(options)
    seen = []
    stage.step.teacher.network.register_forward_hook(lambda *given: seen.append(given))
    stage.take(0, patches())
    assert not seen
    assert stage.pace(0)["imitation"] == 0.0
    stage.take(1, patches())
    assert len(seen) == 1
    assert stage.pace(1)["imitation"] == 1 / options.iterations


def test_points_of_a_method_of_pictures_are_refused():
    options = dataclasses.replace(TINY, method="response", student_points=("body.0",))
    with pytest.raises(ValueError, match=r"`student_points`: `method` response compares .*body\.0"):
        prepare(options.resolved())


def test_a_method_trained_plainly_has_no_meta_step():
    stage = stage_of(dataclasses.replace(TINY, method_training="plain"))
    step = stage.step
    phi = [p.clone() for p in step.distillation.method.parameters()]
    assert "meta_objective" not in stage.take(0, patches())
    moved = zip(step.distillation.method.parameters(), phi, strict=True)
    assert not any(torch.equal(p, before) for p, before in moved)


def test_the_first_value_that_is_not_finite_is_named():
    values = {"fine": torch.tensor(1.0), "some_loss": torch.tensor(float("inf"))}
    with pytest.raises(NonFiniteError, match="some loss is inf"):
        require_finite(values | {"other": torch.tensor(float("nan"))})


def test_a_step_that_no_number_can_hold_is_not_finite():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=1e38)
    with pytest.raises(NonFiniteError, match="step is infinite"):
        for _ in range(3):
            apply(optimizer, [parameter], [torch.ones(3)])
