"""What a student begins from: weights of a file, parts of its teacher; and what is not trained."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from mkdext.comparison import Comparison
from mkdext.models import builtin_teacher, create_model, hand_down, read_metadata, save_model
from mkdext.train import main
from mkdext.training import (
    DataFreeOptions,
    MetaOptions,
    TrainingStopped,
    TrainOptions,
    distill,
    train,
)
from mkdext.training.setup import prepare

QUIET = Console(quiet=True)


@pytest.fixture
def options(photographs, tmp_path) -> TrainOptions:
    """A training of four steps."""
    return TrainOptions(
        train_dir=(photographs,),
        val_dir=(photographs,),
        method="vanilla",
        iterations=4,
        batch_size=2,
        patch_size=8,
        checkpoint_every=100,
        out=tmp_path / "run",
    )


@pytest.fixture
def file(tmp_path) -> Path:
    """Weights of another upsampler than the student's, a third of which fit."""
    path = tmp_path / "trained.safetensors"
    torch.manual_seed(7)
    save_model(path, create_model("rcan-b", 3), {})
    return path


def begun(options) -> dict[str, Tensor]:
    return prepare(options.resolved()).networks.student.state_dict()


def trained(options) -> dict[str, Tensor]:
    return load_file(options.out / "checkpoints/student.safetensors")


def stopped_at(step: int):
    def stop(done, values, student):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def test_what_fits_is_taken_and_the_rest_is_as_the_seed_draws_it(options, file):
    plain = begun(options)
    mine = begun(dataclasses.replace(options, student_weights=file))
    given = load_file(file)
    assert torch.equal(mine["head.0.weight"], given["head.0.weight"])
    assert torch.equal(mine["body.0.body.1.weight"], given["body.0.body.4.weight"])
    for name in ("tail.0.0.weight", "tail.0.2.bias"):
        assert torch.equal(mine[name], plain[name])


def test_a_file_that_is_missing_is_named_with_its_option(options, tmp_path):
    missing = tmp_path / "nowhere.pt"
    with pytest.raises(ValueError, match=r"`student_weights`: .*nowhere\.pt does not exist"):
        train(dataclasses.replace(options, student_weights=missing), QUIET)


def test_a_run_that_goes_on_needs_the_file_no_more(options, file, tmp_path):
    options = dataclasses.replace(options, student_weights=file, freeze=("head",))
    whole = dataclasses.replace(options, out=tmp_path / "whole")
    train(whole, QUIET)
    with pytest.raises(TrainingStopped):
        train(options, QUIET, callback=stopped_at(2))
    file.unlink()
    train(options, QUIET)
    torch.testing.assert_close(trained(options), trained(whole), rtol=0, atol=0)
    origin = read_metadata(whole.out / "checkpoints/student.safetensors").origin
    assert f"--student-weights {file}" in origin["command"]
    other = dataclasses.replace(options, student_weights=tmp_path / "other.pt", iterations=6)
    with pytest.raises(ValueError, match="`student_weights` cannot change, because the student be"):
        train(other, QUIET, resume=True)


def test_the_command_tells_what_it_took(options, file, photographs, tmp_path, capsys):
    given = ["--train-dir", photographs, "--val-dir", photographs, "--method", "vanilla"]
    given += ["--iterations", 1, "--batch-size", 1, "--patch-size", 8]
    given += ["--student-weights", file, "--freeze", "head", "body.*.body.1.bias"]
    said = (
        f"the student begins with weights of {file}: 50 of its 54 tensors",
        "left as they were, not in the file: tail.0.2.weight, tail.0.2.bias",
        "not trained: head.0.weight, head.0.bias, body.0.body.1.bias, body.1.body.1.bias",
    )
    for more in (["--dry-run"], []):
        assert main([*map(str, given), *more, "--out", str(tmp_path / "out")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(line in shown for line in said)


@pytest.mark.parametrize("method", ["vanilla", "fitnet"])
def test_a_student_begins_with_parts_of_its_teacher_with_and_without_a_method(options, method):
    expected = create_model("rcan-a", 4)
    hand_down(builtin_teacher(), expected)
    options = dataclasses.replace(options, method=method, student_init="teacher")
    torch.testing.assert_close(begun(options), dict(expected.state_dict()), rtol=0, atol=0)


def test_a_run_with_parts_of_its_teacher_resumes_to_the_bit(options, tmp_path):
    options = dataclasses.replace(options, student_init="teacher")
    whole = dataclasses.replace(options, out=tmp_path / "whole")
    train(whole, QUIET)
    with pytest.raises(TrainingStopped):
        train(options, QUIET, callback=stopped_at(2))
    train(options, QUIET)
    torch.testing.assert_close(trained(options), trained(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "vanilla", "optimizer": "muon"},
        {"method": "mkd", "meta": MetaOptions(inner_optimizer="adam")},
        {"method": "pisr"},
    ],
    ids=lambda given: given["method"],
)
def test_what_is_frozen_stays_and_the_rest_is_trained(options, given):
    frozen = "head", "body.1.body.0"
    options = dataclasses.replace(options, freeze=frozen, lr=1e-2, **given)
    before = begun(options)
    train(options, QUIET)
    after = trained(options)
    assert all(tensor.isfinite().all() for tensor in after.values())
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"body.0.body.0.body.0.weight", "body.1.body.1.weight", "tail.1.bias"} <= moved
    assert not any(name.startswith(("head.", "body.1.body.0.")) for name in moved)


