from __future__ import annotations

import pytest

from mkdext.comparison import Comparison
from mkdext.methods import (
    MKD,
    DistillationMethod,
    method_class,
    method_names,
    register,
    registry,
)
from mkdext.training import TrainOptions
from mkdext.training.options import known_methods


def test_every_method_is_known_by_its_name():
    assert method_class("mkd") is MKD
    assert {"mkd", "response"} <= set(method_names())


def test_a_method_that_is_registered_late_is_known_everywhere(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register("mine")
    class Mine(DistillationMethod):
        def forward(self, student, teacher):
            return sum((s.mean() - t.mean()) ** 2 for s, t in zip(student, teacher, strict=True))

    assert method_class("mine") is Mine and "mine" in known_methods()
    assert TrainOptions(method="mine").resolved().kd_weight == 1.0
    assert Comparison(TrainOptions(), ["rcan-a"], ["mine"], [0]).cells()[0].options.method == "mine"
    with pytest.raises(ValueError, match=r"got 'mien'; did you mean mine"):
        TrainOptions(method="mien")


def test_an_unknown_method_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r"got 'respons'; did you mean response\?"):
        method_class("respons")


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        *(("fitnet", 100), ("at", 1000), ("vid", 1), ("ickd", 2.5), ("fakd", 10 / 255)),
        *(("l2t-ww", 1), ("pisr", 1e-6), ("response", 1)),
        *((f"mkd{case}", 3e-3) for case in ("", "-case1", "-case2", "-case3")),
    ],
)
def test_a_method_has_its_published_weight_and_mkd_keeps_its_loss_in_the_meta_objective(
    name, weight
):
    method = method_class(name)
    assert method.published_weight == pytest.approx(weight)
    assert method.published_meta.keep == (0.1 if name.startswith("mkd") else 0)
