"""Trainings whose network, method and loss are the user's, from the command."""

from __future__ import annotations

import json

import pytest
import yaml
from PIL import Image

from mkdext._system.terminal import Terminal
from mkdext.comparison import Comparison, write_report
from mkdext.datafree import main as datafree
from mkdext.inference import load_network
from mkdext.train import main
from mkdext.training import TrainOptions, train

CODE = """
import torch
from torch import nn
from mkdext.methods import DistillationMethod

def net(features, scale=4):
    last = nn.Conv2d(features, 3 * scale**2, 3, padding=1)
    first = nn.Conv2d(3, features, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), last, nn.PixelShuffle(scale))

class Means(DistillationMethod):
    def __init__(self, student_channels, teacher_channels, factor=1.0, meta=False):
        super().__init__(student_channels, teacher_channels)
        self.factor, self.meta = factor, meta
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, student, teacher):
        points = zip(student, teacher, strict=True)
        return self.factor * sum((self.gain * s.mean() - t.mean()).square() for s, t in points)

    def meta_parameters(self):
        return [self.gain] if self.meta else []

class Sums(Means):
    def forward(self, student, teacher):
        return student[0].sum((1, 2, 3))

class Counting(Means):
    def forward(self, student, teacher):
        loss = super().forward(student, teacher)
        return loss if loss.item() >= 0 else -loss

class Failing(Means):
    def forward(self, student, teacher):
        raise KeyError("point")

class Leaving(Means):
    def forward(self, student, teacher):
        raise SystemExit(3)

def doubled(sr, hr):
    return 2 * (sr - hr).abs().mean()

def reds(sr, hr):
    assert sr.shape[1] == hr.shape[1] == 3
    return (sr - hr)[:, 0].abs().mean()


def counted(sr, hr):
    loss = (sr - hr).abs().mean()
    return loss if loss.item() >= 0 else -loss
"""
SHORT = [
    *("--iterations", "2", "--batch-size", "2", "--patch-size", "8", "--log-every", "1"),
    *("--validate-every", "2", "--checkpoint-every", "2"),
    *("--train-dir", "photographs", "--val-dir", "photographs"),
]


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "photographs").mkdir()
    noise = Image.effect_noise((64, 64), 64).convert("RGB")
    noise.save(tmp_path / "photographs/noise.png")
    monkeypatch.chdir(tmp_path)


def values(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if "reconstruction" in (record := json.loads(line))]


def test_network_method_and_loss_come_from_a_file_with_options(tmp_path):
    given = [
        *("--student", "code.py:net", "--student-options", "features=5"),
        *("--student-points", "0", "--teacher-points", "body.0"),
        *("--method", "code.py:Means", "--method-options", "factor=0.5", "meta=true"),
        *("--loss", "code.py:doubled", *SHORT),
    ]
    assert main([*given, "--out", "run"]) == 0
    run = tmp_path / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["method"] == f"{tmp_path}/code.py:Means"
    assert config["loss"] == f"{tmp_path}/code.py:doubled"
    assert config["method_options"] == ["factor=0.5", "meta=true"]
    first = values(run)[0]
    assert first["meta_gradient"] > 0 and first["distillation"] > 0
    assert main([*given, "--loss", "l1", "--out", "plain"]) == 0
    doubled, plain = first["reconstruction"], values(tmp_path / "plain")[0]["reconstruction"]
    assert doubled == pytest.approx(2 * plain, rel=1e-5)
    student = load_network(run / "checkpoints/student.safetensors", 4, "code.py:net")
    assert student.model.unwrapped[0].out_channels == 5


def test_a_loss_from_a_file_sees_colours_of_a_student_of_y_too(tmp_path):
    given = ["--student", "vdsr-half", "--method", "vanilla", *SHORT]
    assert main([*given, "--loss", "code.py:reds", "--out", "reds"]) == 0
    assert values(tmp_path / "reds")[0]["reconstruction"] > 0


@pytest.mark.slow
def test_the_distillation_loss_has_the_factor_that_was_given(tmp_path):
    losses = []
    for factor in (1, 3):
        out = f"run-{factor}"
        given = ["--method", "code.py:Means", "--method-options", f"factor={factor}", *SHORT]
        assert main([*given, "--out", out]) == 0
        losses.append(values(tmp_path / out)[0]["distillation"])
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)


@pytest.mark.parametrize(
    "flags", ["--method code.py:Counting", "--method vanilla --loss code.py:counted"]
)
def test_code_that_needs_numbers_trains_with_unknown_memory(flags, capsys):
    given = [*flags.split(), *SHORT, "--out", "run"]
    assert main([*given, "--dry-run"]) == 0
    assert "memory of a step: not known" in " ".join(capsys.readouterr().out.split())
    assert main(given) == 0


