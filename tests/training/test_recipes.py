"""Recipes: presets of options that go together."""

import dataclasses

import pytest

from mkdext.datafree import parse as parse_datafree
from mkdext.train import parse
from mkdext.training import TrainOptions
from mkdext.training.options import usual_training
from mkdext.training.options_file import origin
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
        (["--imitation", "0.5"], {"imitation": 0.5, "kd_weight": 0.0}),
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


def test_options_without_a_teacher_are_the_plain_recipe():
    assert recipe_of(TrainOptions(method="vanilla")) == "plain"
    plain = usual_training((), "plain")
    assert plain == dataclasses.replace(
        usual_training((), method="vanilla", optimizer="adam"),
        recipe="plain",
        kd_weight=plain.kd_weight,
    )
