"""The command as a user meets it: results, interruptions, bad input."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from mkdext.models import create_model
from mkdext.train import main, parse
from mkdext.training import TrainOptions, train
from mkdext.training.options_file import config_of
from mkdext.training.run.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "student.safetensors").read_bytes()


def losses(run: Path) -> list[tuple[int, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["step"], r["reconstruction"]) for r in records if "reconstruction" in r]


def start(arguments: list[str], **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "mkdext.train", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, flags) -> Path:
    """A run that nothing interrupts, not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    assert main([*flags, "--out", str(run)]) == 0
    return run


def test_a_run_leaves_all_that_was_promised(reference, photographs, capsys):
    summary = json.loads((reference / "summary.json").read_text())
    assert summary["method"] == "mkd"
    assert summary["parameters"] == 49_799
    assert (summary["scale"], summary["seed"], summary["iterations"]) == (4, 0, 12)
    assert summary["seconds"] > 0
    scores = summary["validation"]["photographs"]
    assert set(scores) == {"bicubic", "student", "teacher"}
    assert all(0 < s["psnr_y"] < 60 and -1 < s["ssim_y"] <= 1 for s in scores.values())
    assert [step for step, _ in losses(reference)] == list(range(1, 13))
    for name in ("config.yaml", "summary.png", "checkpoints/state.pt", "samples/step_0000012.png"):
        assert (reference / name).stat().st_size > 0
    names = create_model("rcan-a", 4).state_dict().keys()
    assert load_file(reference / "checkpoints/student.safetensors").keys() == names
    with Image.open(reference / "samples/step_0000012.png") as strip:
        assert strip.width == 4 * strip.height


def test_the_end_of_a_run_shows_how_far_the_measuring_has_come(flags, tmp_path):
    shown = io.StringIO()
    options = parse([*flags, "--iterations", "1", "--out", str(tmp_path)]).options()
    train(options, Console(file=shown, force_terminal=True))
    assert "measuring teacher on photographs" in shown.getvalue()


def test_the_method_learns_from_the_meta_gradient(reference):
    records = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    gradients = [r["meta_gradient"] for r in records if "meta_gradient" in r]
    # A meta step every second step; the last one's values are logged at each.
    assert gradients[0::2] == gradients[1::2]
    assert len(set(gradients)) == 6 and min(gradients) > 0
    assert all(
        r["kernel_norm"] == pytest.approx(1, abs=1e-4) for r in records if "kernel_norm" in r
    )


def test_a_finished_run_is_left_alone(reference, flags, capsys):
    before = weights(reference)
    assert main([*flags, "--out", str(reference)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert weights(reference) == before


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(reference, flags, tmp_path):
    run = tmp_path / "killed"
    randomness = random.Random(0)
    kills = 0
    while kills < 2:
        process = start([*flags, "--out", str(run)])
        steps = kills * 6 + randomness.randint(1, 4)
        while process.poll() is None and lines_of_losses(run) < steps:
            time.sleep(0.005)
        assert process.poll() is None, process.stdout.read()
        time.sleep(randomness.random() * 0.05)
        process.kill()
        process.communicate()
        kills += 1
    process = start([*flags, "--out", str(run)])
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "continuing after step" in output
    assert weights(run) == weights(reference)
    assert losses(run) == losses(reference)


def lines_of_losses(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"reconstruction"') if metrics.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_how_to_go_on_and_does(number, reference, flags, tmp_path):
    run = tmp_path / "stopped"
    process = start([*flags, "--out", str(run)])
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.005)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == 128 + number, output
    assert "the same command continues" in output
    assert main([*flags, "--out", str(run)]) == 0
    assert weights(run) == weights(reference)


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoint(reference, flags, tmp_path):
    run = tmp_path / "full"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1));"
    script = f"{limit} from mkdext.train import main; sys.exit(main(sys.argv[1:]))"
    state = (reference / "checkpoints/state.pt").stat().st_size
    assert state > 500_000 > len(weights(reference))
    command = [sys.executable, "-c", script, *flags, "--out", str(run)]
    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == 1
    assert "make room, then give the same command again" in full.stderr
    assert "Traceback" not in full.stderr
    assert main([*flags, "--out", str(run)]) == 0
    assert weights(run) == weights(reference)


