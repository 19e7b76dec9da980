"""What a callback sees and does; the rest of a training is tested by the commands."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from rich.console import Console

from mkdext.methods import MKDOptions
from mkdext.models import load_weights, read_weights
from mkdext.training import BUILTIN_DEMO, DataFreeOptions, TrainOptions, train

QUIET = Console(quiet=True)


@pytest.fixture
def options(photographs, tmp_path) -> TrainOptions:
    return dataclasses.replace(
        BUILTIN_DEMO,
        train_dir=(photographs,),
        val_dir=(photographs,),
        iterations=4,
        batch_size=2,
        patch_size=8,
        mkd=MKDOptions(grid=2),
        out=tmp_path / "run",
    )


def test_a_callback_sees_every_step_of_the_student(options):
    seen = []

    def callback(step, values, student):
        seen.append((step, values["reconstruction"], values["lr"] > 0, type(student).__name__))

    summary = train(options, QUIET, callback=callback)
    assert [step for step, *_ in seen] == [1, 2, 3, 4]
    assert len({loss for _, loss, *_ in seen}) == 4
    assert {kind for *_, kind in seen} == {"RCAN"}
    assert summary["iterations"] == 4


def test_a_callback_ends_a_training_which_is_finished_then(options):
    students = []

    def callback(step, values, student):
        students.append(student)
        return step == 2

    summary = train(options, QUIET, callback=callback)
    assert summary["iterations"] == 2 and len(students) == 2
    written = read_weights(options.out / "checkpoints/student.safetensors")
    kept = {name: tensor.clone() for name, tensor in students[-1].state_dict().items()}
    load_weights(students[-1], written)
    for name, tensor in students[-1].state_dict().items():
        assert torch.equal(tensor, kept[name])
    assert train(options, QUIET) == summary


@pytest.mark.slow
def test_a_callback_ends_a_student_before_it_has_grown(photographs, tmp_path):
    options = DataFreeOptions(
        val_dir=(photographs,),
        iterations=4,
        batch_size=2,
        patch_size=8,
        stages=2,
        source="procedural",
        out=tmp_path / "run",
    )
    grown, ended = (
        train(dataclasses.replace(options, out=tmp_path / name), QUIET, callback=callback)
        for name, callback in (("whole", None), ("ended", lambda step, *_: step == 1))
    )
    assert ended["iterations"] == 1 and ended["parameters"] < grown["parameters"]


def test_the_teacher_of_a_method_has_no_callback(options):
    seen = []
    pisr = dataclasses.replace(options, method="pisr", privileged_iterations=2, iterations=1)
    train(pisr, QUIET, callback=lambda step, values, student: seen.append(step))
    assert seen == [1]


def test_what_are_no_options_is_refused():
    with pytest.raises(TypeError, match="must be TrainOptions or DataFreeOptions, got dict"):
        train({"method": "vanilla"}, QUIET)
