from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mkdext.training import BUILTIN_DEMO, TrainOptions, checks
from mkdext.training.checks import estimate_memory
from mkdext.training.options import MetaOptions, known_methods
from mkdext.training.setup import make_networks


def estimate(options: TrainOptions) -> int:
    resolved = options.resolved()
    return estimate_memory(resolved, make_networks(resolved))


def test_the_estimate_grows_with_the_batch_and_the_patch():
    sizes = [
        estimate(dataclasses.replace(BUILTIN_DEMO, method="vanilla", **changes))
        for changes in ({}, {"batch_size": 16}, {"patch_size": 48})
    ]
    assert 1.8 < sizes[1] / sizes[0] < 2.1
    assert 3.5 < sizes[2] / sizes[0] < 4.1


@pytest.mark.slow
@pytest.mark.parametrize("method", known_methods())
def test_every_method_has_an_estimate(method):
    options = TrainOptions(method=method, student="rcan-a", patch_size=8, train_dir=(Path(),))
    assert estimate(options) > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["unrolled", "replayed"])
def test_what_many_inner_steps_take_is_reckoned_from_few(mode, monkeypatch):
    def of(steps: int) -> TrainOptions:
        meta = MetaOptions(steps=steps, mode=mode)
        return dataclasses.replace(BUILTIN_DEMO, patch_size=8, meta=meta).resolved()

    options = of(6)
    reckoned = estimate(options)
    assert estimate(of(100_000_000)) > 10**11
    monkeypatch.setattr(checks, "_INNER_STEPS", 6)
    assert reckoned == pytest.approx(estimate(options), rel=1e-6)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes asked for are impossible"):
        estimate(dataclasses.replace(BUILTIN_DEMO, patch_size=2**40, method="vanilla"))