def test_resume_needs_only_the_run(reference, flags, tmp_path, capsys):
    assert main(["--resume", "--out", str(reference)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["--resume", "--out", str(tmp_path / "none")]) == 2
    assert "there is no run" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_goes_on_where_the_run_is(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mkdext.train.BUILTIN_DEMO", TrainOptions(out=Path("runs/short")))
    run = tmp_path / "runs" / "short"
    with RunDirectory(run).opened(config_of(parse(flags).options().resolved())):
        pass
    assert main(["--resume"]) == 0
    assert (run / "summary.json").exists()
    assert main(["--resume", "--config", str(run / "config.yaml")]) == 2
    assert "leave --config out" in capsys.readouterr().err


def test_two_trainings_in_one_folder_are_refused(flags, tmp_path, capsys):
    run = tmp_path / "run"
    with RunDirectory(run).opened(config_of(parse(flags).options().resolved())):
        assert main([*flags, "--out", str(run)]) == 2
    assert "is in use by another training" in capsys.readouterr().err


def test_a_damaged_or_missing_configuration_is_told(reference, flags, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "config.yaml").write_text("- a")
    assert main([*flags, "--out", str(run)]) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err
    (run / "config.yaml").unlink()
    assert main([*flags, "--out", str(run)]) == 2
    assert "holds a run without config.yaml; give another --out" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_told_with_the_cause(reference, flags, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "summary.json").unlink()
    (run / "checkpoints/state.pt").write_bytes(b"")
    assert main([*flags, "--out", str(run)]) == 2
    assert (
        "state.pt is damaged (File is not a zip file): delete it to start again"
        in capsys.readouterr().err
    )


def test_a_run_of_other_options_is_refused(reference, flags, capsys):
    before = weights(reference)
    assert main([*flags, "--out", str(reference), "--lr", "3e-4"]) == 2
    message = capsys.readouterr().err
    assert "lr was 0.004, now 0.0003" in message
    assert weights(reference) == before
    assert main([*flags, "--out", str(reference), "--mkd.kernel-size", "5"]) == 2
    assert "run with other options (mkd.kernel_size was 3, now 5):" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_with_step_and_cause(flags, tmp_path, capsys):
    run = tmp_path / "nan"
    assert main([*flags, "--lr", "1e20", "--out", str(run), "--method", "vanilla"]) == 1
    message = capsys.readouterr().err
    assert "step 2" in message
    assert "reconstruction is" in message or "student gradient is" in message
    assert "Lower --lr" in message
    assert not (run / "summary.json").exists()


@pytest.mark.slow
def test_a_dry_run_writes_nothing(estimated, flags, tmp_path, capsys):
    assert main([*flags, "--dry-run", "--out", str(tmp_path / "dry")]) == 0
    shown = capsys.readouterr().out
    assert "49,799" in shown
    assert "memory of a step" in shown
    assert not (tmp_path / "dry").exists()


def test_a_dry_run_looks_at_the_photographs_to_measure_on(flags, photographs, tmp_path, capsys):
    twice = ["--val-dir", str(photographs), str(photographs)]
    assert main([*flags, *twice, "--dry-run", "--out", str(tmp_path / "dry")]) == 2
    assert "--val-dir has two folders called 'photographs'" in capsys.readouterr().err


@pytest.mark.slow
def test_vanilla_and_distilled_students_begin_alike_and_see_the_same_patches(flags, tmp_path):
    first = {}
    for method in ("vanilla", "mkd"):
        run = tmp_path / method
        given = ["--method", method, "--imitation", "0"]
        assert main([*flags, "--out", str(run), *given]) == 0
        first[method] = losses(run)[0]
    assert first["vanilla"] == first["mkd"]


@pytest.mark.parametrize(
    "extra",
    [
        ["--meta.mode", "replayed", "--meta.steps", "2"],
        ["--meta.inner-optimizer", "adam", "--meta.steps", "2"],
        ["--meta.no-rollback", "--meta.closing-step", "True", "--meta.kappa", "0"],
        ["--hint-share", "0.5", "--mkd.no-detach-kernels", "--mkd.no-relative"],
        ["--mkd.correlation", "raw", "--mkd.softmax-over", "teacher", "--no-kd-fade"],
        [
            "--optimizer",
            "muon",
            "--kd-ratio",
            "0.5",
            "--mkd.centred",
            "--student-dtype",
            "bfloat16",
        ],
        ["--kd-maps", "raw", "--meta.no-rollback", "--method", "l2t-ww", "--optimizer", "muon"],
    ],
)
def test_every_option_of_the_method_trains(flags, tmp_path, extra):
    run = tmp_path / "run"
    assert main([*flags, *extra, "--iterations", "4", "--out", str(run)]) == 0
    assert len(losses(run)) == 4


class Malice:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def broken(case: str, folder: Path) -> list[str]:
    """Make what a case needs and return its flags."""
    if case == "empty folder":
        (folder / "empty").mkdir()
        return ["--train-dir", str(folder / "empty")]
    if case == "no folder":
        return ["--train-dir"]
    if case == "missing folder":
        return ["--train-dir", str(folder / "nowhere")]
    if case == "text as picture":
        (folder / "letters").mkdir()
        (folder / "letters/letter.png").write_text("dear reader")
        return ["--train-dir", str(folder / "letters")]
    if case == "output among photographs":
        (folder / "out").mkdir()
        Image.new("RGB", (80, 80)).save(folder / "out" / "black.png")
        return ["--train-dir", str(folder / "out")]
    if case == "output below photographs to measure on":
        Image.new("RGB", (80, 80)).save(folder / "black.png")
        return ["--val-dir", str(folder)]
    if case == "large patch":
        return ["--patch-size", "17"]
    if case == "truncated weights":
        whole = folder / "whole.safetensors"
        save_file(create_model("rcan-a", 4).state_dict(), whole)
        (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:5000])
        return ["--teacher-weights", str(folder / "cut.safetensors")]
    if case == "weights of another scale":
        save_file(create_model("rcan-a", 2).state_dict(), folder / "x2.safetensors")
        return ["--teacher-weights", str(folder / "x2.safetensors")]
    if case == "weights of another network":
        save_file({"conv.weight": torch.zeros(3)}, folder / "other.safetensors")
        return ["--teacher-weights", str(folder / "other.safetensors")]
    if case == "pickle with code":
        torch.save(Malice(folder / "executed"), folder / "malice.pt")
        return ["--teacher-weights", str(folder / "malice.pt")]
    if case == "unknown student":
        return ["--student", "rcan-d"]
    if case == "unknown device":
        return ["--device", "gpu"]
    if case == "no cuda":
        return ["--device", "cuda:99"]
    if case == "file as output":
        (folder / "file").touch()
        return ["--out", str(folder / "file" / "run")]
    return []


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty folder", "holds no image"),
        ("no folder", "--train-dir must name at least one folder"),
        ("missing folder", "does not exist"),
        ("text as picture", "letter.png"),
        ("output among photographs", "among whose photographs its pictures would count; give an"),
        ("output below photographs to measure on", "lies in"),
        ("large patch", "needs at least 68"),
        ("large patch", "take a smaller --patch-size (now 17)"),
        ("truncated weights", "cut.safetensors"),
        ("weights of another scale", "x2"),
        ("weights of another network", "architecture"),
        ("pickle with code", "malice.pt"),
        ("unknown student", "rcan-d"),
        ("unknown device", "--device must be cpu, cuda or cuda:N, got 'gpu'"),
        ("no cuda", "use --device cpu"),
        ("file as output", "cannot be written"),
    ],
)
def test_bad_input_gets_one_clear_message_before_any_work(case, message, flags, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [*flags, "--out", str(out), *broken(case, tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mkdext.train: ")
    assert message in error
    assert not (out / "config.yaml").exists()
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_what_does_not_fit_into_memory_is_refused(estimated, flags, tmp_path, capsys):
    large = ["--batch-size", "1000000", "--patch-size", "16"]
    for many, advice in (
        (large, "lower --batch-size or --patch-size, or take"),
        (["--meta.steps", "100000000"], "or --patch-size, --meta.steps (now 100000000), or take"),
    ):
        assert main([*flags, *many, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "a step needs about" in error and advice in error
        assert not (tmp_path / "out").exists()


def test_broken_photographs_are_left_out_when_asked(flags, photographs, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(photographs, mixed)
    (mixed / "letter.png").write_text("dear reader")
    skip = ["--train-dir", str(mixed), "--bad-images", "skip", "--iterations", "1"]
    assert main([*flags, *skip, "--out", str(tmp_path / "run")]) == 0
    assert "letter.png" in capsys.readouterr().out
