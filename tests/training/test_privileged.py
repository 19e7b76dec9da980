"""A method that trains its own teacher: the order of things, resumes, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from mkdext._system.terminal import Terminal
from mkdext.methods.pisr import privileged_loss
from mkdext.models import adapt, builtin_teacher, features_at
from mkdext.train import main, parse
from mkdext.training import NonFiniteError, TrainOptions, distill
from mkdext.training.assembly import Networks
from mkdext.training.checks import estimate_memory
from mkdext.training.setup import make_networks, open_photographs, prepare
from mkdext.training.sources import Photographs
from mkdext.training.stages import PrivilegedNetwork, PrivilegedStage, StudentStage
from mkdext.training.step import Batch

STEPS = {stage: stage.take for stage in (PrivilegedStage, StudentStage)}
TEACHER = "checkpoints/privileged_teacher.safetensors"


@pytest.fixture(scope="module")
def pisr(flags, tmp_path_factory) -> list[str]:
    """Flags of a training of a student so small that it takes no time."""
    file = tmp_path_factory.mktemp("networks") / "small_network.py"
    file.write_text(
        "from torch import nn\n\n"
        "def make():\n"
        "    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 48, 3, padding=1)\n"
        "    return nn.Sequential(*layers, nn.PixelShuffle(4))\n"
    )
    student = ["--student", f"{file}:make", "--student-points", "0", "2"]
    short = ["--iterations", "5", "--privileged-iterations", "4", "--checkpoint-every", "2"]
    return [*flags, "--method", "pisr", *student, *short]


@pytest.fixture
def options(pisr, tmp_path) -> TrainOptions:
    return parse([*pisr, "--out", str(tmp_path / "run")]).options()


@pytest.fixture(scope="module")
def seen() -> list[tuple[str, int, torch.Tensor, dict[str, torch.Tensor]]]:
    """What the steps of `reference` were given: kind, number, low resolution, trained weights."""
    return []


@pytest.fixture(scope="module")
def reference(tmp_path_factory, pisr, seen) -> Path:
    """A run that nothing interrupts, not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "reference"

    def watched(kind, name):
        def call(self, step, batch):
            network = self.network.state_dict()
            seen.append((name, step, batch.low, {n: t.clone() for n, t in network.items()}))
            return STEPS[kind](self, step, batch)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivilegedStage, "take", watched(PrivilegedStage, "network"))
        patch.setattr(StudentStage, "take", watched(StudentStage, "student"))
        assert main([*pisr, "--out", str(run)]) == 0
    return run


MEASURED = ("patches_per_second", "peak_bytes")


def records(run: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{n: v for n, v in line.items() if n not in MEASURED} for line in lines]


def test_the_student_starts_from_the_decoder_of_a_teacher_trained_before(reference, seen):
    trained = [(name, step) for name, step, lr, _ in seen if not lr.is_meta]
    teaching = [("network", step) for step in range(4)]
    assert trained == teaching + [("student", step) for step in range(5)]
    before, start = (
        next(weights for kind, step, lr, weights in seen if (kind, step, lr.is_meta) == wanted)
        for wanted in (("network", 0, False), ("student", 0, False))
    )
    teacher = load_file(reference / TEACHER)
    assert {n.removeprefix("decoder.") for n in teacher if n.startswith("decoder.")} == set(start)
    assert all(torch.equal(teacher[f"decoder.{name}"], start[name]) for name in start)
    name = "decoder.network.0.weight"
    assert not torch.equal(teacher[name], before[name])
    assert not torch.equal(teacher["encoder.0.weight"], before["encoder.0.weight"])


def test_the_teacher_learns_from_the_batches_of_the_student(reference, seen):
    batches = [
        {step: lr for kind, step, lr, _ in seen if kind == name and not lr.is_meta}
        for name in ("network", "student")
    ]
    assert all(torch.equal(batches[0][step], batches[1][step]) for step in range(4))


def test_with_a_cache_it_learns_from_the_crops_of_all_others_and_keeps_nothing(options, tmp_path):
    folder, terminal = tmp_path / "cache", Terminal(quiet=True)
    options = dataclasses.replace(
        options, teacher_cache=folder, teacher_cache_keeps="maps", teacher_cache_crops=2
    )
    batches = []
    for method in ("pisr", "vanilla"):
        training = prepare(dataclasses.replace(options, method=method).resolved())
        source = open_photographs(training, None, terminal)
        assert isinstance(source, Photographs)
        batches.append(next(source.batches(3, 4))[:2])
    torch.testing.assert_close(*batches, rtol=0, atol=0)
    assert not folder.exists()


