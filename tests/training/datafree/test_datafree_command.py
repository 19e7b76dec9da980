"""The command as a user meets it: results, interruptions, bad input, and no photograph."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mkdext.datafree import main, parse
from mkdext.models import create_model, load_model
from mkdext.training.run import report
from mkdext.training.run.directory import RunDirectory
from mkdext.training.setup import prepare
from mkdext.training.step import Batch


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "student.safetensors").read_bytes()


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[dict]:
    """What was logged at each step, without what it took."""
    logged = [r for r in records(run) if "reconstruction" in r]
    return [
        {k: v for k, v in r.items() if k not in ("patches_per_second", "peak_bytes")}
        for r in logged
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, flags) -> Path:
    """A run that nothing interrupts, not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    assert main([*flags, "--out", str(run)]) == 0
    return run


def test_a_run_leaves_all_that_was_promised(reference):
    summary = json.loads((reference / "summary.json").read_text())
    assert (summary["method"], summary["source"], summary["scale"]) == ("vanilla", "mixed", 2)
    assert (summary["seed"], summary["iterations"], summary["seconds"] > 0) == (0, 12, True)
    assert summary["stages"] == [[0, 2], [6, 4]]
    scores = summary["validation"]["photographs"]
    assert set(scores) == {"bicubic", "student", "teacher"}
    assert all(0 < s["psnr_y"] < 60 and -1 < s["ssim_y"] <= 1 for s in scores.values())
    for name in ("config.yaml", "summary.png", "checkpoints/state.pt"):
        assert (reference / name).stat().st_size > 0
    sheets = sorted(path.name for path in (reference / "samples").iterdir())
    assert sheets == [f"x2_{step:07d}.png" for step in (0, 4, 8, 12)]
    with Image.open(reference / "samples" / sheets[0]) as sheet:
        assert sheet.size == (8 * 16, 3 * 16)  # Eight images of 8x8: low, student, teacher.
    student = load_model(reference / "checkpoints/student.safetensors")
    assert student.config == create_model("rcan-a", 2).config
    assert sum(p.numel() for p in student.parameters()) == summary["parameters"]


def test_losses_diversity_and_validation_are_logged(reference):
    logged = losses(reference)
    assert [r["step"] for r in logged] == list(range(1, 13))
    assert [r["stage"] for r in logged] == 6 * [0] + 6 * [1]
    of_generator = {"adversarial", "consistency", "contrastive"}
    of_generator |= {"image_diversity", "embedding_diversity"}
    assert not of_generator & logged[0].keys()  # The generator's step is every second.
    assert all(of_generator <= r.keys() for r in logged[1:])
    assert len({r["adversarial"] for r in logged[1:]}) == 6
    assert all(
        0 < r["image_diversity"] < 1 and 0 < r["embedding_diversity"] < 2 for r in logged[1:]
    )
    validated = {r["step"]: set(r["validation"]) for r in records(reference) if "validation" in r}
    assert validated == {step: {"made images", "photographs"} for step in (4, 8, 12)}


@pytest.mark.slow
def test_a_generator_that_is_never_trained_makes_the_same_images_without_what_trains_it(
    flags, tmp_path
):
    ends = []
    for every in ("0", "1000"):
        run = tmp_path / every
        assert main([*flags, "--generator.every", every, "--out", str(run)]) == 0
        assert not any("adversarial" in record for record in records(run))
        ends.append((losses(run), load_file(run / "checkpoints/student.safetensors")))
    (logged, tensors), (logged_before, tensors_before) = ends
    assert logged == logged_before
    assert all(torch.equal(tensors[name], tensors_before[name]) for name in tensors_before)
    state = torch.load(tmp_path / "0/checkpoints/state.pt", weights_only=True)
    assert "discriminator" not in state["makers"][2]


def test_a_finished_run_is_left_alone(reference, flags, capsys):
    before = weights(reference)
    assert main([*flags, "--out", str(reference)]) == 0
    assert main(["--resume", "--out", str(reference)]) == 0
    assert capsys.readouterr().out.count("is finished") == 2
    assert weights(reference) == before


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(reference, flags, tmp_path, monkeypatch):
    """Also where it was stopped at the moment of growth, step 6, and once more after that."""
    steps = (6, 9)
    add = RunDirectory.add_metrics

    def add_and_stop(self: RunDirectory, record: dict) -> None:
        add(self, record)
        if record["step"] in steps and "reconstruction" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "stopped"
    with monkeypatch.context() as context:
        context.setattr(RunDirectory, "add_metrics", add_and_stop)
        for _ in steps:
            assert main([*flags, "--out", str(run)]) == 128 + signal.SIGTERM
    assert main(["--resume", "--out", str(run)]) == 0
    assert weights(run) == weights(reference)
    assert losses(run) == losses(reference)


class Opened:
    """Pictures that the process opens to read, told by the interpreter itself."""

    SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".npy", ".bin", ".u8")

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event != "open" or self.paths is None:
            return
        path, mode, _ = arguments
        if str(path).lower().endswith(self.SUFFIXES) and "w" not in (mode or ""):
            self.paths.append(str(path))


