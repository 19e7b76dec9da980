"""Runs that are extended or go on with other options: what holds, what is kept, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

import mkdext
from mkdext.models import builtin_teacher, read_metadata
from mkdext.train import main, parse
from mkdext.training import TrainingStopped, TrainOptions, train
from mkdext.training.options import ResolvedTraining
from mkdext.training.options_file import config_of
from mkdext.training.run.directory import RunDirectory
from mkdext.training.run.going_on import checked_run, rates_in_words
from mkdext.training.schedule import Phase
from mkdext.training.stages import StudentStage, schedules_of_part
from mkdext.training.step import Batch

QUIET = Console(quiet=True)


def phase(step: int, options: ResolvedTraining) -> Phase:
    distils = options.method != "vanilla"
    schedules = schedules_of_part(options, 0, options.iterations, distils)
    return next(schedule for schedule in schedules if step < schedule.end).at(step)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "student.safetensors")


def same(run: Path, other: Path) -> bool:
    ours, theirs = weights(run), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def records(run: Path) -> list[dict]:
    return [r for r in RunDirectory(run).records() if "reconstruction" in r]


@pytest.fixture(scope="module")
def options(photographs) -> TrainOptions:
    """A plain training of six steps."""
    return TrainOptions(
        train_dir=(photographs,),
        val_dir=(photographs,),
        method="vanilla",
        iterations=6,
        batch_size=2,
        patch_size=8,
        validate_every=4,
        checkpoint_every=3,
        log_every=1,
    )


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory) -> Path:
    """Such a training at its end, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(dataclasses.replace(options, out=out), QUIET)
    return out


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The same, to go on with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flags(*given: object) -> list[str]:
    return ["--resume", "--out", *map(str, given)]


def test_a_finished_run_goes_on_to_more_steps_on_the_cosine_of_that_length(run, capsys):
    assert main(flags(run, "--iterations", 9, "--log-every", 2)) == 0
    said = capsys.readouterr().out
    before = phase(5, TrainOptions(method="vanilla", iterations=6).resolved())
    now = phase(6, TrainOptions(method="vanilla", iterations=9).resolved())
    assert "from step 6 on: iterations was 6, now 9; log_every was 1, now 2; the learning" in said
    assert f"from {before.lr:.3g} to {now.lr:.3g}, on the cosine of 9 steps" in said
    rates = {r["step"]: r["lr"] for r in records(run)}
    assert list(rates) == [1, 2, 3, 4, 5, 6, 8, 9]
    longer = TrainOptions(method="vanilla", iterations=9).resolved()
    assert rates[8] == phase(7, longer).lr and rates[9] == phase(8, longer).lr


@pytest.mark.slow
def test_a_run_says_what_it_is_and_what_it_was(finished, run):
    assert main(flags(run, "--iterations", 8, "--lr", 2e-4)) == 0
    assert main(flags(run, "--iterations", 9)) == 0
    history = [
        {"step": 6, "iterations": [6, 8], "lr": [1e-4, 2e-4]},
        {"step": 8, "iterations": [8, 9]},
    ]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["iterations"], config["lr"], config["changes"]) == (9, 2e-4, history)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["iterations"], summary["changes"]) == (9, history)
    origin = read_metadata(run / "checkpoints/student.safetensors").origin
    assert (origin["steps"], origin["changes"]) == (9, history)
    # What was there at the first end is kept.
    kept = json.loads((run / "summary_step_0000006.json").read_text())
    assert kept == json.loads((finished / "summary.json").read_text())
    step_6 = load_file(run / "checkpoints/student_step_0000006.safetensors")
    assert all(torch.equal(step_6[name], tensor) for name, tensor in weights(finished).items())
    # Its configuration still serves another run, and the run itself.
    assert parse(["--config", str(run / "config.yaml")]).iterations == 9
    assert main(flags(run)) == 0


@pytest.mark.slow
def test_where_nothing_falls_a_run_that_was_extended_is_one_of_that_length(options, tmp_path):
    level = dataclasses.replace(options, lr_min=options.lr)
    extended, whole = tmp_path / "extended", tmp_path / "whole"
    train(dataclasses.replace(level, out=extended), QUIET)
    train(dataclasses.replace(level, out=extended, iterations=9), QUIET, resume=True)
    train(dataclasses.replace(level, out=whole, iterations=9), QUIET)
    assert same(extended, whole)
    assert [r["reconstruction"] for r in records(extended)] == [
        r["reconstruction"] for r in records(whole)
    ]


