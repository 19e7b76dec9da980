"""Statistics against scipy, and the paper's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from mkdext.comparison.published import SETS, published
from mkdext.comparison.results import Spread, difference, read_results, spread
from mkdext.training.options import METHOD_NAMES

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
            for method in METHOD_NAMES:
                number = published(student, method, data, 4)
                if number and not number.misprint and not vanilla.misprint:
                    assert -0.05 < number.psnr_y - vanilla.psnr_y < 0.35
                    assert -0.002 < number.ssim_y - vanilla.ssim_y < 0.012
