"""Which convolutions a run takes: chosen at its beginning, kept, told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from mkdext.models import builtin_teacher, convolutions
from mkdext.models.convolutions import convolutions_on
from mkdext.train import main
from mkdext.training import DataFreeOptions, TrainOptions, distill, train
from mkdext.training.run.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("has_winograd")
QUIET = Console(quiet=True)

NETWORK = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))
"""


@pytest.fixture(scope="module")
def options(photographs) -> TrainOptions:
    """A plain training of four steps."""
    return TrainOptions(
        train_dir=(photographs,),
        val_dir=(photographs,),
        method="vanilla",
        iterations=4,
        batch_size=2,
        patch_size=8,
        validate_every=4,
        checkpoint_every=2,
    )


def without_winograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "conv2d_algorithm", lambda *given: "stock")


def kept(out: Path) -> str:
    return torch.load(RunDirectory(out).state)["convolutions"]


def said(out: Path) -> str:
    return json.loads((out / "summary.json").read_text())["convolutions"]


def resume(out: Path, *flags: object) -> int:
    return main(["--resume", "--out", *map(str, (out, *flags))])


@pytest.mark.parametrize("stock", [False, True])
def test_a_run_says_which_convolutions_it_took(stock, options, tmp_path, capsys):
    name = "stock" if stock else "winograd"
    seen: list[str] = []

    def look(step: int, values: Mapping[str, float], student: nn.Module) -> None:
        seen.append(convolutions_on("cpu"))

    options = dataclasses.replace(options, stock_convolutions=stock, out=tmp_path)
    summary = train(options, callback=look)
    assert summary["convolutions"] == said(tmp_path) == kept(tmp_path) == name
    assert seen == 4 * [name] and convolutions_on("cpu") == "winograd"
    assert f"convolutions: {name}\n" in capsys.readouterr().out


def test_a_run_without_photographs_says_so_too(photographs, tmp_path):
    options = DataFreeOptions(
        source="procedural",
        iterations=1,
        batch_size=2,
        patch_size=8,
        val_dir=(photographs,),
        out=tmp_path,
    )
    assert train(options, QUIET)["convolutions"] == kept(tmp_path) == "winograd"


def test_without_compiled_operators_convolutions_are_stock(options, tmp_path, has_winograd):
    without_winograd(has_winograd)
    assert train(dataclasses.replace(options, out=tmp_path), QUIET)["convolutions"] == "stock"


@pytest.fixture
def run(options, tmp_path) -> Path:
    """A finished run of winograd convolutions."""
    out = tmp_path / "run"
    train(dataclasses.replace(options, out=out), QUIET)
    return out


def test_a_run_goes_on_with_its_convolutions(run, capsys, has_winograd):
    assert resume(run, "--iterations", 5) == 0
    assert kept(run) == said(run) == "winograd"
    # A run that had none goes on without, also where there are some now.
    state = torch.load(RunDirectory(run).state)
    torch.save({**state, "convolutions": "stock"}, RunDirectory(run).state)
    assert resume(run, "--iterations", 6) == 0
    assert kept(run) == said(run) == "stock"
    assert "convolutions: stock\n" in capsys.readouterr().out


def test_a_run_from_before_convolutions_were_kept_goes_on_with_stock_ones(run):
    state = torch.load(RunDirectory(run).state)
    del state["convolutions"], state["options"]["stock_convolutions"]
    torch.save(state, RunDirectory(run).state)
    config = RunDirectory(run).config
    lines = [line for line in config.read_text().splitlines() if "stock_convolutions" not in line]
    config.write_text("\n".join(lines))
    assert resume(run, "--iterations", 5) == 0
    assert kept(run) == said(run) == "stock"


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_run_whose_convolutions_are_missing_is_left_as_it_is(run, flags, capsys, has_winograd):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    without_winograd(has_winograd)
    assert resume(run, "--iterations", 5, *flags) == 2
    error = capsys.readouterr().err
    assert f"--out {run}: its steps so far were taken with winograd convolutions" in error
    assert "`python -m mkdext.doctor` shows why and the fix, or give another --out" in error
    now = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert {path: now[path] for path in before} == before


def test_the_flag_cannot_change(run, options, capsys):
    assert resume(run, "--iterations", 5, "--stock-convolutions") == 2
    error = capsys.readouterr().err
    assert "--stock-convolutions cannot change, because a run keeps its convolutions" in error
    changed = dataclasses.replace(options, out=run, stock_convolutions=True)
    with pytest.raises(ValueError, match="stock_convolutions was False, now True"):
        train(changed, QUIET)


def test_a_checkpoint_of_unknown_convolutions_is_told(run, capsys):
    state = torch.load(RunDirectory(run).state)
    torch.save({**state, "convolutions": "fast"}, RunDirectory(run).state)
    assert resume(run, "--iterations", 5) == 2
    assert "state.pt does not fit ('convolutions' is 'fast'): delete it" in capsys.readouterr().err


def test_a_teacher_of_the_method_has_the_convolutions_of_the_run(options, tmp_path):
    options = dataclasses.replace(
        options, method="pisr", privileged_iterations=2, iterations=2, out=tmp_path
    )
    train(options, QUIET)
    directory = RunDirectory(tmp_path)
    states = [torch.load(checkpoint.state) for checkpoint in directory.checkpoints]
    assert [state["convolutions"] for state in states] == ["winograd", "winograd"]
    # It was stopped between the two.
    for path in (directory.state, directory.student, directory.summary):
        path.unlink()
    teacher = directory.checkpoint("privileged_teacher").state
    torch.save({**states[0], "convolutions": "stock"}, teacher)
    assert train(options, QUIET)["convolutions"] == "stock"


def test_a_dry_run_says_which_convolutions_it_would_take(options, tmp_path, capsys, photographs):
    flags = ["--train-dir", photographs, "--method", "vanilla", "--out", tmp_path, "--dry-run"]
    assert main([*map(str, flags), "--stock-convolutions"]) == 0
    assert "convolutions: stock\n" in capsys.readouterr().out


def accelerated(network: nn.Module) -> bool:
    return any("_conv_forward" in vars(layer) for layer in network.modules())


def test_networks_of_the_users_are_accelerated(options, tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    student = f"{tmp_path / 'net.py'}:small"
    options = dataclasses.replace(options, student=student, out=tmp_path / "run", iterations=1)
    seen: list[bool] = []
    train(options, QUIET, callback=lambda step, values, student: seen.append(accelerated(student)))
    assert seen == [True]


def test_networks_given_as_objects_are_accelerated_meanwhile(options, photographs, tmp_path):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))
    options = dataclasses.replace(options, method="response", out=tmp_path, iterations=1)
    seen: list[bool] = []
    result = distill(
        student,
        builtin_teacher(),
        photographs,
        options,
        QUIET,
        callback=lambda step, values, student: seen.append(accelerated(student)),
    )
    assert seen == [True] and not accelerated(student)
    assert result.summary["convolutions"] == "winograd"