def test_a_run_tells_of_the_teacher_by_names_of_its_own(reference):
    summary = json.loads((reference / "summary.json").read_text())
    assert set(summary["validation"]["photographs"]) == {
        "bicubic",
        "student",
        "privileged_teacher",
    }
    assert summary["privileged_teacher"]["iterations"] == 4
    assert summary["privileged_teacher"]["seconds"] > 0
    teacher, student = summary["privileged_teacher"]["parameters"], summary["parameters"]
    assert teacher - student == 3 * 25 * 56 + 56 * 25 * 56 + 56 * 9 * 12 + 12 * 9 * 3 + 127 + 3
    lines = records(reference)
    teaching = [line for line in lines if "privileged_step" in line]
    assert [line["privileged_step"] for line in teaching] == [1, 2, 3, 4]
    assert all(line["step"] == 0 and "reconstruction" not in line for line in teaching)
    learning = [line for line in lines if "reconstruction" in line]
    assert [line["step"] for line in learning] == [1, 2, 3, 4, 5]
    assert all(line["distillation"] and line["gap"] > 0 for line in learning)


@pytest.mark.slow
def test_a_run_that_ends_early_anywhere_comes_to_the_same_weights(
    reference, pisr, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"

    def end_at(kind, number, by) -> int:
        def ending(self, step, batch):
            if step == number and not batch.low.is_meta:
                by()
            return STEPS[kind](self, step, batch)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "take", ending)
            return main([*pisr, "--out", str(run)])

    def fail() -> None:
        raise NonFiniteError("a loss is nan")

    assert end_at(PrivilegedStage, 1, fail) == 1  # before any checkpoint
    assert "step 2 of the privileged teacher: a loss is nan. Lower --lr" in capsys.readouterr().err
    stop = 128 + signal.SIGTERM
    assert end_at(PrivilegedStage, 2, lambda: os.kill(os.getpid(), signal.SIGTERM)) == stop
    assert "stopped after step 3 of the privileged teacher; the same" in capsys.readouterr().err
    assert end_at(StudentStage, 1, fail) == 1  # of the student there is no checkpoint
    assert "continuing after step 3 of 4 of the privileged teacher" in capsys.readouterr().out
    assert end_at(StudentStage, 3, fail) == 1
    # As one does who finds it damaged: the teacher is trained again, the student goes on.
    (run / "checkpoints/privileged_teacher.pt").unlink()
    assert main([*pisr, "--out", str(run)]) == 0
    for weights in (TEACHER, "checkpoints/student.safetensors"):
        assert (run / weights).read_bytes() == (reference / weights).read_bytes()
    in_order = sorted(records(run), key=lambda line: (line["step"], line.get("privileged_step", 0)))
    assert in_order == records(reference)


def test_hints_are_the_decoders_maps_of_what_the_encoder_makes_of_high_resolution(options):
    training = prepare(options.resolved())
    (stage,), teacher = training.student_stages, training.teacher
    stage.begin(None)
    torch.manual_seed(0)
    low, high = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        encoded = teacher.network.encoder(high)
        expected = features_at(teacher.network.decoder, stage.step.distillation.points, encoded)
    hints = teacher(low, high).maps
    assert len(hints) == 2 and all(map(torch.equal, hints, expected))
    assert all(map(torch.equal, hints, teacher(low * float("nan"), high).maps))


def test_a_step_of_the_teacher_descends_its_loss_by_adam(options):
    options = dataclasses.replace(options, optimizer="adam", lr=1e-3, warmup=0).resolved()
    stage = prepare(options.resolved()).stages[0]
    network = stage.network
    torch.manual_seed(0)
    low, high = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    encoded = network.encoder(high)
    loss, reconstruction, imitation = privileged_loss(network.decoder(encoded), high, encoded, low)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    values = stage.take(0, Batch(low, high))
    torch.testing.assert_close(values["privileged_reconstruction"], reconstruction.detach())
    torch.testing.assert_close(values["privileged_imitation"], imitation.detach())
    for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
        # The first step of Adam is the learning rate along the sign of the gradient.
        step = -1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter, before[name] + step, rtol=0, atol=1e-5)


