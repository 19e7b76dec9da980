from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from mkdext.models import MODEL_NAMES
from mkdext.train import parse
from mkdext.training import BUILTIN_DEMO, MetaOptions, TrainOptions
from mkdext.training.config_files import config_of, read_config


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


def test_flags_count_more_than_the_configuration(tmp_path):
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
        ("itertions: 3", "there is no option 'itertions'; did you mean iterations"),
        ("meta: {stepps: 3}", "there is no option 'meta.stepps'; did you mean steps"),
        ("meta: 3", "'meta' must hold names and values"),
        ("meta: {steps: [2, 3]}", r"'meta.steps' must be an integer or None, got \[2, 3\]"),
        ("lr: {first: 1}", "'lr' must be a number, got {'first': 1}"),
        ("kd_fade: 'no'", "'kd_fade' must be true or false, got 'no'"),
        ("train_dir: [[a]]", r"'train_dir' must be a list of paths, got \[\['a'\]\]"),
        ("lr: null", "'lr' must be a number, got None"),
        ("iterations: 1.5", "'iterations' must be an integer, got 1.5"),
        ("iterations: 1e5", "'iterations' must be an integer, got '1e5'"),
        ("iterations: true", "'iterations' must be an integer, got True"),
        ("teacher_dtype: int8", "'teacher_dtype' must be one of 'float32', 'bfloat16', got 'int8'"),
        ("student: --dry-run", "'student' must not begin with a dash, got '--dry-run'"),
        ("a: &a [1]\nb: &b [*a, *a]", "there is no option 'a'"),
        ("lr: " + 200 * "[", "is nested more than 32 levels deep|is not YAML"),
        ("- 1\n- 2", "must hold names and values, got list"),
        ("a: b: c", "is not YAML"),
    ],
)
def test_a_wrong_configuration_file_is_refused(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(file, TrainOptions())


def test_a_missing_configuration_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        read_config(tmp_path / "none.yaml", TrainOptions())


def test_a_number_that_yaml_takes_for_a_text_is_a_number(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("lr: 1e-3\nseed: '3'\nkd_weight: null\ntrain_dir: photographs\n")
    options = parse(["--config", str(file)])
    assert (options.lr, options.seed, options.kd_weight) == (1e-3, 3, None)
    assert options.train_dir == (Path("photographs"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: -1", "--config FILE: `lr` must be positive, got -1.0"),
        ("meta: {steps: 0}", "--config FILE: `meta.steps` must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_range_is_told_with_the_file_that_it_is_in(text, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="must be") as told:
        parse(["--config", str(file)])
    assert str(told.value) == message.replace("FILE", str(file))


@pytest.mark.parametrize("text", ["batch_size: 4", "lr: 2"])
def test_a_flag_out_of_range_is_told_without_the_file(text, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        parse(["--config", str(file), "--lr", "-1"])
    error = capsys.readouterr().err
    assert "--lr must be positive, got -1.0" in error and "--config" not in error


def test_a_flag_mends_what_a_file_alone_would_not_allow(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("lr_min: 0.5")
    assert parse(["--config", str(file), "--lr", "1"]).lr_min == 0.5


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


def test_a_saved_configuration_names_files_of_networks_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(TrainOptions(student="net.py:make", teacher="nets.zoo:make"))
    assert config["student"] == f"{tmp_path}/net.py:make"
    assert config["teacher"] == "nets.zoo:make"


def test_an_unknown_flag_is_refused_with_a_suggestion(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--iteration", "3"])
    assert stopped.value.code == 2
    assert "--iterations" in capsys.readouterr().err