@pytest.mark.slow
def test_an_extension_that_is_stopped_ends_with_the_same_weights(run, tmp_path, monkeypatch):
    unbroken = Path(shutil.copytree(run, tmp_path / "unbroken"))
    assert main(flags(unbroken, "--iterations", 10)) == 0
    add = RunDirectory.add_metrics

    def add_and_stop(self: RunDirectory, record: dict) -> None:
        add(self, record)
        if record["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as context:
        context.setattr(RunDirectory, "add_metrics", add_and_stop)
        assert main(flags(run, "--iterations", 10)) == 128 + signal.SIGTERM
    assert main(flags(run)) == 0
    assert same(run, unbroken)
    assert len(RunDirectory(run).history) == 1


def test_a_change_that_was_killed_before_it_was_kept_leaves_the_run_as_it_was(run, monkeypatch):
    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("mkdext.training.run.directory.write_text", killed)
        assert main(flags(run, "--iterations", 9)) == 130
    assert RunDirectory(run).options()["iterations"] == 6
    assert main(flags(run)) == 0  # measures again
    assert json.loads((run / "summary.json").read_text())["iterations"] == 6
    assert main(flags(run, "--iterations", 9)) == 0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--seed", 1], "--seed cannot change, because weights and patches were drawn from it (s"),
        (["--method", "mkd"], "--method cannot change, because the losses so far were its own"),
        (["--scale", 2], "--scale cannot change, because the networks are for it"),
        (["--batch-size", 3], "--batch-size cannot change, because the steps so far were of it"),
        (["--warmup", 3], "--warmup cannot change, because its steps are at the beginning"),
        (["--student", "rcan-b"], "--student cannot change, because what was trained are its"),
        (["--meta.every", 3], "--meta.every cannot change, because the steps so far were taken"),
    ],
)
def test_what_cannot_change_is_named_with_the_reason(given, reason, run, capsys):
    before = (run / "config.yaml").read_bytes(), (run / "summary.json").read_bytes()
    assert main(flags(run, "--iterations", 9, *given)) == 2
    assert reason in capsys.readouterr().err
    assert before == ((run / "config.yaml").read_bytes(), (run / "summary.json").read_bytes())


def test_fewer_steps_than_are_done_are_refused(run, capsys):
    assert main(flags(run, "--iterations", 5)) == 2
    assert (
        "is of step 6, beyond the 5 steps asked for; ask for 6 or more" in capsys.readouterr().err
    )


def test_without_resume_other_options_are_refused_with_the_way(run, photographs, capsys):
    same = [*("--config", str(run / "config.yaml"), "--out", str(run))]
    assert main([*same, "--iterations", "9", "--lr", "0.001"]) == 2
    message = capsys.readouterr().err
    assert f"; --resume --out {run} --iterations 9 --lr 0.001 goes on with these" in message
    assert main([*same, "--iterations", "9", "--seed", "3"]) == 2
    assert "--resume" not in capsys.readouterr().err


def test_a_dry_run_shows_a_change_and_makes_none(run, capsys):
    before = (run / "config.yaml").read_bytes()
    assert main([*flags(run, "--iterations", 9), "--dry-run"]) == 0
    assert "from here on: iterations was 6, now 9" in capsys.readouterr().out
    assert (run / "config.yaml").read_bytes() == before and (run / "summary.json").exists()


@pytest.mark.slow
def test_photographs_that_were_moved_are_named_with_their_line(options, tmp_path, capsys):
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    shutil.copytree(options.train_dir[0], old)
    train(dataclasses.replace(options, train_dir=(old,), out=out), QUIET)
    old.rename(new)
    assert main(flags(out, "--iterations", 8)) == 2
    message = capsys.readouterr().err
    lines = (out / "config.yaml").read_text().splitlines()
    line = lines.index("train_dir:") + 1
    assert f"config.yaml, line {line}: train_dir names {old}, which does not exist" in message
    assert f"continue with --resume --out {out} --train-dir and where it is now" in message
    assert main(flags(out, "--iterations", 8, "--train-dir", new)) == 0


