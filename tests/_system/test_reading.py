from __future__ import annotations

import os

import pytest

from mkdext._system.reading import entry, parse_json, parse_yaml, read_json, read_yaml, require_file

LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is nested more than"),
        ("[" * 40 + "]" * 40, "is nested more than 32 levels"),
        ('{"a": 1, "a": 2}', "has 'a' twice"),
        ('{"a": ', "is not JSON"),
        (b"\xff\xfe\xfa", "is not JSON"),
        ("9" * 5000, "is not JSON"),
    ],
)
def test_json_that_no_program_of_ours_writes_is_refused_in_one_sentence(text, message):
    with pytest.raises(ValueError, match=f"^index {message}"):
        parse_json(text, "index")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "is nested more than"),
        ("a: 1\nb: 2\na: 3", "has 'a' twice"),
        (LAUGHS, "becomes too large"),
        ("a: &a [*a]", "becomes too large"),
        ("a: [1", "is not YAML: .* in line 1"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("[a, b]: 1\n? {c: d}\n: 2", "is not YAML"),
        (b"\xff\xfe\xfa", "is not YAML"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_yaml_that_no_program_of_ours_writes_is_refused_in_one_sentence(text, message):
    with pytest.raises(ValueError, match=f"^file {message}"):
        parse_yaml(text, "file")


def test_a_chain_of_aliases_is_not_followed_too_deep():
    chain = "\n".join(["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)])
    with pytest.raises(ValueError, match="is nested more than"):
        parse_yaml(chain, "file")


def test_modest_aliases_and_merges_are_understood():
    text = "base: &base {lr: 1, wd: 2}\nother: {<<: *base, lr: 3}\nagain: *base"
    content = parse_yaml(text, "file")
    assert content["other"] == {"lr": 3, "wd": 2} and content["again"] == {"lr": 1, "wd": 2}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b" " * 100)
    with pytest.raises(ValueError, match="index is larger than"):
        read_json(tmp_path / "a", "index", most=50)
    (tmp_path / "b").write_bytes(b" " * (2 << 20))
    with pytest.raises(ValueError, match="config is larger than 1 MB"):
        read_yaml(tmp_path / "b", "config")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path, "is a directory"),
        (tmp_path / "absent", "does not exist"),
    ):
        with pytest.raises(ValueError, match=f"it {message}"):
            require_file(path, "it")
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(ValueError, match="it "):
        require_file(tmp_path / "link", "it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold names and values, got list"),
        ({}, "has no 'step'"),
        ({"step": "1"}, "'step' must be of type int, got str"),
        ({"step": True}, "'step' must be of type int, got bool"),
        ({"step": 1.0}, "'step' must be of type int, got float"),
    ],
)
def test_a_value_of_another_kind_is_named(content, message):
    with pytest.raises(ValueError, match=message):
        entry(content, "step", int, "file")


def test_an_integer_serves_as_a_float():
    assert entry({"seconds": 3}, "seconds", float, "file") == 3.0
