"""Factories of users are given options by name."""

from __future__ import annotations

import pytest
import torch

from mkdext.models import load_own, make_own, resolve_student, resolve_teacher, save_model

NETS = """
from torch import nn

def net(features, scale=2, act="relu"):
    last = nn.Conv2d(features, 3 * scale**2, 3, padding=1)
    middle = {"relu": nn.ReLU, "gelu": nn.GELU}[act]()
    return nn.Sequential(nn.Conv2d(3, features, 3, padding=1), middle, last, nn.PixelShuffle(scale))
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path}/nets.py:net"


def test_a_factory_is_given_its_options(net):
    network = make_own(net, "`student`", {"features": 5, "act": "gelu"})
    assert network[0].out_channels == 5 and type(network[1]).__name__ == "GELU"
    student = resolve_student(net, 3, {"features": 4, "scale": 3})
    assert student(torch.rand(1, 3, 4, 4)).shape == (1, 3, 12, 12)
    teacher = resolve_teacher(net, None, 2, {"features": 6})
    assert teacher.unwrapped[0].out_channels == 6 and not teacher.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"features": 4, "atc": "relu"},
            r"^`student` .*:net has no option 'atc'; did you mean act",
        ),
        ({}, r"must need no arguments, but: missing a required argument: 'features'"),
        ({"features": 4, "act": "tanh"}, r"^`student` .*:net failed: KeyError: 'tanh'$"),
        ({"features": 4, "scale": 3}, r"into \[1, 3, 34, 38\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, net):
    with pytest.raises(ValueError, match=message):
        resolve_student(net, 2, options)


def test_networks_of_this_package_take_no_options():
    with pytest.raises(ValueError, match=r"^`student_options` blocks: .* `student` is rcan-a; l"):
        resolve_student("rcan-a", 4, {"blocks": 2})
    with pytest.raises(ValueError, match=r"^`teacher_options` blocks: .* `teacher` is builtin; l"):
        resolve_teacher(None, None, 4, {"blocks": 2})


def test_weights_tell_the_options_that_their_factory_was_given(net, tmp_path):
    trained = resolve_student(net, 2, {"features": 5})
    origin = {"student": net, "student_options": ["features=5"], "scale": 2}
    save_model(tmp_path / "weights", trained.unwrapped, origin)
    loaded = load_own(net, tmp_path / "weights", 2, "`model`")
    lr = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        assert torch.equal(loaded(lr), trained(lr))
    with pytest.raises(ValueError, match="weights file"):  # What is given counts.
        load_own(net, tmp_path / "weights", 2, "`model`", options={"features": 4})
    save_model(tmp_path / "other", trained.unwrapped, {**origin, "student": "nets.py:another"})
    with pytest.raises(ValueError, match="missing a required argument: 'features'"):
        load_own(net, tmp_path / "other", 2, "`model`")
