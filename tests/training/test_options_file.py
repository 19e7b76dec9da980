"""Options in files: what is read as what, what is refused, and what editors are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mkdext.training import BUILTIN_DEMO, MetaOptions, TrainOptions
from mkdext.training.data_free_options import DataFreeOptions
from mkdext.training.options_file import as_flags, config_of, load_options, schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(tmp_path):
    def load(text: str, default=TrainOptions()):  # noqa: B008
        file = tmp_path / "options.yaml"
        file.write_text(text)
        return load_options(file, default)

    return load


def test_what_a_file_does_not_say_is_as_it_was(load):
    options = load("lr: 2.0e-4\nmeta: {steps: 2}\n", BUILTIN_DEMO)
    assert (options.lr, options.meta.steps) == (2e-4, 2)
    assert (options.iterations, options.meta.every) == (1500, BUILTIN_DEMO.meta.every)
    assert type(options) is TrainOptions and type(options.meta) is MetaOptions


def test_values_become_what_options_are_declared_as(load):
    options = load("lr: 1e-3\nlr_min: 0\ntrain_dir: [a, b]\nval_dir: c\nkd_weight: null\n")
    assert (options.lr, type(options.lr_min)) == (1e-3, float)
    assert (options.train_dir, options.val_dir) == ((Path("a"), Path("b")), (Path("c"),))


def test_names_may_be_those_of_flags(load):
    options = load("batch-size: 3\nmeta: {inner-optimizer: adam}\n")
    assert (options.batch_size, options.meta.inner_optimizer) == (3, "adam")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("itertions: 3", "line 1: there is no option 'itertions'; did you mean iterations or"),
        ("meta:\n\n  stepps: 3", "line 3: there is no option 'meta.stepps'; did you mean steps?"),
        ("meta: 3", "line 1: 'meta' must hold names and values, got 3"),
        ("meta: {steps: [2, 3]}", "'meta.steps' must be an integer or None, got [2, 3]"),
        ("lr: {first: 1}", "'lr' must be a number, got {'first': 1}"),
        ("lr: '0.1'", "'lr' must be a number, got '0.1'"),
        ("lr: null", "'lr' must be a number, got None"),
        ("kd_fade: 'no'", "'kd_fade' must be true or false, got 'no'"),
        ("kd_fade: 1", "'kd_fade' must be true or false, got 1"),
        ("train_dir: [[a]]", "'train_dir' must be a list of paths, got [['a']]"),
        ("student_points: [3]", "'student_points' must be a list of texts, got [3]"),
        ("iterations: 1.5", "'iterations' must be an integer, got 1.5"),
        ("iterations: 1e5", "'iterations' must be an integer, got '1e5'"),
        ("seed: '3'", "'seed' must be an integer, got '3'"),
        ("iterations: true", "'iterations' must be an integer, got True"),
        ("teacher_dtype: int8", "'teacher_dtype' must be one of 'float32', 'bfloat16', got 'int8'"),
        ("meta: {inner_optimizer: lion}", "must be one of 'sgd', 'adam' or None, got 'lion'"),
        ("seed: 1\nlr: -1", "line 2: `lr` must be positive, got -1"),
        ("method: mkd\nlr_min: 1", "line 2: `lr_min` must be at most `lr` 0.0001, got 1"),
        ("a: &a [1]\nb: &b [*a, *a]", "there is no option 'a'"),
        ("- 1\n- 2", "must hold names and values, got list"),
        ("a: b: c", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text, message, load, tmp_path):
    with pytest.raises(ValueError, match="options") as told:
        load(text)
    assert str(told.value).startswith(str(tmp_path / "options.yaml"))
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_file_that_is_nested_too_deeply_is_refused(load):
    with pytest.raises(ValueError, match=r"is nested more than 32 levels deep|is not YAML"):
        load("lr: " + 200 * "[")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        load_options(tmp_path / "none.yaml", TrainOptions())


@pytest.mark.parametrize("options", [BUILTIN_DEMO, DataFreeOptions(scale=(2, 3), patch_size=24)])
def test_saved_options_are_read_as_the_same(options, load):
    default = type(options)(out=options.out)
    assert load(yaml.safe_dump(config_of(options)), default) == options
    assert load(yaml.safe_dump(config_of(options.resolved())), default).resolved() == (
        options.resolved()
    )


def test_saved_options_name_files_of_networks_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(TrainOptions(student="net.py:make", teacher="nets.zoo:make"))
    assert config["student"] == f"{tmp_path}/net.py:make"
    assert config["teacher"] == "nets.zoo:make"


def test_flags_say_yes_and_no_as_tyro_does():
    values = {"kd_fade": True, "meta.rollback": False, "meta.closing_step": True, "val_dir": []}
    assert as_flags(values, TrainOptions()) == [
        *("--kd-fade", "--meta.no-rollback", "--meta.closing-step", "True")
    ]


@pytest.mark.parametrize(
    ("name", "options"), [("train", TrainOptions()), ("datafree", DataFreeOptions())]
)
def test_the_published_schemas_are_those_of_the_options(name, options):
    published = json.loads((ROOT / "docs" / "schema" / f"{name}.json").read_text())
    assert published == schema(options), f"python -m mkdext.{name} --schema writes it anew"


def test_a_schema_says_what_a_file_may_hold():
    described = schema(DataFreeOptions())
    properties = described["properties"]
    assert described["additionalProperties"] is False
    assert {"vanilla", "mkd", "fakd"} <= set(properties["method"]["anyOf"][0]["enum"])
    assert properties["scale"] == {
        "default": [4],
        "description": properties["scale"]["description"],
        "items": {"type": "integer"},
        "title": "Scale",
        "type": "array",
    }
    assert properties["scale"]["description"].startswith("Enlargement factors: 2, 3, 4 or 8.")
    assert described["$defs"]["MKDOptions"]["properties"]["grid"]["default"] == 4
