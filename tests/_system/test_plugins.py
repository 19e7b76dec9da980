"""What users name, and the options that they give it."""

from __future__ import annotations

import pytest

from mkdext._system.plugins import absolute, check_options, loaded, named_options


def test_values_are_read_as_yaml():
    given = ["a=1", "b=-0.5", "c=true", "d=relu", "e=[6, 6]", "f=null", "g=2e-4", "h=x=y", "i="]
    assert named_options(given, "`options`") == {
        **{"a": 1, "b": -0.5, "c": True, "d": "relu", "e": [6, 6]},
        **{"f": None, "g": 2e-4, "h": "x=y", "i": None},
    }
    assert named_options([], "`options`") == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nf"], r"^`options` must be name=value, such as features=64, got 'nf'$"),
        (["=3"], r"must be name=value, .* got '=3'$"),
        (["n-f=3"], r"must be name=value, .* got 'n-f=3'$"),
        (["nf=3", "nf=4"], r"^`options` has nf twice$"),
        (["nf=[3"], r"^`options`: the value of nf is not valid YAML: '\[3'$"),
    ],
)
def test_what_is_no_option_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        named_options(given, "`options`")


def make(features, blocks=4, *, act="relu"):
    return features, blocks, act


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 8, "block": 2}, r"^net has no option 'block'; did you mean blocks\?$"),
        ({"features": 8, "zz": 2}, r"^net has no option 'zz'; it has features, blocks, act$"),
        ({}, r"must need no arguments, but: missing a required argument: 'features'; give them as"),
        ({"blocks": 2}, r"must need no arguments beside blocks, but: missing .* 'features'"),
    ],
)
def test_options_that_a_function_does_not_take_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_options(make, options, "net")


def test_options_that_a_function_takes_are_taken():
    check_options(make, {"features": 8, "act": "gelu"}, "net")
    check_options(make, {"act": "gelu"}, "net", before=2)
    check_options(lambda **anything: None, {"whatever": 1}, "net")


def test_what_is_given_by_position_is_no_option():
    with pytest.raises(ValueError, match=r"no option 'features'; it has blocks, act"):
        check_options(make, {"features": 8}, "net", before=1)


def test_code_in_a_file_finds_its_helpers_while_it_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("NUMBER = 7\n")
    (tmp_path / "code.py").write_text(
        "def number():\n    import helper\n    return helper.NUMBER\n"
    )
    with loaded(f"{tmp_path}/code.py:number", "it", "function") as number:
        assert number() == 7
    monkeypatch.chdir(tmp_path)
    assert absolute("code.py:number") == f"{tmp_path}/code.py:number"


def test_a_kind_of_thing_is_named_where_the_reference_is_incomplete():
    with (
        pytest.raises(ValueError, match=r"^it must be package\.module:Class or file\.py:Class$"),
        loaded("file.py:", "it", "Class"),
    ):
        pass
