"""Parameters without a gradient are named after the first steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mkdext.models.gradient_watch import STEPS, GradientWatch, silence_in_words
from mkdext.train import main

NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, dead=1):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.slow = nn.Conv2d(4, 4, 3, padding=1)
        self.fast = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.tail = nn.Sequential(nn.Conv2d(4, 48, 3, padding=1), nn.PixelShuffle(4))
        self.dead = nn.ModuleList(nn.Linear(100, 100) for _ in range(dead))

    def forward(self, lr):
        f = self.head(lr)
        return self.tail(self.norm(self.slow(f) if self.training else self.fast(f)))

def evaluating():
    return Net().eval()

def frozen():
    net = Net(0)
    net.norm.eval()
    net.head.requires_grad_(False)
    return net
"""


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))


def gradients(model: nn.Module, *silent: str, zero: bool = False) -> list[torch.Tensor | None]:
    none = torch.zeros(1) if zero else None
    return [none if n in silent else p.abs() + 1 for n, p in model.named_parameters()]


def test_parameters_are_named_once_after_the_first_steps():
    model = network()
    watch, told = GradientWatch(model), []
    for _ in range(STEPS + 5):
        watch.add(gradients(model, "0.bias"))
        told.append(silence_in_words([watch], is_last=False))
    assert [step for step, message in enumerate(told, 1) if message] == [STEPS]
    message = "no gradient has reached 1 of the student's 5 parameters in 20 steps, 12% of its num"
    assert told[STEPS - 1].startswith(message) and told[STEPS - 1].endswith(": 0.bias")
    assert silence_in_words([watch], is_last=True) is None


def test_gradients_of_zero_count_where_they_are_more_than_a_few():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 100))
    for silent, is_told in (("0.bias", False), ("1.bias", True)):
        watch = GradientWatch(model)
        watch.add(gradients(model, silent, zero=True))
        told = silence_in_words([watch], is_last=True)
        assert (told is not None and told.endswith(f": {silent}")) == is_told


def test_one_gradient_is_enough():
    model = network()
    watch = GradientWatch(model)
    for step in range(STEPS):
        watch.add(gradients(model, *([] if step == 7 else ["0.bias"])))
    assert silence_in_words([watch], is_last=False) is None


def test_a_short_training_tells_at_its_end_and_whether_it_is_most():
    model = network()
    watch = GradientWatch(model)
    watch.add(gradients(model, "0.weight", "0.bias", "1.weight", "2.bias"))
    assert silence_in_words([watch], is_last=False) is None
    told = silence_in_words([watch], is_last=True)
    assert "4 of the student's 5 parameters in 1 step, 75%" in told
    assert told.endswith("this is most of the student, which is hardly trained")


def test_of_several_scales_one_gradient_is_enough():
    model = network()
    one, two = GradientWatch(model), GradientWatch(model)
    one.add(gradients(model, "0.bias", "1.weight"))
    two.add(gradients(model, "0.bias"))
    assert silence_in_words([one, two], is_last=True).endswith(": 0.bias")


def test_frozen_parameters_are_not_looked_at():
    model = network()
    model[0].requires_grad_(False)
    assert list(GradientWatch(model).sizes) == ["1.weight", "2.weight", "2.bias"]


@pytest.fixture
def trained(flags, tmp_path, capsys):
    def train(factory: str) -> tuple[dict[str, torch.Tensor], str]:
        from safetensors.torch import load_file

        (tmp_path / "net.py").write_text(NETS)
        own = ["--student", f"{tmp_path / 'net.py'}:{factory}", "--method", "vanilla"]
        assert main([*flags, *own, "--iterations", "2", "--out", str(tmp_path / "run")]) == 0
        return load_file(tmp_path / "run/checkpoints/student.safetensors"), capsys.readouterr().out

    return train


def test_a_student_that_comes_in_evaluation_mode_is_trained_in_training_mode(trained):
    torch.manual_seed(0)
    weights, shown = trained("evaluating")
    assert weights["norm.num_batches_tracked"] == 2 and weights["norm.running_mean"].any()
    assert "no gradient has reached 4 of the student's 12 parameters in 2 steps" in shown
    assert "fast.weight, fast.bias, dead.0.weight, dead.0.bias; this is most" in shown


def test_parts_that_the_user_froze_stay_frozen(trained):
    weights, shown = trained("frozen")
    assert weights["norm.num_batches_tracked"] == 0 and not weights["norm.running_mean"].any()
    assert "2 of the student's 8 parameters" in shown and "fast.weight, fast.bias" in shown
