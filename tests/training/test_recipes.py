"""Recipes: presets of options that go together."""

import dataclasses
import shlex

import pytest
import yaml

from mkdext.datafree import parse as parse_datafree
from mkdext.train import parse
from mkdext.training import DataFreeOptions, TrainOptions
from mkdext.training.options import usual_training
from mkdext.training.options_file import config_of, origin
from mkdext.training.recipes import DATA_FREE, TRAINING, recipe_of

FOLDER = ["--train-dir", "DIV2K"]


@pytest.mark.parametrize("recipe", TRAINING)
@pytest.mark.parametrize("folder", [[], FOLDER])
def test_a_recipe_is_followed_where_it_is_named(recipe, folder):
    options = parse([*folder, "--recipe", recipe]).options()
    assert recipe_of(options) == recipe == recipe_of(options.resolved())
    assert (options.lr == 4e-3) == (recipe == "best")


@pytest.mark.parametrize("recipe", DATA_FREE)
def test_a_recipe_without_photographs(recipe):
    options = parse_datafree(["--recipe", recipe]).options()
    assert recipe_of(options) == recipe
    assert (options.lr == 4e-3) == (recipe == "best")


def test_the_best_one_is_the_default():
    assert recipe_of(parse(FOLDER).options()) == recipe_of(parse_datafree([]).options()) == "best"


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["--method", "mkd"], {"kd_weight": None, "imitation": 1.0, "optimizer": "muon"}),
        (["--method", "vanilla"], {"imitation": 0.0, "optimizer": "muon"}),
        (["--method", "pisr"], {"imitation": 0.0}),
        (["--optimizer", "adam"], {"lr": 1e-4, "lr_min": 5e-6, "warmup": 0, "imitation": 1.0}),
        (["--kd-ratio", "0.5"], {"kd_weight": None, "kd_ratio": 0.5, "method": "response"}),
        (["--imitation", "0.5"], {"imitation": 0.5, "kd_weight": None}),
    ],
)
def test_flags_change_the_default_and_what_goes_with_them(flags, changed):
    options = parse([*FOLDER, *flags]).options()
    assert {name: getattr(options, name) for name in changed} == changed
    assert recipe_of(options) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "plain", "--method", "mkd"], "--recipe plain sets --method vanilla, got mkd"),
        (["--recipe", "best", "--optimizer", "adam"], "sets --optimizer muon, got adam"),
        (["--recipe", "mkd-paper", "--meta.kappa", "1"], "sets --meta.kappa 0.0, got 1.0"),
        (["--recipe", "bets"], "best"),
        (["--recipe", "best", "--imitation-end", "0"], "sets --imitation-end None, got 0.0"),
    ],
)
def test_flags_that_contradict_a_recipe_are_refused(flags, message, capsys, tmp_path):
    from mkdext.train import main

    assert main([*FOLDER, *flags, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", [[], ["--method", "mkd"], ["--optimizer", "adam"], ["--recipe", "plain"]]
)
def test_the_command_of_a_training_leads_to_it_again(flags):
    options = parse([*FOLDER, *flags]).options().resolved()
    _, _, _, *again = origin(options, steps=1)["command"].split()
    out = ["--out", str(options.out)]
    assert parse([*again, *out]).options().resolved() == options


def test_networks_have_rates_of_their_own_with_muon(tmp_path):
    student, adam = ["--student", "vdsr-half"], ["--optimizer", "adam"]
    assert [parse([*FOLDER, *flags]).lr for flags in ([], student)] == [4e-3, 1e-3]
    assert parse_datafree(student).lr == 1e-3
    assert parse([*FOLDER, *student, *adam]).lr == parse([*FOLDER, *adam]).lr
    assert parse([*FOLDER, *student, "--lr", "2e-3"]).lr == 2e-3
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(parse(FOLDER).options().resolved())))
    assert parse(["--config", str(file), *student]).lr == 1e-3
    assert TrainOptions.by_recipe(student="vdsr-half").lr == 1e-3


def test_the_command_of_a_training_names_no_more_than_it_was_given():
    given = ["--train-dir", "photographs", "--seed", "3"]
    for flags in (given, [*given, "--method", "mkd", "--kd-ratio", "0.3"]):
        told = origin(parse(flags).options().resolved(), 1)["command"]
        assert sorted(shlex.split(told)[3:]) == sorted(flags)


def test_options_without_a_teacher_are_the_plain_recipe():
    assert recipe_of(TrainOptions(method="vanilla")) == "plain"


def test_a_recipe_from_python():
    assert TrainOptions.by_recipe(seed=3) == dataclasses.replace(usual_training(()), seed=3)
    assert TrainOptions.by_recipe("plain", seed=3).recipe == "plain"
    assert TrainOptions.by_recipe(method="vanilla").imitation == 0
    assert DataFreeOptions.by_recipe("plain", seed=3).optimizer == "adam"
    with pytest.raises(ValueError, match="by_recipe"):
        TrainOptions(recipe="plain")


@pytest.mark.parametrize(
    ("flags", "weight"),
    [([], 0.0), (["--imitation", "0"], 1.0), (["--method", "fitnet"], 100 / 255)],
)
def test_the_method_has_no_loss_of_its_own_where_it_would_be_the_same_again(flags, weight):
    resolved = parse([*FOLDER, *flags]).options().resolved()
    assert resolved.kd_weight == pytest.approx(weight)
    assert resolved.given().resolved() == resolved


def test_the_configuration_of_the_default_serves_for_another_method(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(parse(FOLDER).options().resolved())))
    options = parse(["--config", str(file), "--method", "fitnet"]).options().resolved()
    assert options.kd_weight == pytest.approx(100 / 255)