@pytest.mark.slow
def test_the_file_of_a_method_and_of_a_loss_may_be_moved(tmp_path, capsys):
    given = ["--method", "code.py:Means", "--loss", "code.py:doubled", *SHORT, "--out", "run"]
    assert main(given) == 0
    (tmp_path / "new").mkdir()
    (tmp_path / "code.py").rename(tmp_path / "new/code.py")
    longer = ["--resume", "--out", "run", "--iterations", "3"]
    moved = [*longer, "--method", "new/code.py:Means", "--loss", "new/code.py:doubled"]
    assert main([*longer, "--method", "new/code.py:Sums"]) == 2
    assert "--method /" in capsys.readouterr().err
    assert main(moved) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["method"] == f"{tmp_path}/new/code.py:Means"
    assert config["changes"][0]["method"][0] == f"{tmp_path}/code.py:Means"


def test_weights_of_a_data_free_training_know_the_options_of_their_network(tmp_path):
    given = [
        "--student",
        "code.py:net",
        "--student-options",
        "features=5",
        "--source",
        "procedural",
    ]
    short = ["--iterations", "1", "--batch-size", "2", "--patch-size", "8"]
    assert datafree([*given, *short, "--val-dir", "photographs", "--out", "run"]) == 0
    student = load_network(tmp_path / "run/checkpoints/student.safetensors", None, "code.py:net")
    assert (student.scale, student.model.unwrapped[0].out_channels) == (4, 5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method code.py:Sums", "--method code.py:Sums must give a scalar tensor"),
        ("--method code.py:Failing", "code.py:Failing fails on maps"),
        ("--method code.py:Leaving", "code.py:Leaving fails on maps"),
        (
            "--method code.py:Means --method-options fcator=2",
            "has no option 'fcator'; did you mean",
        ),
        ("--method vanilla --method-options grid=2", "--method vanilla has none; leave them out"),
        ("--student code.py:net", "must need no arguments, but: missing a required argument"),
        (
            "--student rcan-a --student-options nf=8",
            "--student-options nf: they go with your own network",
        ),
        ("--teacher-options nf=8", "--teacher-options nf: they go with your own network"),
        ("--method-options grid", "--method-options must be name=value, such as features=64, got"),
        ("--loss code.py:net", "fails on pictures [2, 3, 48, 40]"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_training(flags, message, tmp_path, capsys):
    assert main([*flags.split(), *SHORT, "--out", "run"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_losses_could_be_chosen_goes_on(tmp_path):
    given = ["--method", "vanilla", *SHORT, "--out", "run"]
    assert main([*given, "--iterations", "2"]) == 0
    config = tmp_path / "run/config.yaml"
    content = yaml.safe_load(config.read_text())
    for name in ("loss", "student_options", "teacher_options", "method_options"):
        del content[name]
    config.write_text(yaml.safe_dump(content))
    assert main([*given, "--iterations", "4", "--resume"]) == 0
    assert [record["step"] for record in values(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_method_of_the_users_is_compared(tmp_path):
    options = TrainOptions(out=tmp_path / "comparison", teacher_points=("body.0",))
    comparison = Comparison(options, ["rcan-a"], ["vanilla", "code.py:Means"], [0])
    folders = [cell.options.out.parent.name for cell in comparison.cells()]
    assert folders == ["vanilla", "code.py_Means"]


@pytest.mark.slow
def test_a_comparison_of_a_network_with_options_ends_with_its_report(tmp_path):
    folder = (tmp_path / "photographs",)
    options = TrainOptions(
        student_options=("features=5",),
        **{"train_dir": folder, "val_dir": folder, "iterations": 1, "batch_size": 1},
        patch_size=8,
        out=tmp_path / "comparison",
    )
    methods = ["vanilla", "code.py:Means"]
    points = {"code.py:Means": {"student_points": ["0"], "teacher_points": ["body.0"]}}
    quiet = Terminal(quiet=True)
    for cell in Comparison(options, ["code.py:net"], methods, [0], points).cells():
        train(cell.options, quiet)
    write_report(options.out, quiet)
    assert "code.py:Means" in (options.out / "comparison.md").read_text()
    assert len(list(options.out.glob("crops_*.png"))) == 1


def test_options_of_the_network_are_the_same_for_all_methods():
    own = {"code.py:Means": {"student_options": ["features=5"]}}
    with pytest.raises(ValueError, match="`student_options` must be the same for all methods"):
        Comparison(TrainOptions(), ["code.py:net"], ["code.py:Means"], [0], own)
