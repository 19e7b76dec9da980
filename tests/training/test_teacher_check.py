"""A teacher is measured before a training; below bicubic it is refused, with what to try."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext.data import imresize
from mkdext.datafree import main as datafree
from mkdext.models import builtin_teacher
from mkdext.train import main
from mkdext.training.validation import require_strong_teacher

WRAPPED = """
from torch import nn
from mkdext.models import builtin_teacher

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = builtin_teacher()

    def forward(self, x):
        return self.net(x / 255) * 255
"""


class Changed(nn.Module):
    """The built-in teacher for other colours."""

    def __init__(self, before, after) -> None:
        super().__init__()
        self.net, self.before, self.after = builtin_teacher(), before, after

    def forward(self, lr: Tensor) -> Tensor:
        return self.after(self.net(self.before(lr)))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (lambda x: x, lambda y: y.flip(3), "check whether its weights were loaded"),
        (lambda x: x, lambda y: y.clamp(0, 0.2), "whether it clamps its result"),
        (lambda x: x / 255, lambda y: y * 255, "which colours it takes (`teacher_range`; "),
    ],
)
def test_what_is_worse_than_bicubic_is_refused_with_what_to_try(before, after, message):
    with pytest.raises(ValueError, match=r"worse than bicubic .*bicubic 27\.1 dB\): ") as refused:
        require_strong_teacher(Changed(before, after), 4, {})
    assert message in str(refused.value) and "`allow_weak_teacher`" in str(refused.value)


def test_a_good_teacher_and_bicubic_itself_may_teach():
    require_strong_teacher(builtin_teacher(), 4, {})

    class Bicubic(nn.Module):
        def forward(self, lr: Tensor) -> Tensor:
            return imresize(lr, 3)

    require_strong_teacher(Bicubic(), 3, {})


def test_a_teacher_for_other_pictures_may_teach_what_it_is_good_for():
    class Inverted(nn.Module):
        """Right for pictures of one colour channel that is turned around."""

        def forward(self, lr: Tensor) -> Tensor:
            return torch.where(lr.mean() < 0.1, imresize(lr, 2), 1 - imresize(lr, 2))

    dark = (torch.rand(3, 40, 40) * 40).to(torch.uint8)
    pairs = [(imresize(dark, 1 / 2), dark)]
    require_strong_teacher(Inverted(), 2, {"dark": pairs})
    with pytest.raises(ValueError, match=r"dB on built-in photographs, .* dB on bright, bicubic"):
        require_strong_teacher(
            Inverted(), 2, {"bright": [(255 - lr, 255 - hr) for lr, hr in pairs]}
        )


def test_pictures_that_bicubic_meets_exactly_tell_nothing():
    black = torch.zeros(3, 40, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(\S+ dB on built-in photographs, bicubic \S+ dB\)"):
        require_strong_teacher(nn.Upsample(scale_factor=2), 2, {"b": [(black[:, ::2, ::2], black)]})


def test_a_teacher_keeps_its_mode():
    teacher = builtin_teacher().train()
    require_strong_teacher(teacher, 4, {})
    assert all(module.training for module in teacher.modules())


@pytest.mark.slow
@pytest.mark.usefixtures("teachers_are_measured")
def test_trainings_and_dry_runs_find_the_range_of_a_teacher_and_refuse_a_weak_one(
    flags, photographs, tmp_path, capsys
):
    (tmp_path / "wrapped.py").write_text(WRAPPED)
    out = tmp_path / "out"
    own = ["--teacher", f"{tmp_path / 'wrapped.py'}:Wrapped"]
    own += ["--method", "fitnet", "--iterations", "1", "--out", str(out)]
    short = ["--val-dir", str(photographs), "--source", "procedural", "--patch-size", "8"]
    for command, given in ((main, flags), (datafree, short)):
        for dry in (["--dry-run"], []):
            assert command([*given, *own, *dry, "--teacher-range", "1"]) == 2
            assert "which colours it takes (--teacher-range" in capsys.readouterr().err
            assert not out.exists()
        assert command([*given, *own, "--dry-run"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "teacher Wrapped takes colours from 0 to 255 (29" in shown
        assert "points of the teacher: net.body." in shown
        assert command([*given, *own]) == 0
        out = tmp_path / "other"
        own[-1] = str(out)
