"""Checkpoints that are damaged, edited or of another run: one sentence each."""

from __future__ import annotations

import dataclasses
import io
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mkdext.train import main
from mkdext.training import TrainOptions, train
from mkdext.training.assembly import Training
from mkdext.training.run.directory import RunDirectory
from mkdext.training.run.going_on import Done
from mkdext.training.setup import prepare
from mkdext.training.trainer import begun

State = dict[str, Any]


@pytest.fixture(scope="module")
def options(photographs) -> TrainOptions:
    """A meta knowledge distillation of three steps."""
    options = TrainOptions(
        train_dir=(photographs,), val_dir=(photographs,), iterations=3, batch_size=2, patch_size=8
    )
    return dataclasses.replace(options, mkd=dataclasses.replace(options.mkd, grid=2))


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory) -> RunDirectory:
    """Such a training at its end, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(dataclasses.replace(options, out=out), Console(quiet=True))
    return RunDirectory(out)


@pytest.fixture(scope="module")
def plan(options) -> Training:
    return prepare(options.resolved())


@pytest.fixture
def run(finished, tmp_path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.state.parent.mkdir(parents=True)
    shutil.copy(finished.state, run.state)
    return run


def edit(run: RunDirectory, change: Callable[[State], object]) -> None:
    state = torch.load(run.state, weights_only=True)
    change(state)
    torch.save(state, run.state)


def load_checkpoint(run: RunDirectory, training: Training) -> Done:
    """What a training does that goes on."""
    state, done = begun(run, training.student_stages, training.options)
    (stage,) = training.student_stages
    stage.begin(None)
    assert state is not None
    stage.load(state)
    return done


def test_a_checkpoint_is_read_as_it_was_written(run, plan):
    assert load_checkpoint(run, plan).step == 3


def test_no_flipped_bit_is_read_as_another_state(finished, plan, run):
    """Bits that no checksum covers, of names and padding, change nothing that is read."""
    right = run.checkpoint().load().content
    content = finished.state.read_bytes()
    places = random.Random(0)
    refused = 0
    for _ in range(60):
        place = places.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << places.randrange(8)
        run.state.write_bytes(flipped)
        try:
            state = run.checkpoint().load().content
        except ValueError as error:
            refused += 1
            assert "is damaged (" in str(error) and "delete it to start again" in str(error)
        else:
            assert all(torch.equal(state["student"][n], t) for n, t in right["student"].items())
    assert refused > 40


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02}.", b"text", bytes(1000)])
def test_what_is_no_checkpoint_is_told(content, run):
    run.state.write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.pt is damaged \("):
        run.checkpoint().load()


def test_a_cut_or_packed_checkpoint_is_told(run):
    content = run.state.read_bytes()
    run.state.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        run.checkpoint().load()
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as archive,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    run.state.write_bytes(packed.getvalue())
    with pytest.raises(ValueError, match="is damaged"):
        run.checkpoint().load()


def test_a_folder_or_pickled_code_is_told(run, tmp_path):
    class Code:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"step": Code()}, run.state)
    with pytest.raises(ValueError, match="is damaged"):
        run.checkpoint().load()
    assert not (tmp_path / "executed").exists()
    run.state.unlink()
    run.state.mkdir()
    with pytest.raises(ValueError, match="is a directory"):
        run.checkpoint().load()


def first(values: dict[Any, Any]) -> Any:
    return next(iter(values.values()))


def renamed(values: dict[Any, Any]) -> None:
    values["other"] = values.pop(next(iter(values)))


EDITS: dict[str, tuple[Callable[[State], object], str]] = {
    "no step": (lambda s: s.pop("step"), "it has no 'step'"),
    "step as text": (lambda s: s.update(step="3"), "'step' must be of type int, got str"),
    "step as a truth value": (lambda s: s.update(step=True), "'step' must be of type int"),
    "negative step": (lambda s: s.update(step=-1), "'step' must be at least 1, got -1"),
    "step beyond the end": (lambda s: s.update(step=4), "of step 4, beyond the 3 steps asked"),
    "no seconds": (lambda s: s.pop("seconds"), "it has no 'seconds'"),
    "endless": (lambda s: s.update(seconds=float("inf")), "'seconds' is inf"),
    "values as a list": (lambda s: s.update(values=[]), "'values' must be of type dict"),
    "a value as text": (lambda s: s["values"].update(lr="1"), "'values' has 'lr': '1'"),
    "no student": (lambda s: s.pop("student"), "it has no 'student'"),
    "student as a list": (lambda s: s.update(student=[]), "to be dict-like, got"),
    "another weight": (lambda s: renamed(s["student"]), 'Unexpected key(s) in state_dict: "other"'),
    "a weight as a number": (
        lambda s: s["student"].update({next(iter(s["student"])): 1}),
        "expected torch.Tensor",
    ),
    "another shape": (
        lambda s: s["student"].update(dict.fromkeys(s["student"], torch.zeros(3))),
        "is float32 [3], must be float32",
    ),
    "another type": (
        lambda s: s["student"].update({n: t.double() for n, t in s["student"].items()}),
        "is float64",
    ),
    "no method": (lambda s: s.pop("method"), "it has no 'method'"),
    "no optimizer": (lambda s: s.pop("optimizer"), "it has no 'optimizer'"),
    "optimizer as text": (lambda s: s.update(optimizer="adam"), "must hold names and values"),
    "no groups": (lambda s: s["optimizer"].update(param_groups=[]), "is of other parameters"),
    "a group as text": (
        lambda s: s["optimizer"].update(param_groups=["a"]),
        "must hold names and values",
    ),
    "other parameters": (
        lambda s: s["optimizer"]["param_groups"][0]["params"].pop(),
        "optimizer differs in 'params'",
    ),
    "another rule": (
        lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.5, 0.5)),
        "optimizer differs in 'betas'",
    ),
    "a rate as text": (
        lambda s: s["optimizer"]["param_groups"][0].update(lr="x"),
        "'lr' must be of type float",
    ),
    "moments of none": (
        lambda s: s["optimizer"]["state"].update({10_000: {}}),
        "optimizer is of other parameters",
    ),
    "another optimizer": (
        lambda s: s["optimizer"]["state"].update({0: {"momentum_buffer": torch.zeros(1)}}),
        "optimizer is of another optimizer",
    ),
    "moments of another shape": (
        lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
        "optimizer, exp_avg is float32 [2], must be",
    ),
    "moments as text": (
        lambda s: s["optimizer"]["state"][0].update(exp_avg="x"),
        "optimizer, exp_avg is a str",
    ),
    "negative count": (
        lambda s: s["optimizer"]["state"][0].update(step=torch.tensor(-1.0)),
        "optimizer has a step of -1.0",
    ),
    "another seed": (lambda s: s["options"].update(seed=5), "of another run (seed was 5, now 0)"),
    "options as a list": (lambda s: s.update(options=[]), "'options' must be of type dict"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_checkpoint_is_told_with_what_is_wrong(name, run, plan):
    change, message = EDITS[name]
    edit(run, change)
    with pytest.raises(ValueError) as told:
        load_checkpoint(run, plan)
    assert message in str(told.value) and "state.pt" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_state_that_is_no_mapping_is_told(run, plan):
    torch.save([1, 2], run.state)
    with pytest.raises(ValueError, match="must hold names and values, got list"):
        load_checkpoint(run, plan)


def test_a_checkpoint_from_before_options_were_kept_goes_on(run, plan):
    edit(run, lambda state: state.pop("options"))
    assert load_checkpoint(run, plan).step == 3


def test_the_command_ends_with_one_sentence(finished, tmp_path, capsys):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    run.summary.unlink()
    edit(run, lambda state: state["student"].popitem())
    assert main(["--resume", "--out", str(run.root)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "delete it to start again (until then student.safetensors beside it holds the" in error
