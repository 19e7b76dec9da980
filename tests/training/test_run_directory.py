"""Metrics and configurations as kills, full disks and editors leave them."""

from __future__ import annotations

import json
import os

import pytest

from mkdext.training.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path)


@pytest.mark.parametrize("cut", [b"", b'{"st', b'{"step": 3}', b'{"step": 3, "lr": 1e-', b"\xc3"])
def test_a_last_line_that_was_cut_counts_only_where_it_is_whole(cut, run):
    run.metrics.write_bytes(b'{"step": 1}\n{"step": 2}\n' + cut)
    whole = 3 if cut == b'{"step": 3}' else 2
    assert [record["step"] for record in run.records()] == list(range(1, whole + 1))
    run.keep_metrics_until(9)
    run.add_metrics({"step": 9})
    assert [record["step"] for record in run.records()] == [*range(1, whole + 1), 9]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": 1, "st{"step": 1}', "is not JSON"),
        ("[1]", "must hold names and values, got list"),
        ('{"lr": 1}', "has no 'step'"),
        ('{"step": "1"}', "'step' must be of type int, got str"),
        ('{"step": 1, "lr": "fast"}', "'lr' must be a number, got 'fast'"),
        ('{"step": 1, "validation": {"a": {"psnr_y": [1]}}}', "'psnr_y' must be a number"),
        ("[" * 5000, "is nested more than"),
    ],
)
def test_a_line_that_no_kill_leaves_is_named(line, reason, run):
    run.metrics.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    for read in (run.records, lambda: run.keep_metrics_until(1), lambda: run.has_validation(1)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged") as told:
            read()
        assert reason in str(told.value) and "delete this line to continue" in str(told.value)


def test_numbers_are_kept_to_the_last_digit(run):
    record = {"step": 1, "lr": 9.363620667976085e-05, "validation": {"a": {"psnr_y": 29.1 / 3}}}
    run.add_metrics(record)
    before = run.metrics.read_bytes()
    run.keep_metrics_until(1)
    assert run.metrics.read_bytes() == before
    assert run.records() == [record]


def test_numbers_that_are_not_finite_are_no_numbers(run):
    run.add_metrics({"step": 1, "psnr_y": float("inf")})
    assert json.loads(run.metrics.read_text()) == {"step": 1, "psnr_y": None}


@pytest.mark.parametrize(
    "content", ["", "- a", "lr: {", "a: &a [*a]", "changes: 3", "lr: 1\nlr: 2"]
)
def test_a_damaged_configuration_is_told(content, run):
    run.config.write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml is damaged \(.*give another `out`"):
        run.options()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_what_cannot_be_written_is_told_before_the_first_step(name, run):
    with run.opened({"lr": 1}):
        run.add_metrics({"step": 1})
    (run.root / name).chmod(0o500 if name == "checkpoints" else 0o400)
    with pytest.raises(ValueError, match=f"{name} cannot be written"), run.opened({"lr": 1}):
        pass