def test_the_file_of_a_network_may_be_moved_but_be_no_other(own_network, options, tmp_path, capsys):
    name, _ = own_network
    file, factory = name.rsplit(":", 1)
    folder = tmp_path / "moved"
    folder.mkdir()
    shutil.copy(file, folder)
    shutil.copy(file, folder / "other.py")
    out = tmp_path / "run"
    train(dataclasses.replace(options, student=name, out=out), QUIET)
    moved = folder / Path(file).name
    assert main(flags(out, "--iterations", 8, "--student", f"{folder / 'other.py'}:{factory}")) == 2
    assert "--student cannot change" in capsys.readouterr().err
    assert main(flags(out, "--iterations", 8, "--student", f"{moved}:{factory}")) == 0


@pytest.mark.slow
def test_the_steps_on_the_distillation_loss_alone_keep_their_number(options, tmp_path, capsys):
    out = tmp_path / "run"
    hints = dataclasses.replace(options, method="fitnet", hint_share=0.5, out=out)
    train(hints, QUIET)
    longer = dataclasses.replace(hints, iterations=9)
    hint_share = checked_run(longer, resume=True).options.hint_share
    assert hint_share == pytest.approx(3 / 9)
    assert main(flags(out, "--iterations", 3)) == 2
    assert "must be more than the 3 steps on the distillation loss alone" in capsys.readouterr().err
    train(longer, QUIET, resume=True)
    logged = records(out)
    assert [r["step"] for r in logged] == list(range(1, 10))
    again = dataclasses.replace(hints, iterations=9, hint_share=3 / 9).resolved()
    assert logged[-1]["lr"] == phase(8, again).lr
    assert main(flags(out, "--hint-share", 0.9)) == 2
    assert "alone keep their number" in capsys.readouterr().err


def test_a_share_that_moves_is_told_where_it_jumps():
    options = TrainOptions(method="response", imitation=1.0, imitation_end=0.0, iterations=8)
    before = phase(5, options.resolved())
    now = phase(6, dataclasses.replace(options, iterations=16).resolved())
    said = rates_in_words({"iterations": (8, 16)}, before, now, 16)
    assert "the share of the teacher's picture from 0.375 to 0.625" in said


@pytest.mark.slow
def test_the_teacher_of_pisr_is_not_trained_longer_with_its_student(options, tmp_path):
    pisr = dataclasses.replace(options, method="pisr", iterations=4, out=tmp_path / "run")
    train(pisr, QUIET)
    summary = train(dataclasses.replace(pisr, iterations=6), QUIET, resume=True)
    assert (summary["iterations"], summary["privileged_teacher"]["iterations"]) == (6, 4)


