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
    base = dataclasses.replace(BASE, teacher_cache=None, imitation_end=0.25, made_share=0.25)
    options = cells("vanilla", "pisr", "mkd", base=base)
    shown = {name: (o.imitation, o.imitation_end, o.made_share) for name, o in options.items()}
    assert shown == {"vanilla": (0.0, 0.0, 0.0), "pisr": (0.0, 0.0, 0.0), "mkd": (0.5, 0.25, 0.25)}


def test_points_are_not_named_to_a_method_that_compares_pictures():
    named = dataclasses.replace(BASE, student_points=("body.0",), teacher_points=("body.1",))
    options = cells("response", "fitnet", base=named)
    assert (options["response"].student_points, options["response"].teacher_points) == ((), ())
    assert options["fitnet"].teacher_points == ("body.1",)


def test_maps_that_differ_have_caches_that_differ():
    plain = dataclasses.replace(BASE, imitation=0.0)
    folders = {
        cells("mkd")["mkd"].teacher_cache,
        cells("response", "mkd")["response"].teacher_cache,
        cells("mkd", base=plain)["mkd"].teacher_cache,
        cells("response", "mkd", base=plain)["response"].teacher_cache,
    }
    assert len(folders) == 4
    assert cells("mkd")["mkd"].teacher_cache == cells("fitnet")["fitnet"].teacher_cache
    own = {"at": {"teacher_points": ["body.1"]}, "vid": {"kd_weight": 2.0}}
    comparison = Comparison(BASE, ["rcan-a"], ["mkd", "at", "vid"], [3], own)
    mkd, at, vid = (cell.options.teacher_cache for cell in comparison.cells())
    assert mkd == vid != at


def test_all_methods_are_trained_on_the_same_patches():
    for methods in (("vanilla", "response"), ("vanilla", "response", "at")):
        assert {o.teacher_cache_keeps for o in cells(*methods).values()} == {"maps"}
    asked = dataclasses.replace(BASE, teacher_cache_keeps="pictures")
    assert {o.teacher_cache_keeps for o in cells("vanilla", "at", base=asked).values()} == {
        "pictures"
    }


def test_pictures_are_the_same_for_all_seeds_students_and_methods_but_for_another_teacher():
    own = {"fitnet": {"teacher_weights": "other.pt"}}
    base = dataclasses.replace(BASE, teacher_cache_keeps="pictures")
    students, methods = ["rcan-a", "rcan-b"], ["response", "at", "fitnet"]
    comparison = Comparison(base, students, methods, [3, 4], own)
    folders = {cell.options.teacher_cache for cell in comparison.cells()}
    assert folders == {Path("cache"), Path("cache/of-fitnet")}
