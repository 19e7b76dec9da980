"""Data-free runs that are extended, and checkpoints of theirs that are edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mkdext._system.terminal import Terminal
from mkdext.datafree import main, parse
from mkdext.models import read_metadata
from mkdext.training.run.directory import RunDirectory
from mkdext.training.setup import prepare
from mkdext.training.trainer import Trainer, begun


@pytest.fixture(scope="module")
def one_stage(flags) -> list[str]:
    """Flags of a training in which nothing falls along a cosine and nothing grows."""
    return [*flags, "--stages", "1", "--lr", "1e-4", "--lr-min", "1e-4", "--iterations", "4"]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory) -> Path:
    """A run of two stages at its end, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*flags, "--iterations", "4", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_where_nothing_falls_a_run_that_was_extended_is_one_of_that_length(
    one_stage, tmp_path, capsys
):
    extended, whole = tmp_path / "extended", tmp_path / "whole"
    assert main([*one_stage, "--out", str(extended)]) == 0
    assert main([*one_stage, "--iterations", "6", "--out", str(extended)]) == 2
    assert f"--resume --out {extended} --iterations 6 goes on with these" in capsys.readouterr().err
    assert main(["--resume", "--out", str(extended), "--iterations", "6"]) == 0
    said = capsys.readouterr().out
    assert "from step 4 on: iterations was 4, now 6" in said and "on the cosine of 6 steps" in said
    assert main([*one_stage, "--iterations", "6", "--out", str(whole)]) == 0
    tensors, others = (load_file(o / "checkpoints/student.safetensors") for o in (extended, whole))
    assert all(torch.equal(tensors[name], other) for name, other in others.items())
    history = [{"step": 4, "iterations": [4, 6]}]
    assert json.loads((extended / "summary.json").read_text())["changes"] == history
    origin = read_metadata(extended / "checkpoints/student.safetensors").origin
    assert origin["changes"] == history


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--iterations", "8"], "--iterations cannot change, because its stages would begin at"),
        (["--stages", "1"], "--stages cannot change, because the student has grown by them"),
        (["--source", "procedural"], "--source cannot change, because the steps so far were taken"),
        (["--generator.every", "1"], "--generator.every cannot change, because the steps so far"),
    ],
)
def test_what_cannot_change_is_named_with_the_reason(given, reason, finished, capsys):
    assert main(["--resume", "--out", str(finished), *given]) == 2
    assert reason in capsys.readouterr().err


def test_rates_and_folders_change_in_a_run_of_stages(finished, photographs, tmp_path, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished, run)
    shutil.copytree(photographs, moved)
    given = ["--generator.lr", "1e-5", "--lr", "1e-4", "--val-dir", str(moved)]
    assert main(["--resume", "--out", str(run), *given]) == 0
    assert "generator.lr was 0.0001, now 1e-05" in capsys.readouterr().out
    assert list(json.loads((run / "summary.json").read_text())["validation"]) == ["moved"]


Edit = Callable[[dict[str, Any]], object]
EDITS: dict[str, tuple[Edit, str]] = {
    "another stage": (lambda s: s.update(stage=0), "'stage' must be from 1 to 1, got 0"),
    "beyond the end": (lambda s: s.update(step=5), "is of step 5, beyond the 4 steps asked for"),
    "no makers": (lambda s: s.pop("makers"), "it has no 'makers'"),
    "makers as a list": (lambda s: s.update(makers=[]), "it has no 2"),
    "another scale": (lambda s: s.update(makers={4: s["makers"][2]}), "it has no 2"),
    "no generator": (lambda s: s["makers"][2].pop("generator"), "it has no 'generator'"),
    "rows of another width": (
        lambda s: s["makers"][2]["bank"].update(rows=torch.zeros(2, 3)),
        "rows is float32 [2, 3], must be",
    ),
    "too few rows": (
        lambda s: s["makers"][2]["bank"].update(written=torch.tensor(99)),
        "the bank holds",
    ),
    "waiting as text": (lambda s: s["makers"][2].update(waiting="x"), "waiting is a str"),
    "optimizer of another": (
        lambda s: s["makers"][2]["optimizer"]["state"].update({999: {}}),
        "optimizer is of other parameters",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_checkpoint_is_told_with_what_is_wrong(name, finished, flags, tmp_path):
    change, message = EDITS[name]
    run = RunDirectory(tmp_path / "run")
    run.state.parent.mkdir(parents=True)
    state = torch.load(finished / "checkpoints/state.pt", weights_only=True)
    change(state)
    torch.save(state, run.state)
    training = prepare(parse([*flags, "--iterations", "4"]).options().resolved())
    stages, terminal = training.student_stages, Terminal(quiet=True)
    with pytest.raises(ValueError) as told:
        trainer = Trainer(training, stages, training.made, run, {}, terminal)
        trainer.run(*begun(run, stages, training.options))
    assert message in str(told.value) and "\n" not in str(told.value)