def test_the_teacher_has_the_layout_of_its_student(options):
    options = dataclasses.replace(options, student="edsr-s", student_points=())
    training = prepare(options.resolved())
    for network in (training.networks.student, training.teacher.network):
        weights = [p for p in network.parameters() if p.ndim == 4]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_the_memory_estimate_covers_the_training_of_the_teacher(options):
    memory = []
    for method in ("pisr", "vanilla"):
        changed = dataclasses.replace(options, method=method, batch_size=16).resolved()
        memory.append(estimate_memory(changed, make_networks(changed)))
    # The map of the encoder's first layer before and after its PReLU, and the gradient of one, for
    # 16 high-resolution patches; at work the encoder keeps two at a time.
    wide = 16 * 4 * 56 * 32 * 32
    assert memory[0] - memory[1] > 3 * wide


def test_a_dry_run_shows_the_teachers_training(pisr, tmp_path, capsys):
    assert main([*pisr, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "privileged_iterations: 4" in shown and "privileged teacher" in shown
    assert "is trained for 4 steps, then the student" in " ".join(shown.split())
    assert not (tmp_path / "run").exists()


def test_the_teacher_is_trained_as_long_as_the_student_by_default():
    with pytest.raises(ValueError, match="`privileged_iterations` must be at least 1, got 0"):
        TrainOptions(privileged_iterations=0)
    assert TrainOptions(method="pisr", iterations=7).resolved().privileged_iterations == 7


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--teacher", "builtin"], "--teacher: --method pisr trains a teacher of its own, made of"),
        (["--teacher-weights", "t.pt"], "leave out --teacher-weights t.pt"),
        (["--teacher-points", "body.0", "body.1"], "whose points are the student's; leave out --t"),
        (
            ["--student-points", "bdy.0"],
            "--student-points: distillation point 'bdy.0' is not a sub-",
        ),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(given, reason, pisr, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*pisr, *given, "--out", str(out)]) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()


class Sharpener(nn.Sequential):
    """Sharpens an enlarged Y image."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))


class Detached(Sharpener):
    def forward(self, y):
        return super().forward(y.detach())


class Rounded(Sharpener):
    def forward(self, y):
        return super().forward((255 * y).round() / 255)


def networks(student: nn.Module) -> Networks:
    return Networks(adapt(student, 4, "`student`"), {})


def test_a_network_of_enlarged_luma_can_be_the_decoder(options):
    torch.manual_seed(0)
    options = dataclasses.replace(options, student_points=("0", "2")).resolved()
    student = Sharpener()
    nn.init.zeros_(student[2].weight)  # as a network that begins as the identity
    training = prepare(options.resolved(), networks(student))
    network = training.teacher.network
    assert isinstance(network, PrivilegedNetwork)
    low, high = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    encoded = network.encoder(high)
    loss = functional.l1_loss(network.decoder(encoded), high)
    assert torch.autograd.grad(loss, network.encoder[0].weight)[0].any()
    teaching, learning = training.stages
    batch = Batch(low, high, scale=4)
    losses = [float(teaching.take(0, batch)["privileged_reconstruction"]) for _ in range(5)]
    assert losses[-1] < losses[0]
    learning.begin(None)
    assert learning.take(0, batch)["distillation"].isfinite()


@pytest.mark.parametrize(
    ("student", "points", "reason"),
    [
        (Detached, ("0", "2"), "student Detached must pass a gradient to its image, .* arrives"),
        (Rounded, ("0", "2"), "student Rounded must pass a gradient .*: no gradient arrives"),
    ],
)
def test_a_network_that_cannot_be_a_decoder_is_refused(student, points, reason, options):
    options = dataclasses.replace(options, student_points=points)
    with pytest.raises(ValueError, match=reason):
        prepare(options.resolved(), networks(student()))


def test_networks_given_as_objects_are_refused(options):
    images = [np.zeros((40, 40, 3), np.uint8)]
    student = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))
    with pytest.raises(ValueError, match=r"distill: `method` pisr trains a teacher of its own and"):
        distill(student, builtin_teacher(), images, options)
    assert not options.out.exists()