@pytest.mark.slow
def test_no_photograph_is_opened_before_the_training_is_done(
    flags, photographs, tmp_path, monkeypatch
):
    flags = [flag for flag in flags if flag not in ("--val-dir", str(photographs))]
    held_out = [photographs / "smooth.png"]
    monkeypatch.setattr("mkdext.training.photographs.builtin_photographs", lambda split: held_out)
    opened = Opened()
    measured = []
    sets_of = report.validation_sets

    def measure(*arguments):
        measured.append(list(opened.paths))
        return sets_of(*arguments)

    monkeypatch.setattr(report, "validation_sets", measure)
    opened.paths = []
    try:
        assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    finally:
        paths, opened.paths = opened.paths, None
    assert measured == [[]]  # Once, after the last step, and until then nothing was opened.
    assert str(held_out[0]) in paths  # What would have been heard is heard now.
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["validation"]) == {"built-in"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ["--source", "generator", "--generator.noise", "persistent", "--generator.channels", "1"],
        ["--source", "procedural", "--patch-size", "9"],
        ["--contrastive.bank-every", "stage", "--contrastive.no-positive-in-denominator"],
        ["--weights.contrastive", "0", "--error", "squared", "--reduction", "sum"],
        ["--optimizer", "sgd", "--lr", "0.1"],
        ["--method", "response"],
        ["--method", "mkd", "--mkd.grid", "2", "--stages", "4"],
        ["--student", "vdsr-half", "--stages", "18", "--iterations", "18"],
        ["--method", "fitnet", "--student", "edsr-s", "--hint-share", "0.5"],
    ],
)
def test_every_option_trains_all_stages(extra, flags):
    options = parse([*flags, *extra]).options().resolved()
    training = prepare(options.resolved())
    (maker,) = training.made.makers.values()
    before = None
    for stage in training.stages:
        stage.begin(before)
        first = stage.schedule.first
        values = stage.take(first, Batch(maker.images(first), None, scale=2))
        assert values["student_gradient"] > 0
        if maker.generator:
            assert maker.improve(first, stage.network)["generator_gradient"] > 0
        maker.end_stage()
        before = stage


