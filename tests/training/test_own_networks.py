"""Trainings with networks that are not of this package, from the command and from Python."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from mkdext.models import builtin_teacher, create_model
from mkdext.train import main, parse
from mkdext.training import NonFiniteError, TrainOptions, distill
from mkdext.training.setup import prepare
from mkdext.training.step import LifelessError, TrainingStep
from mkdext.training.teacher import Teacher

QUIET = Console(quiet=True)
OWN_MAPS, CALL = Teacher.own_maps, TrainingStep.__call__

NETS = '''
import torch
from torch import nn

class ESPCN(nn.Sequential):
    """Enlarges a Y image four times."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 6, 3, padding=1),
                         nn.Tanh(), nn.Conv2d(6, 16, 3, padding=1), nn.PixelShuffle(4))

class SRCNN(nn.Sequential):
    """Sharpens an enlarged colour image."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 7, 9, padding=4), nn.ReLU(), nn.Conv2d(7, 5, 1), nn.ReLU(),
                         nn.Conv2d(5, 3, 5, padding=2))

class Random(ESPCN):
    """Draws at random while it is trained, and keeps statistics."""

    def __init__(self):
        super().__init__()
        self[1] = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(8), nn.Dropout(0.5))

class Counted(ESPCN):
    """Cannot run without numbers."""

    def forward(self, y):
        if float(y.mean()) > 2:
            raise ValueError("colours must be in [0, 1]")
        return super().forward(y)
'''


@pytest.fixture
def nets(tmp_path: Path):
    path = tmp_path / "published_nets.py"
    path.write_text(NETS)
    yield path
    sys.modules.pop("published_nets", None)


def sequential(features: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, features, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(features, 48, 3, padding=1),
        nn.PixelShuffle(4),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "student_points", "teacher", "teacher_points"),
    [
        ("vdsr-half", [], "builtin", []),
        ("rcan-a", ["body.1", "body.3"], "SRCNN", ["0", "2"]),
        ("SRCNN", ["0", "2"], "builtin", []),
        ("ESPCN", ["0", "2"], "SRCNN", ["[02]"]),
        ("Counted", ["0", "2"], "Counted", ["0", "2"]),
    ],
)
def test_any_student_learns_from_any_teacher(
    student, student_points, teacher, teacher_points, nets, flags, tmp_path
):
    def name(network: str) -> str:
        return f"{nets}:{network}" if network[0].isupper() else network

    run = tmp_path / "run"
    points = ["--student-points", *student_points] if student_points else []
    points += ["--teacher-points", *teacher_points] if teacher_points else []
    chosen = ["--student", name(student), "--teacher", name(teacher)]
    assert main([*flags, *chosen, *points, "--iterations", "2", "--out", str(run)]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(r["distillation"] > 0 for r in records if "distillation" in r)
    # The files hold the names of the user's network, and load into it.
    names = load_file(run / "checkpoints/student.safetensors").keys()
    assert not any(name.startswith("network.") for name in names)
    scores = json.loads((run / "summary.json").read_text())["validation"]["photographs"]
    assert set(scores) == {"bicubic", "student", "teacher"}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (["--student-points", "0", "9"], "--student-points: distillation point '9' is not a sub-"),
        (
            ["--student-points", "0", "--teacher-points", "body.*"],
            "must be equally many, got 1 (network",
        ),
        (["--student-points", "0", "--teacher-points", "bdy.0"], "did you mean body.0"),
    ],
)
def test_points_that_do_not_fit_are_refused_before_any_work(
    points, message, nets, flags, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main([*flags, "--student", f"{nets}:ESPCN", *points, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_memory_of_a_network_that_needs_numbers_is_not_known(
    estimated, nets, flags, tmp_path, capsys
):
    own = ["--student", f"{nets}:Counted", "--student-points", "0", "2", "--imitation", "0"]
    assert prepare(parse([*flags, *own]).options().resolved()).memory is None
    cache = ["--teacher-cache", str(tmp_path / "cache"), "--teacher-cache-crops", "20"]
    assert main([*flags, *own, *cache, "--dry-run", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "memory of a step: not known, for your own code" in shown
    assert "teacher cache: 20 crops of 16,388 bytes" in " ".join(shown.split())
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_cached_training_resumes_exactly_and_spares_the_teacher(
    flags, tmp_path, monkeypatch, capsys
):
    cached = [*flags, "--teacher-cache", str(tmp_path / "cache"), "--teacher-cache-crops", "6"]
    assert main([*cached, "--out", str(tmp_path / "whole")]) == 0
    calls = []
    monkeypatch.setattr(
        "mkdext.training.teacher.Teacher.own_maps",
        lambda self, lr, original=OWN_MAPS: calls.append(len(lr)) or original(self, lr),
    )
    interrupted = tmp_path / "interrupted"
    monkeypatch.setattr("mkdext.training.step.TrainingStep.__call__", _failing_at(7))
    assert main([*cached, "--out", str(interrupted)]) == 1
    monkeypatch.setattr("mkdext.training.step.TrainingStep.__call__", CALL)
    assert main([*cached, "--out", str(interrupted)]) == 0
    # Once at each start, to see that the teacher is still the same.
    assert len(calls) == 2
    weights = [
        (run / "checkpoints/student.safetensors").read_bytes()
        for run in (tmp_path / "whole", interrupted)
    ]
    assert weights[0] == weights[1]
    capsys.readouterr()
    assert main([*cached, "--seed", "5", "--out", str(tmp_path / "other")]) == 2
    assert "does not fit: seed was 0, now 5; name another folder" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_student_that_draws_at_random_trains_the_same_again_and_after_a_stop(
    nets, flags, tmp_path, monkeypatch
):
    own = ["--student", f"{nets}:Random", "--student-points", "0", "2"]
    runs = [tmp_path / name for name in ("one", "two")]
    torch.manual_seed(1)
    assert main([*flags, *own, "--out", str(runs[0])]) == 0
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    monkeypatch.setattr("mkdext.training.step.TrainingStep.__call__", _failing_at(7))
    assert main([*flags, *own, "--out", str(runs[1])]) == 1
    monkeypatch.setattr("mkdext.training.step.TrainingStep.__call__", CALL)
    assert main([*flags, *own, "--out", str(runs[1])]) == 0
    assert torch.equal(torch.rand(1), drawn)  # The caller's random numbers are left alone.
    one, two = ((run / "checkpoints/student.safetensors").read_bytes() for run in runs)
    assert one == two


def _failing_at(step: int):
    def call(self, number, *batch):
        if number == step:
            raise NonFiniteError("stopped")
        return CALL(self, number, *batch)

    return call


@pytest.fixture
def options(photographs: Path, tmp_path: Path, flags) -> TrainOptions:
    parsed = parse([*flags, "--out", str(tmp_path / "run")]).options()
    return dataclasses.replace(
        parsed, iterations=3, validate_every=2, student_points=("0", "2"), train_dir=()
    )


class Dying(nn.Module):
    """Brightens nearest-neighbour enlargement by a number that a ReLU soon shuts off."""

    def __init__(self):
        super().__init__()
        self.brightness = nn.Parameter(torch.ones(1))

    def forward(self, low: Tensor) -> Tensor:
        enlarged = nn.functional.interpolate(low, scale_factor=4)
        return enlarged + torch.relu(self.brightness)


def test_a_student_that_has_no_gradient_left_is_not_trained_on(options):
    options = dataclasses.replace(
        options, method="response", student_points=(), iterations=40, lr=1.0, validate_every=40
    )
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    told = r"the student learns no more: for 20 steps .* ReLUs.*Lower `lr` \(now 1\)"
    with pytest.raises(LifelessError, match=told):
        distill(Dying(), builtin_teacher(), [image], options, QUIET)


@pytest.mark.parametrize("kind", ["folders", "arrays"])
def test_distill_takes_photographs_of_every_kind(kind, options, photographs):
    images = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(2)]
    given = {"folders": [str(photographs)], "arrays": images}[kind]
    student = sequential()
    before = student[0].weight.clone()
    result = distill(student, builtin_teacher(), given, options, QUIET)
    assert result.student is student and not torch.equal(student[0].weight, before)
    assert [r["step"] for r in result.history] == [1, 2, 2, 3, 3]
    assert result.history[0]["distillation"] > 0
    assert result.summary["validation"]["photographs"]["student"]["psnr_y"] > 0


def test_arrays_and_tensors_of_the_same_pixels_train_the_same(options, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    trained = []
    for index, given in enumerate((image, torch.from_numpy(image).permute(2, 0, 1))):
        named = dataclasses.replace(options, out=tmp_path / str(index))
        trained.append(distill(sequential(), builtin_teacher(), [given], named, QUIET).student)
    for one, other in zip(*(network.parameters() for network in trained), strict=True):
        assert torch.equal(one, other)


def test_distill_leaves_the_teacher_as_it_was(options, photographs):
    teacher = builtin_teacher().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distill(sequential(), teacher, photographs, options, QUIET)
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_the_same_call_gives_the_finished_student_and_another_network_is_refused(
    options, photographs
):
    first = distill(sequential(), builtin_teacher(), photographs, options, QUIET)
    again = distill(sequential(), builtin_teacher(), photographs, options, QUIET)
    assert torch.equal(first.student[0].weight, again.student[0].weight)
    assert first.history == again.history and first.summary == again.summary
    with pytest.raises(
        ValueError, match=r"a run with other options \(student was 'Sequential of weights \w+'"
    ):
        distill(first.student, builtin_teacher(), photographs, options, QUIET)
    with pytest.raises(
        ValueError, match=r"teacher was 'RCAN of weights \w+', now 'RCAN of weights \w+'"
    ):
        distill(sequential(), create_model("rcan-a", 4), photographs, options, QUIET)


class NoNumbers(nn.Module):
    def forward(self, lr: Tensor) -> Tensor:
        return lr.round()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"student": "rcan-a"}, TypeError, "student must be a torch.nn.Module, got str"),
        ({"teacher": None}, TypeError, "teacher must be a torch.nn.Module, got NoneType"),
        ({"images": []}, ValueError, "images must hold at least one image, got none"),
        ({"images": [torch.rand(3, 40, 40)]}, TypeError, "image 0 must be of uint8, got torch.fl"),
        ({"images": [np.zeros((3, 40, 40), np.uint8)]}, ValueError, r"got \[3, 40, 40\]"),
        ({"images": [3]}, TypeError, r"must be a tensor \[3, H, W\] or an array .*, got int"),
        ({"student": sequential(8)[:2]}, ValueError, "student must turn an image"),
        ({"student": NoNumbers()}, ValueError, "student NoNumbers has no parameter to train"),
        ({"images": Path("nowhere")}, ValueError, "nowhere does not exist"),
    ],
)
def test_distill_refuses_what_it_cannot_use(given, error, message, options, photographs):
    arguments = {"student": sequential(), "teacher": builtin_teacher(), "images": photographs}
    with pytest.raises(error, match=message):
        distill(**(arguments | given), options=options, console=QUIET)
    assert not options.out.exists()


def test_images_smaller_than_a_patch_are_refused(options):
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"image 0 is 40x20 pixels, needs at least 32 on each sid"):
        distill(sequential(), builtin_teacher(), [image], options, QUIET)
    assert not options.out.exists()
