from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mkdext import methods
from mkdext.comparison import Comparison
from mkdext.methods import (
    MKD,
    DistillationMethod,
    MKDOptions,
    known_method,
    make_method,
    method_class,
    method_names,
    register,
    registry,
    try_method,
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
        *(("fitnet", 100 / 255), ("at", 1000 / 255), ("vid", 1), ("ickd", 2.5 / 255)),
        *(("fakd", 10 / 255), ("l2t-ww", 0.1), ("pisr", 2e-3), ("response", 1)),
        *((f"mkd{case}", 1e-2) for case in ("", "-case1", "-case2", "-case3")),
    ],
)
def test_a_method_has_its_published_weight_and_mkd_its_own_loss_beside_eq_3(name, weight):
    method = method_class(name)
    assert method.published_weight == pytest.approx(weight)
    assert method.published_meta.kappa == (1.0 if name.startswith("mkd") else 0)


USERS = """
import torch
from mkdext.methods import DistillationMethod

class Mine(DistillationMethod):
    published_weight = 0.5

    def __init__(self, student_channels, teacher_channels, temperature=2.0):
        super().__init__(student_channels, teacher_channels)
        self.temperature = temperature
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, student, teacher):
        points = zip(student, teacher, strict=True)
        return sum((self.gain * s.mean() - t.mean()).square() for s, t in points) / self.temperature

    def meta_parameters(self):
        return [self.gain]

class Failing(Mine):
    def forward(self, student, teacher):
        return student[0] @ teacher[0]

class Vector(Mine):
    def forward(self, student, teacher):
        return student[0].mean((1, 2, 3))

class Constant(Mine):
    def forward(self, student, teacher):
        return teacher[0].mean() * self.gain.detach()

class Infinite(Mine):
    def forward(self, student, teacher):
        return super().forward(student, teacher) / 0

class Once(Mine):
    def forward(self, student, teacher):
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.square().mean()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, grad):
                (x,) = ctx.saved_tensors
                return grad * 2 * x / x.numel()

        return Square.apply(self.gain * student[0])

class Abstract(DistillationMethod):
    pass

class Other:
    pass
"""


@pytest.fixture
def users(tmp_path):
    (tmp_path / "methods.py").write_text(USERS)
    return f"{tmp_path}/methods.py"


def test_a_method_in_a_file_is_made_with_its_options(users):
    name = f"{users}:Mine"
    assert known_method(name) and method_class(name) is method_class(name)
    assert TrainOptions(method=name).resolved().kd_weight == 0.5
    method = make_method(name, [3], [4], [MKDOptions()], {"temperature": 4})
    maps, hints = [torch.ones(2, 3, 4, 4)], [torch.full((2, 4, 4, 4), 3.0)]
    assert float(method(maps, hints).detach()) == 1.0
    try_method(method, [[3, 4, 4]], [[4, 4, 4]], True, "it")
    assert method.gain.grad is None
    assert name not in method_names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Other", r":Other must be a class derived from mkdext\.methods\.Dist.*, got Other$"),
        ("USERS", r"methods has no 'USERS'"),
        ("Mien", r"methods has no 'Mien'; did you mean Mine\?"),
        ("torch", r"must be a class derived from .*, got an object module$"),
        ("", r"must be package\.module:Class or file\.py:Class$"),
    ],
)
def test_what_is_no_method_is_refused_in_one_sentence(name, message, users):
    with pytest.raises(ValueError, match=message):
        TrainOptions(method=f"{users}:{name}").resolved()


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("{users}:Mine", {"temprature": 1}, r"no option 'temprature'; did you mean temperature\?"),
        (
            "{users}:Mine",
            {"temperature": 1, "student_channels": [3]},
            "no option 'student_channels'",
        ),
        ("{users}:Abstract", {}, r"^`method` .*:Abstract cannot be made: TypeError: .*abstract"),
        ("mkd", {"gird": 4}, r"^`method` mkd has no option 'gird'; did you mean grid\?"),
        ("mkd", {"grid": 0}, r"^`mkd\.grid` must be from 1 to 1024, got 0$"),
        ("mkd", {"grid": "a"}, r"^`mkd\.grid` must be an integer, got 'a'$"),
        ("at", {"grid": 4}, r"^`method` at has no option 'grid'$"),
    ],
)
def test_options_that_a_method_does_not_have_are_refused(method, given, message, users):
    with pytest.raises(ValueError, match=message):
        make_method(method.format(users=users), [3], [4], [], given)


def test_options_by_name_override_those_of_the_methods_class():
    method = make_method("mkd-case3", [3], [4], [object(), MKDOptions(grid=2)], {"kernel_size": 5})
    assert method.options == MKDOptions(grid=2, kernel_size=5)
    assert make_method(MKD, [3], [4]).options == MKDOptions()


@pytest.mark.parametrize(
    ("name", "twice", "message"),
    [
        ("Failing", False, r"^it fails on maps \[2, 3, 4, 5\]: RuntimeError: "),
        ("Vector", False, r"^it must give a scalar tensor of floating point, got \[2\]$"),
        ("Constant", False, r"^it gives a loss that does not depend on the student's maps$"),
        ("Infinite", False, r"^it gives inf for maps of numbers from -1 to 1$"),
        ("Once", True, r"^it cannot be differentiated twice, which the meta-gradient needs: "),
    ],
)
def test_a_method_that_gives_no_loss_is_refused_before_the_training(name, twice, message, users):
    method = make_method(f"{users}:{name}", [3], [4])
    with pytest.raises(ValueError, match=message) as refused:
        try_method(method, [[3, 4, 5]], [[4, 4, 5]], twice, "it")
    assert "\n" not in str(refused.value)


def test_a_method_that_is_differentiated_once_need_be_no_oftener(users):
    try_method(make_method(f"{users}:Once", [3], [4]), [[3, 4, 5]], [[4, 4, 5]], False, "it")


def test_the_example_of_the_documentation_is_a_method(tmp_path):
    page = Path(methods.__file__).parents[2] / "docs" / "methods.md"
    (example,) = re.findall(r"```python title=\"mine.py\"\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(example)
    method = make_method(f"{tmp_path}/mine.py:MeanActivation", [3], [4], given={"power": 1})
    try_method(method, [[3, 4, 5]], [[4, 4, 5]], False, "it")
    maps, hints = [torch.ones(2, 3, 4, 4)], [torch.full((2, 4, 4, 4), 3.0)]
    assert float(method(maps, hints)) == 2.0
