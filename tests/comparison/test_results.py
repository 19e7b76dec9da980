"""Statistics against scipy, and the paper's numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mkdext._system.terminal import Terminal
from mkdext.comparison.published import SETS, published
from mkdext.comparison.report import write_report
from mkdext.comparison.results import Spread, difference, read_results, rows, spread
from mkdext.training.options import known_methods

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_the_interval_is_that_of_a_paired_t_test(seeds):
    ours, vanilla = RANDOM.normal(30, 0.1, (2, seeds))
    gain = difference(dict(enumerate(ours)), dict(enumerate(vanilla)))
    test = stats.ttest_rel(ours, vanilla)
    low, high = test.confidence_interval(0.95)
    assert gain.mean - gain.interval == pytest.approx(low)
    assert gain.mean + gain.interval == pytest.approx(high)
    assert gain.certain == (test.pvalue < 0.05)


def test_a_gain_is_called_certain_where_a_t_test_is_significant():
    values = {0: 30.1, 1: 30.21, 2: 30.29}
    assert difference(values, {0: 30.0, 1: 30.1, 2: 30.2}).certain
    assert not difference(values, {0: 30.0, 1: 30.3, 2: 30.2}).certain


def test_only_seeds_of_both_count_and_one_pair_has_no_interval():
    gain = difference({0: 2.0, 1: 3.0}, {1: 1.0, 2: 9.0})
    assert (gain.seeds, gain.mean, gain.interval, gain.certain) == (1, 2.0, None, False)
    assert difference({0: 2.0}, {1: 1.0}) is None


def test_the_spread_is_that_of_a_sample():
    values = RANDOM.normal(size=7)
    assert spread(list(values)) == pytest.approx((7, values.mean(), values.std(ddof=1)))
    assert spread([2.5]) == Spread(1, 2.5, None)


def test_a_damaged_training_is_named(tmp_path):
    run = tmp_path / "cells" / "rcan-a" / "mkd" / "seed-0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"method": "mkd"}))
    assert read_results(tmp_path) == []  # as if it was not at its end
    summary = {"iterations": 3, "validation": {}, "method": "mkd", "seed": 0, "scale": 4}
    summary |= {"parameters": 1, "seconds": 3}
    config = "student: rcan-a\nval_dir: []\n"
    for change, settings, metrics, reason in (
        ({"seed": "0"}, config, "", "'seed' must be of type int, got str"),
        ({"iterations": 0}, config, "", "'iterations' is 0"),
        ({"validation": {"a": 3}}, config, "", "'a' must be of type dict"),
        ({"validation": {"a": {"student": {"psnr_y": 3}}}}, config, "", "has no 'ssim_y'"),
        ({}, "- a", "", "config.yaml is damaged"),
        ({}, "student: 3", "", "'student' must be of type str"),
        ({}, config, "{\n{", "metrics.jsonl, line 1 is damaged"),
        ({}, config, '{"step": 1, "validation": {"a": 3}}', "must hold names and values"),
    ):
        (run / "summary.json").write_text(json.dumps(summary | change))
        (run / "config.yaml").write_text(settings)
        (run / "metrics.jsonl").write_text(metrics)
        with pytest.raises(ValueError, match=r"seed-0 is damaged .* trains it again") as told:
            read_results(tmp_path)
        assert reason in str(told.value)


def test_the_papers_numbers_are_found_by_set_and_scale():
    assert published("rcan-a", "fitnet", "B100", 4)[:2] == (26.97, 0.7168)
    assert published("rcan-c", "mkd-case2", "Urban100", 4)[:2] == (25.62, 0.7713)
    assert published("han-s", "mkd", "set14", 4)[:2] == (28.14, 0.7676)
    assert published("rcan-a", "mkd", "Set5", 2) is None
    assert published("rcan-a", "mkd", "holiday", 4) is None
    assert published("edsr-s", "fitnet", "Set5", 4) is None


def test_a_misprint_is_marked_and_nothing_else_is_far_from_vanilla():
    assert published("rcan-b", "pisr", "Set14", 4).misprint
    for student in ("rcan-a", "rcan-b", "rcan-c", "edsr-s", "rdn-s", "san-s", "han-s"):
        for data in SETS:
            vanilla = published(student, "vanilla", data, 4)
            for method in known_methods():
                number = published(student, method, data, 4)
                if number and not number.misprint and not vanilla.misprint:
                    assert -0.05 < number.psnr_y - vanilla.psnr_y < 0.35
                    assert -0.002 < number.ssim_y - vanilla.ssim_y < 0.012


def trained(out: Path, method: str, seed: int, name: str, psnr: float | None) -> None:
    run = out / "cells" / "rcan-a" / method / f"seed-{seed}"
    run.mkdir(parents=True)
    scores = {"psnr_y": psnr, "ssim_y": 0.5}
    ways = {"bicubic": {"psnr_y": None, "ssim_y": 1.0}, "student": scores}
    summary = {"method": method, "seed": seed, "scale": 4, "iterations": 2, "seconds": 1.0}
    summary |= {"parameters": 49_799, "validation": {name: ways}}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(json.dumps({"student": "rcan-a", "val_dir": []}))
    record = {"step": 2, "validation": {name: scores}}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")


@pytest.mark.parametrize("psnr", [30.0, None], ids=["finite", "all met exactly"])
def test_infinite_values_break_no_statistics(psnr, tmp_path):
    for seed in (0, 1):
        trained(tmp_path, "vanilla", seed, "Set5", 29.0)
        trained(tmp_path, "mkd", seed, "Set5", None if seed == 0 else psnr)
    mkd = next(row for row in rows(read_results(tmp_path)) if row.method == "mkd")
    assert mkd.psnr_y == Spread(2, math.inf, None)
    assert mkd.ssim_y == Spread(2, 0.5, 0.0)
    if psnr is None:
        assert mkd.psnr_gain is None
    else:
        assert mkd.psnr_gain[:2] == (1, 1.0)


def test_a_report_shows_names_as_they_are_and_infinite_values(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "mkdext.comparison.report.save_crops", lambda *given: [tmp_path / "c (1).png"]
    )
    name = "_a|b*c[red]$x$"
    for seed in (0, 1):
        trained(tmp_path, "vanilla", seed, name, None)
        trained(tmp_path, "mkd", seed, name, 30.0 + seed)
    write_report(tmp_path, Terminal(width=200))
    assert f"{name} PSNR" in capsys.readouterr().out
    text = (tmp_path / "comparison.md").read_text()
    assert r"| \_a\|b\*c\[red\]\$x\$ PSNR |" in text and "![c (1)](c%20%281%29.png)" in text
    line = next(line for line in text.splitlines() if line.startswith("| vanilla"))
    assert line.startswith("| vanilla | 2 | **inf** |")

    def refuse(constant):
        raise ValueError(constant)

    report = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=refuse)
    means = {row["method"]: row["psnr_y"]["mean"] for row in report["methods"]}
    assert means == {"vanilla": None, "mkd": 30.5}
