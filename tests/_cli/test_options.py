"""What holds of a file where flags name another recipe, method or optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mkdext.compare import parse as parse_compare
from mkdext.train import parse
from mkdext.training import TrainOptions
from mkdext.training.options_file import config_of


@pytest.fixture
def config(tmp_path):
    """The config.yaml of a run of the best recipe, with a batch size that was given."""
    options = TrainOptions.by_recipe(train_dir=(Path("photographs"),), batch_size=3)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(options.resolved())))
    return ["--config", str(file)]


def test_rates_follow_the_optimizer_of_a_flag(config):
    kept = parse(config)
    assert (kept.optimizer, kept.lr, kept.lr_min, kept.warmup) == ("muon", 4e-3, 4e-6, 100)
    other = parse([*config, "--optimizer", "adam"])
    assert (other.lr, other.lr_min, other.warmup) == (1e-4, 5e-6, 0)
    assert (other.batch_size, other.imitation, other.method) == (3, 1.0, "response")
    assert parse([*config, "--optimizer", "adam", "--lr", "3e-4"]).lr == 3e-4
    assert parse_compare([*config, "--optimizer", "adam"]).lr == 1e-4


def test_a_rate_that_was_given_stays_whatever_the_optimizer(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("train_dir: photographs\noptimizer: muon\nlr: 2e-3\n")
    other = parse(["--config", str(file), "--optimizer", "adam"])
    assert (other.lr, other.lr_min) == (2e-3, 5e-6)
    file.write_text("train_dir: photographs\nlr: 4e-3\n")  # as YAML 1.1 has it, a text
    assert parse(["--config", str(file), "--optimizer", "adam"]).lr == 1e-4
    assert parse(["--config", str(file)]).lr == 4e-3


def test_another_method_or_recipe_takes_over_what_fits_it(config):
    vanilla = parse([*config, "--method", "vanilla"])
    assert (vanilla.method, vanilla.imitation, vanilla.optimizer) == ("vanilla", 0.0, "muon")
    assert vanilla.batch_size == 3
    paper = parse([*config, "--recipe", "mkd-paper"])
    assert (paper.method, paper.lr, paper.kd_maps, paper.meta.kappa) == ("mkd", 1e-4, "raw", 0.0)
    assert parse([*config, "--train-dir", "others"]).batch_size == 3


def test_a_method_against_the_recipe_of_a_file_is_refused(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("recipe: best\n")
    with pytest.raises(ValueError, match="`recipe` best sets `method` response, got vanilla"):
        parse(["--config", str(file), "--method", "vanilla"])


def test_low_resolution_pictures_are_trained_on_as_long_as_photographs(tmp_path):
    assert parse(["--train-low-dir", "a"]).iterations == 300_000
    file = tmp_path / "own.yaml"
    file.write_text("train_low_dir: [a]\n")
    assert parse(["--config", str(file)]).batch_size == 16
    with pytest.raises(ValueError, match="`train_low_dir` must name at least one folder"):
        parse(["--train-low-dir"])