def test_a_run_from_before_an_option_existed_goes_on(options, run, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["imitation"], config["mkd"]["relative"], config["privileged_iterations"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    train(dataclasses.replace(options, out=run), QUIET)
    assert main(flags(run, "--iterations", 8)) == 0
    capsys.readouterr()
    other = dataclasses.replace(options, teacher_dtype="bfloat16", out=run)
    with pytest.raises(ValueError, match="teacher_dtype was 'float32', now 'bfloat16'"):
        train(other, QUIET)


def test_an_option_that_is_no_more_is_named(run, capsys):
    with (run / "config.yaml").open("a") as file:
        file.write("colour: true\n")
    assert main(flags(run)) == 2
    assert "there is no option 'colour'" in capsys.readouterr().err
    same = ["--train-dir", "x", "--out", str(run)]
    assert main(same) == 2
    assert "config.yaml has 'colour', which is no option here" in capsys.readouterr().err


def test_an_option_that_a_run_is_older_than_has_its_default(tmp_path):
    options = TrainOptions(method="pisr", iterations=7, out=tmp_path)
    config = config_of(options.resolved())
    del config["privileged_iterations"], config["mkd"]["grid"], config["val_dir"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert not checked_run(options).changes
    other = dataclasses.replace(options, val_dir=(tmp_path,), privileged_iterations=3)
    with pytest.raises(ValueError, match=r"val_dir was \[\].*; privileged_iterations was 7, now 3"):
        checked_run(other)


def test_a_run_without_a_teacher_keeps_open_what_it_does_not_use(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    unused = config["kd_weight"], config["meta"]["steps"], config["privileged_iterations"]
    assert unused == (None, None, None)


def test_a_value_in_a_run_that_is_of_another_type_is_told_with_its_line(run, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("batch_size: 2", "batch_size: two"))
    line = text.splitlines().index("batch_size: 2") + 1
    assert main(flags(run)) == 2
    said = f"config.yaml, line {line}: 'batch_size' must be an integer, got 'two'"
    assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match=said):
        checked_run(TrainOptions(out=run))


@pytest.mark.slow
def test_a_summary_that_is_damaged_is_written_again(finished, run, capsys):
    for content in ("", "[]", "{"):
        (run / "summary.json").write_text(content)
        assert main(flags(run)) == 0
        assert "summary.json is damaged; it is written again" in capsys.readouterr().out
        summary = json.loads((run / "summary.json").read_text())
        assert (
            summary["validation"]
            == json.loads((finished / "summary.json").read_text())["validation"]
        )
    assert same(run, finished)


@pytest.mark.slow
def test_networks_given_as_objects_are_trained_longer_from_any_first_weights(options, tmp_path):
    def student(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 48, 3, padding=1), torch.nn.PixelShuffle(4))

    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    level = dataclasses.replace(
        options, method="response", lr_min=options.lr, kd_fade=False, out=tmp_path / "run"
    )
    teacher = builtin_teacher()
    mkdext.distill(student(0), teacher, images, level, QUIET)
    longer = dataclasses.replace(level, iterations=8)
    with pytest.raises(ValueError, match="holds a run with other options"):
        mkdext.distill(student(0), teacher, images, longer, QUIET)
    extended = mkdext.distill(student(1), teacher, images, longer, QUIET, resume=True)
    whole = dataclasses.replace(longer, out=tmp_path / "whole")
    at_once = mkdext.distill(student(0), teacher, images, whole, QUIET)
    assert torch.equal(extended.student[0].weight, at_once.student[0].weight)
    assert [r["step"] for r in extended.history if "lr" in r] == list(range(1, 9))


@pytest.mark.slow
def test_a_second_training_in_another_thread_is_refused(options, tmp_path, monkeypatch):
    compute, refused = StudentStage.take, []

    def second() -> None:
        try:
            train(dataclasses.replace(options, out=tmp_path / "second"), QUIET)
        except ValueError as error:
            refused.append(str(error))

    def second_begins(self: StudentStage, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        return compute(self, step, batch)

    with monkeypatch.context() as context:
        context.setattr(StudentStage, "take", second_begins)
        train(dataclasses.replace(options, out=tmp_path / "first"), QUIET)
    assert len(refused) == 6 and "another training is at work in this process" in refused[0]
    assert not (tmp_path / "second").exists()
    train(dataclasses.replace(options, out=tmp_path / "second"), QUIET)
    assert same(tmp_path / "first", tmp_path / "second")


def test_a_folder_that_is_deleted_meanwhile_is_told(options, tmp_path, monkeypatch, capsys):
    compute, out = StudentStage.take, tmp_path / "run"

    def deleted(self: StudentStage, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        shutil.rmtree(out, ignore_errors=True)
        return compute(self, step, batch)

    monkeypatch.setattr(StudentStage, "take", deleted)
    folder = str(options.train_dir[0])
    given = ["--train-dir", folder, "--val-dir", folder, "--method", "vanilla", "--log-every", "1"]
    sizes = ["--batch-size", "2", "--patch-size", "8"]
    assert main([*given, *sizes, "--out", str(out)]) == 1
    assert f"{out} is gone; it was deleted or moved" in capsys.readouterr().err


def test_a_stop_says_how_to_go_on(options, tmp_path, monkeypatch):
    def stopping(self: RunDirectory, record: dict) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "add_metrics", stopping)
    with pytest.raises(TrainingStopped, match="stopped after step 2; the same command continues"):
        train(dataclasses.replace(options, out=tmp_path / "run"), QUIET)