@pytest.mark.slow
def test_several_scales_are_trained_together(teachers, flags, photographs, tmp_path, monkeypatch):
    (tmp_path / "network.py").write_text(
        "from torch import nn\n\n\ndef sharpen():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(),"
        " nn.Conv2d(4, 1, 3, padding=1))\n"
    )
    monkeypatch.chdir(tmp_path)
    scales = ["--scale", "2", "3", "4", "--patch-size", "24", "--stages", "1"]
    scales += ["--teacher-weights", str(teachers["vdsr"]), "--student", "network.py:sharpen"]
    run = tmp_path / "run"
    assert main([*flags, *scales, "--iterations", "6", "--out", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scale"] == [2, 3, 4]
    assert set(summary["validation"]) == {f"photographs x{scale}" for scale in (2, 3, 4)}
    for scale, size in ((2, 24), (3, 16), (4, 12)):
        with Image.open(run / "samples" / f"x{scale}_0000000.png") as sheet:
            assert sheet.size == (8 * 48, 3 * 48) == (8 * size * scale, 3 * size * scale)
    state = torch.load(run / "checkpoints" / "state.pt", weights_only=True)
    rounds = [
        float(m["optimizer"]["state"][0]["step"])
        for m in state["makers"].values()
        if m["optimizer"]["state"]
    ]
    assert sum(rounds) == 3  # A step of one generator after every second of the student.


def test_a_collapsed_generator_is_told_with_what_to_change(flags, tmp_path, monkeypatch, capsys):
    make = torch.nn.init.kaiming_normal_

    def make_nothing(weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.init.zeros_(weight) if weight.shape[:2] == (3, 64) else make(weight)

    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", make_nothing)
    run = tmp_path / "run"
    assert main([*flags, "--out", str(run)]) == 1
    error = capsys.readouterr().err
    assert "step 2: the generator has collapsed: images are of one colour" in error
    assert "Lower --generator.lr (now 0.0001), raise --weights.contrastive (now 0.8)" in error
    assert "Traceback" not in error
    assert not (run / "summary.json").exists()


def test_a_loss_that_is_not_finite_stops_with_step_and_cause(flags, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*flags, "--lr", "1e20", "--warmup", "0", "--out", str(run)]) == 1
    error = capsys.readouterr().err
    assert "mkdext.datafree: step 2: " in error and "Lower --lr (now 1e+20)" in error


def test_sgd_has_learning_rates_of_its_own(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("optimizer: sgd\n")
    rates = [
        (options.lr, options.lr_min)
        for options in (
            parse([]),
            parse(["--optimizer", "sgd"]),
            parse(["--optimizer", "sgd", "--lr", "0.05"]),
            parse(["--config", str(file)]),
            parse(["--config", str(file), "--optimizer", "adam"]),
        )
    ]
    assert rates == [(4e-3, 4e-6), (0.1, 1e-4), (0.05, 1e-4), (0.1, 1e-4), (1e-3, 1e-5)]


@pytest.mark.slow
def test_sgd_also_cuts_the_gradients_of_a_methods_own_parameters(flags, tmp_path):
    sgd = ["--optimizer", "sgd", "--method", "fitnet", "--source", "procedural", "--stages", "1"]
    assert main([*flags, *sgd, "--out", str(tmp_path / "run")]) == 0
    state = torch.load(tmp_path / "run/checkpoints/state.pt", weights_only=True)
    moved = [s["momentum_buffer"] for s in state["optimizer"]["state"].values()]
    # Geometric sum of at most 0.4 a step, momentum 0.9, for student and method each.
    assert sum(m.square().sum() for m in moved).sqrt() < 2 * 0.4 / (1 - 0.9)


def test_options_that_need_stages_or_a_large_batch_do_not_hinder_the_estimate(estimated, flags):
    # It is made of one stage and few images.
    stages = ["--contrastive.bank-every", "stage"]
    batch = ["--batch-size", "5", "--procedural-share", "0.2"]
    assert prepare(parse([*flags, *stages, *batch]).options().resolved()).memory


def test_a_dry_run_shows_the_plan_and_writes_nothing(estimated, flags, tmp_path, capsys):
    assert main([*flags, "--dry-run", "--out", str(tmp_path / "dry")]) == 0
    shown = capsys.readouterr().out
    assert "student rcan-a, 2 parts, from step 0" in shown
    assert "memory bank x2: 15 images of 128 bytes, 1,920 bytes" in shown
    assert "memory of a step: about 0.0" in shown
    assert not (tmp_path / "dry").exists()
    assert main([*flags, "--dry-run", "--val-dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_what_does_not_fit_into_memory_is_refused(estimated, flags, tmp_path, capsys):
    many = ["--batch-size", "10000000", "--weights.contrastive", "0"]
    assert main([*flags, *many, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a step needs about" in error and "lower --batch-size" in error
    large = ["--contrastive.bank-bytes", str(10**15)]
    assert main([*flags, *large, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"--contrastive.bank-bytes {10**15} needs 1000000.0 GB" in error and "lower it" in error


def broken(case: str, folder: Path) -> list[str]:
    """Make what a case needs and return its flags."""
    if case == "teacher of another scale":
        save_file(create_model("rcan-a", 4).state_dict(), folder / "x4.safetensors")
        return ["--teacher-weights", str(folder / "x4.safetensors")]
    if case == "teacher of other channels":
        (folder / "net.py").write_text("from torch import nn\nnet = lambda: nn.Conv2d(4, 4, 1)\n")
        return ["--teacher", f"{folder / 'net.py'}:net", "--teacher-weights", "None"]
    if case == "teacher that rounds":
        (folder / "net.py").write_text(
            "import torch\n\nclass net(torch.nn.Conv2d):\n"
            "    def __init__(self):\n        super().__init__(1, 1, 1)\n"
            "    def forward(self, y):\n        return (super().forward(y) * 255).round() / 255\n"
        )
        return ["--teacher", f"{folder / 'net.py'}:net", "--teacher-weights", "None"]
    if case == "own network that grows":
        (folder / "net.py").write_text("from torch import nn\nnet = lambda: nn.Conv2d(1, 1, 1)\n")
        return ["--student", f"{folder / 'net.py'}:net"]
    if case == "missing weights":
        return ["--teacher-weights", str(folder / "nowhere.pt")]
    if case == "missing validation folder":
        return ["--val-dir", str(folder / "nowhere")]
    return {
        "too many stages": ["--stages", "5"],
        "small bank": ["--contrastive.bank-bytes", "255"],
        "several scales of one": ["--scale", "2", "3", "--patch-size", "24", "--stages", "1"],
        "no built-in teacher": ["--teacher-weights", "None"],
        "no cuda": ["--device", "cuda:99"],
    }[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("teacher of another scale", "x4"),
        ("teacher of other channels", "--teacher"),
        ("teacher that rounds", "teacher net must pass a gradient to its image, for a generator"),
        ("own network that grows", "--stages 2: Conv2d is your own network"),
        ("missing weights", "nowhere.pt"),
        ("missing validation folder", "nowhere"),
        ("too many stages", "--stages 5: RCAN has 4 groups, it can grow in at most as many"),
        (
            "small bank",
            "--contrastive.bank-bytes must be at least 256, 128 bytes for each of the 2",
        ),
        ("several scales of one", "the weights of --student RCAN serve for one scale"),
        ("no built-in teacher", "the built-in teacher is for scale 4 only"),
        ("no cuda", "use --device cpu"),
    ],
)
def test_bad_input_gets_one_clear_message_before_any_work(case, message, flags, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*flags, "--out", str(out), *broken(case, tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mkdext.datafree: ")
    assert message in error
    assert not out.exists()
