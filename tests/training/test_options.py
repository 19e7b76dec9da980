from __future__ import annotations

import dataclasses
import json
import os

import pytest
import yaml

from mkdext.methods import method_class
from mkdext.models import MODEL_NAMES
from mkdext.train import main, parse
from mkdext.training import BUILTIN_DEMO, MetaOptions, TrainOptions
from mkdext.training.options_file import config_of


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 0),
        ("batch_size", -1),
        ("patch_size", 0),
        ("patch_size", 10**29),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("kd_weight", -0.1),
        ("kd_ratio", 0.0),
        ("kd_maps", "white"),
        ("optimizer", "lion"),
        ("hint_share", 1.0),
        ("seed", -1),
        ("seed", 2**63),
        ("lr_min", 1.0),
        ("method", "fitnett"),
        ("teacher_cache_crops", 0),
    ],
)
def test_an_impossible_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^`{name}` must be .*got '?{value}"):
        dataclasses.replace(TrainOptions(), **{name: value})


def test_no_inner_step_is_refused():
    with pytest.raises(ValueError, match=r"^`meta\.steps` must be at least 1, got 0"):
        MetaOptions(steps=0)


def test_a_saved_configuration_gives_the_same_options(tmp_path):
    options = TrainOptions(
        train_dir=(tmp_path / "a", tmp_path / "b"),
        method="vanilla",
        teacher_points=("body.*", "tail.0"),
        teacher_cache=tmp_path / "cache",
        teacher_dtype="bfloat16",
        lr=3e-5,
        kd_fade=False,
        mkd=dataclasses.replace(TrainOptions().mkd, detach_kernels=False, hidden=7),
        meta=MetaOptions(steps=3, inner_optimizer="adam"),
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(options)))
    assert parse(["--config", str(file), "--out", str(options.out)]).options() == options


def test_flags_override_the_configuration(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("lr: 1e-3\nbatch_size: 4\nmeta: {steps: 2}\n")
    options = parse(["--config", str(file), "--batch-size", "6"]).options()
    assert (options.lr, options.batch_size, options.meta.steps) == (1e-3, 6, 2)
    assert options.patch_size == BUILTIN_DEMO.patch_size
    file.write_text(f"lr: 1e-3\ntrain_dir: [{tmp_path}]\n")
    assert parse(["--config", str(file)]).options().patch_size == 48


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 3\nlr: -1", "--config FILE, line 2: `lr` must be positive, got -1.0"),
        ("meta:\n  steps: 0", "--config FILE, line 2: `meta.steps` must be at least 1, got 0"),
        ("mkd: {grid: two}", "--config FILE, line 1: 'mkd.grid' must be an integer, got 'two'"),
    ],
)
def test_a_wrong_value_is_told_with_the_line_that_it_stands_in(text, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="must be") as told:
        parse(["--config", str(file)])
    assert str(told.value) == message.replace("FILE", str(file))


@pytest.mark.parametrize("text", ["batch_size: 4", "lr: 2"])
def test_a_flag_out_of_range_is_told_without_the_file(text, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["--config", str(file), "--lr", "-1"]) == 2
    assert capsys.readouterr().err == "mkdext.train: --lr must be positive, got -1.0\n"


def test_a_flag_mends_what_a_file_alone_would_not_allow(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("lr_min: 0.5\nmeta: {steps: 0}\n")
    options = parse(["--config", str(file), "--lr", "1", "--meta.steps", "2"])
    assert (options.lr_min, options.meta.steps) == (0.5, 2)


def test_a_configuration_that_is_no_file_is_told(tmp_path):
    with pytest.raises(ValueError, match="is a directory; name a file in it"):
        parse(["--config", str(tmp_path)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no regular file"):
        parse(["--config", str(tmp_path / "pipe")])


def test_defaults_are_short_only_for_the_built_in_photographs(tmp_path):
    assert parse([]).options().iterations < 10_000
    assert parse(["--train-dir", str(tmp_path)]).options().iterations == 300_000
    assert parse([f"--train-dir={tmp_path}"]).options().batch_size == 16


def test_the_help_names_every_network(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert not [name for name in MODEL_NAMES if name not in shown]


def test_the_schema_is_printed_and_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "TrainOptions"
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_is_refused_with_a_suggestion(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--iteration", "3"])
    assert stopped.value.code == 2
    assert "--iterations" in capsys.readouterr().err


def test_nothing_is_left_open_in_resolved_options():
    options = TrainOptions(method="l2t-ww", iterations=7).resolved()
    meta = method_class("l2t-ww").published_meta
    assert (options.meta.closing_step, options.meta.steps) == (meta.closing_step, meta.steps)
    assert (options.kd_weight, options.privileged_iterations) == (
        method_class("l2t-ww").published_weight,
        7,
    )
    with pytest.raises(TypeError, match="`kd_weight` must be a number, got None"):
        dataclasses.replace(options, kd_weight=None)


def test_what_was_given_counts_more_than_what_the_method_has():
    options = TrainOptions(kd_weight=0.25, meta=MetaOptions(kappa=0.0)).resolved()
    assert (options.kd_weight, options.meta.kappa) == (0.25, 0.0)


@pytest.mark.parametrize("method", ["vanilla", "mkd"])
def test_a_ratio_of_gradients_takes_the_place_of_a_weight(method):
    options = TrainOptions(method=method, kd_ratio=0.5)
    assert options.resolved().given() == dataclasses.replace(
        options, meta=options.resolved().given().meta
    )
    assert options.resolved().kd_weight == 0.5
    with pytest.raises(ValueError, match=r"^`kd_ratio` 0\.5 sets the weight that `kd_weight` 1 wo"):
        TrainOptions(kd_ratio=0.5, kd_weight=1.0)


def test_muon_has_a_learning_rate_of_its_own(tmp_path):
    for given in ([], ["--train-dir", str(tmp_path)]):
        adam, muon = (parse([*given, "--optimizer", name]).options() for name in ("adam", "muon"))
        assert muon == dataclasses.replace(adam, optimizer="muon", lr=4e-3, lr_min=4e-6, warmup=100)
    assert parse(["--optimizer", "muon", "--lr", "1e-3"]).options().lr == 1e-3


@pytest.mark.parametrize("method", ["vanilla", "mkd", "pisr"])
def test_resolved_options_are_what_they_were_given_as(method):
    resolved = TrainOptions(method=method, iterations=7).resolved()
    assert resolved.given().resolved() == resolved == resolved.resolved()


def test_without_a_teacher_the_methods_values_stay_open_for_another_method():
    given = TrainOptions(method="vanilla").resolved().given()
    assert given == TrainOptions(method="vanilla")
    assert dataclasses.replace(given, method="mkd").resolved().kd_weight == 0.01
