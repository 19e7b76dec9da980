from __future__ import annotations

import dataclasses
from pathlib import Path

from mkdext.comparison import Comparison
from mkdext.training import TrainOptions

BASE = TrainOptions(imitation=0.5, teacher_cache=Path("cache"))


def cells(*methods: str, base: TrainOptions = BASE) -> dict[str, TrainOptions]:
    comparison = Comparison(base, ["rcan-a"], methods, [3])
    return {cell.options.method: cell.options for cell in comparison.cells()}


def test_nobody_is_imitated_without_a_teacher():
    options = cells("vanilla", "mkd")
    assert (options["vanilla"].imitation, options["mkd"].imitation) == (0.0, 0.5)


def test_points_are_not_named_to_a_method_that_compares_pictures():
    named = dataclasses.replace(BASE, student_points=("body.0",), teacher_points=("body.1",))
    options = cells("response", "fitnet", base=named)
    assert (options["response"].student_points, options["response"].teacher_points) == ((), ())
    assert options["fitnet"].teacher_points == ("body.1",)


def test_maps_that_differ_have_caches_that_differ():
    plain = dataclasses.replace(BASE, imitation=0.0)
    folders = {
        cells("mkd")["mkd"].teacher_cache,
        cells("response")["response"].teacher_cache,
        cells("mkd", base=plain)["mkd"].teacher_cache,
        cells("response", base=plain)["response"].teacher_cache,
    }
    assert len(folders) == 4
    assert cells("mkd")["mkd"].teacher_cache == cells("fitnet")["fitnet"].teacher_cache
    own = {"at": {"teacher_points": ["body.1"]}, "vid": {"kd_weight": 2.0}}
    comparison = Comparison(BASE, ["rcan-a"], ["mkd", "at", "vid"], [3], own)
    mkd, at, vid = (cell.options.teacher_cache for cell in comparison.cells())
    assert mkd == vid != at
