from __future__ import annotations

import itertools

import pytest

from mkdext.training import TrainOptions
from mkdext.training.schedule import cosine
from mkdext.training.stages import schedules_of_part


def phase(step: int, options: TrainOptions, distils: bool = True):
    schedules = schedules_of_part(options, 0, options.iterations, distils)
    return next(schedule for schedule in schedules if step < schedule.end).at(step)


def test_the_rate_rises_then_falls_along_a_cosine():
    rates = [cosine(step, 100, 1.0, 0.1, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_without_points_there_is_no_distillation():
    now = phase(3, TrainOptions(hint_share=0.5), distils=False)
    assert (now.reconstruction, now.distillation) == (1.0, 0.0)


def test_both_losses_count_together_by_default():
    now = phase(0, TrainOptions(kd_weight=0.25))
    assert (now.lr, now.reconstruction, now.distillation) == (1e-4, 1.0, 0.25)


def test_a_fading_weight_ends_near_zero():
    options = TrainOptions(kd_weight=1.0, kd_fade=True, iterations=100)
    weights = [phase(step, options).distillation for step in (0, 50, 99)]
    assert weights == pytest.approx([1.0, 0.5, 0.0], abs=1e-3)


def test_the_share_of_the_teachers_picture_goes_along_a_line_or_stays():
    options = TrainOptions(imitation=0.9, imitation_end=0.1, iterations=80).resolved()
    shares = [phase(step, options).imitation for step in (0, 20, 40, 79)]
    assert shares == pytest.approx([0.9, 0.7, 0.5, 0.11])
    options = TrainOptions(imitation=0.4, iterations=80).resolved()
    assert {phase(step, options).imitation for step in (0, 40, 79)} == {0.4}
    assert options.given().imitation_end is None


def test_hints_come_first_each_stage_with_its_own_cosine():
    options = TrainOptions(hint_share=0.25, iterations=400, lr=1.0, lr_min=0.0)
    hints, first, last = phase(99, options), phase(100, options), phase(399, options)
    assert (hints.reconstruction, hints.distillation) == (0.0, 1.0)
    assert hints.lr < 0.01
    assert (first.lr, first.reconstruction, first.distillation) == (1.0, 1.0, 0.0)
    assert last.lr < 0.01


def test_the_share_of_the_teachers_picture_changes_after_the_hints_alone():
    options = TrainOptions(
        hint_share=0.5, imitation=0.8, imitation_end=0.0, iterations=80
    ).resolved()
    shares = [phase(step, options).imitation for step in (0, 39, 40, 60)]
    assert shares == pytest.approx([0.8, 0.8, 0.8, 0.4])


def test_a_part_of_a_growing_student_has_schedules_of_its_own():
    options = TrainOptions(kd_weight=1.0, lr=1.0, lr_min=0.0)
    (schedule,) = schedules_of_part(options, 30, 40, distils=True)
    assert schedule.at(30)[:1] == (1.0,) and schedule.at(39).lr < 0.03