def test_a_point_that_nothing_trained_comes_before_is_refused(options, estimated):
    options = dataclasses.replace(options, method="mkd", freeze=("head", "body.[01]"))
    with pytest.raises(ValueError, match=r"comes before distillation point 'body\.0'"):
        prepare(options.resolved())


def test_without_photographs_all_scales_begin_with_the_weights(tmp_path):
    weights = tmp_path / "vdsr.pt"
    trained = create_model("vdsr-half", 2)
    torch.save(trained.luma.state_dict(), weights)
    save_model(tmp_path / "teacher.safetensors", create_model("vdsr", 2), {})
    options = DataFreeOptions(
        student="vdsr-half",
        scale=(2, 3),
        student_weights=weights,
        freeze=("luma.input",),
        teacher_weights=tmp_path / "teacher.safetensors",
        source="procedural",
        patch_size=12,
        out=tmp_path / "run",
    )
    training = prepare(options.resolved())
    stage = training.student_stages[0]
    stage.begin(None)
    for network in stage.networks.values():
        assert torch.equal(network.luma.output.weight, trained.luma.output.weight)
        assert not network.luma.input.weight.requires_grad
    handed = dataclasses.replace(options, student_weights=None, student_init="teacher", freeze=())
    assert not torch.equal(begun(handed)["luma.output.weight"], trained.luma.output.weight)


def test_a_users_network_begins_with_weights_under_its_own_names(options, own_network):
    name, weights = own_network
    options = dataclasses.replace(options, student=name, student_weights=weights)
    state, given = begun(options), load_file(weights)
    assert all(torch.equal(state[f"network.{name}"], tensor) for name, tensor in given.items())


def test_a_comparison_may_begin_its_methods_in_different_ways(options, file):
    base = dataclasses.replace(options, student_weights=file, freeze=("head",))
    own = {"mkd": {"student_weights": None, "student_init": "teacher"}}
    cells = Comparison(base, ["rcan-a"], ["vanilla", "mkd"], [0], own).cells()
    vanilla, mkd = (cell.options for cell in cells)
    assert (vanilla.student_weights, vanilla.student_init) == (file, "random")
    assert (mkd.student_weights, mkd.student_init) == (None, "teacher")
    assert vanilla.freeze == mkd.freeze == ("head",)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"student_weights": Path("w.pt"), "student_init": "teacher"}, "must be random with"),
        ({"student_init": "teacher", "method": "pisr"}, "pisr trains a teacher of its own, from"),
        ({"student_init": "teacher", "student": "edsr-s"}, "take `student` rcan-a or `student` rc"),
        ({"student_weights": Path("none.pt")}, r"none\.pt does not exist"),
        ({"freeze": ("boby.0",)}, r"`freeze` boby\.0 is neither .* did you mean body\.0"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused_before_any_work(options, given, match):
    with pytest.raises(ValueError, match=match):
        train(dataclasses.replace(options, **given), QUIET)
    assert not options.out.exists()


@pytest.mark.parametrize(
    "given", [{"student_weights": Path("w")}, {"student_init": "teacher"}, {"freeze": ("head",)}]
)
def test_a_student_that_grows_and_one_given_as_an_object_begin_as_they_are(options, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"`stages` must be 1 with `{name}`"):
        DataFreeOptions(stages=2, **given)
    with pytest.raises(ValueError, match=f"distill: `{name}`: the student is taken as it is"):
        options = dataclasses.replace(options, method="fitnet", **given)
        distill(nn.Identity(), nn.Identity(), options.train_dir, options)
