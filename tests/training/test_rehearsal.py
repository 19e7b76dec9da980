"""What comes later is tried before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mkdext._system.saved_state import SavedState, write_state
from mkdext.datafree import main as datafree
from mkdext.train import main
from mkdext.training.trainer import Trainer

NETS = """
import torch
from PIL import Image
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 48, 3, padding=1),
                         nn.PixelShuffle(4))

class Unsaved(Net):
    def get_extra_state(self):
        return object()

    def set_extra_state(self, state):
        pass

class Forgets(Net):
    def __init__(self):
        super().__init__()
        self.register_load_state_dict_post_hook(lambda net, _: net[0].weight.data.zero_())

class Small(Net):
    def forward(self, lr):
        if lr.shape[-1] > 20:
            raise ValueError("pictures of 20 pixels at most")
        return super().forward(lr)

class Cuts(Net):
    def forward(self, lr):
        sr = super().forward(lr)
        return sr[..., :-1] if lr.shape[-1] > 20 else sr

class Exits(Net):
    def forward(self, lr):
        if lr.shape[-1] > 20:
            raise SystemExit(0)
        return super().forward(lr)

class Large(Net):
    def forward(self, lr):
        if lr.shape[-1] < 10:
            raise ValueError("at least 10 pixels")
        return super().forward(lr)

class ExitsLater(Net):
    steps = 0

    def forward(self, lr):
        self.steps += self.training
        if self.steps == 4:
            raise SystemExit(0)
        return super().forward(lr)

class Tied(Net):
    def __init__(self):
        super().__init__()
        self.again = self[0]

    def forward(self, lr):
        return self[2](self[1](self.again(lr)))

class Observed(Net):
    '''Keeps a range whose size it learns, as observers of quantisation do.'''

    def __init__(self):
        super().__init__()
        self.register_buffer("range", torch.empty(0))

    def forward(self, lr):
        if self.training:
            self.range = torch.stack([lr.detach().min(), lr.detach().max()])
        return super().forward(lr)

    def _load_from_state_dict(self, state, prefix, *rest):
        self.range = torch.empty_like(state[prefix + "range"])
        super()._load_from_state_dict(state, prefix, *rest)
"""


@pytest.fixture
def student(tmp_path):
    (tmp_path / "net.py").write_text(NETS)
    return lambda kind: ["--student", f"{tmp_path / 'net.py'}:{kind}", "--method", "vanilla"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Unsaved", "student Unsaved cannot be saved and read again: "),
        ("Forgets", "student Forgets cannot be saved and read again: "),
        (
            "Cuts",
            "Cuts cannot be measured on a photograph of 24x16: ValueError: it makes [3, 64, 95",
        ),
        ("Exits", "Exits cannot be measured on a photograph of 24x16: SystemExit: 0"),
        ("Large", "student Large fails in training mode on images [2, 3, 8, 8]: ValueError: at le"),
        ("Small", "Small cannot be measured on a photograph of 24x16: ValueError: pictures of 20"),
    ],
)
def test_what_would_fail_later_is_told_before_the_first_step(
    kind, message, student, flags, photographs, tmp_path, capsys
):
    folder = tmp_path / "wide"
    folder.mkdir()

    Image.effect_noise((96, 64), 60).convert("RGB").save(folder / "noise.png")
    for command, given in (
        (main, [*flags, "--val-dir", str(folder)]),
        (datafree, ["--val-dir", str(folder), "--source", "procedural", "--patch-size", "8"]),
    ):
        assert command([*given, *student(kind), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["Observed", "Tied"])
def test_a_module_decides_about_its_own_buffers_also_on_resume(
    kind, student, flags, tmp_path, monkeypatch
):
    runs = [tmp_path / "whole", tmp_path / "stopped"]
    given = [*flags, *student(kind), "--iterations", "4", "--checkpoint-every", "2"]
    assert main([*given, "--out", str(runs[0])]) == 0
    save = Trainer._save
    monkeypatch.setattr(Trainer, "_save", lambda self, done: _stop_at(self, done, save))
    with pytest.raises(Stopped):
        main([*given, "--out", str(runs[1])])
    monkeypatch.setattr(Trainer, "_save", save)
    assert main([*given, "--out", str(runs[1])]) == 0
    weights = [(run / "checkpoints/student.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


class Stopped(Exception):
    pass


def _stop_at(trainer, done, save):
    if done.step == 4:
        raise Stopped
    return save(trainer, done)


def test_a_network_that_exits_in_a_step_does_not_end_as_if_all_was_well(
    student, flags, tmp_path, capsys
):
    assert main([*flags, *student("ExitsLater"), "--out", str(tmp_path / "run")]) == 1
    assert "mkdext.train: step 3: SystemExit: 0" in capsys.readouterr().err


def test_weights_that_a_module_would_change_are_refused(tmp_path):
    module = torch.nn.Linear(2, 2)
    write_state(tmp_path / "state.pt", {"student": {"weight": torch.ones(2, 2).double()}})
    state = SavedState.read(tmp_path / "state.pt", "delete it")
    with pytest.raises(ValueError, match="does not fit"):
        state.load_module("student", module)
    write_state(
        tmp_path / "state.pt", {"student": {k: v.double() for k, v in module.state_dict().items()}}
    )
    with pytest.raises(ValueError, match=r"student, \w+ is float64 \[2"):
        SavedState.read(tmp_path / "state.pt", "delete it").load_module("student", module)


@pytest.mark.slow
def test_the_rehearsal_changes_no_weight(student, flags, tmp_path, monkeypatch):
    given = [*flags, *student("Net"), "--iterations", "3"]
    assert main([*given, "--out", str(tmp_path / "with")]) == 0
    monkeypatch.setattr("mkdext.training.trainer.rehearse", lambda *given: None)
    assert main([*given, "--out", str(tmp_path / "without")]) == 0
    one, other = (
        (Path(tmp_path, name) / "checkpoints/student.safetensors").read_bytes()
        for name in ("with", "without")
    )
    assert one == other
    assert json.loads((tmp_path / "with/summary.json").read_text())["iterations"] == 3


def test_the_smallest_photograph_is_tried_too_also_with_the_teacher(
    student, flags, photographs, tmp_path, capsys
):
    (tmp_path / "net.py").write_text(
        NETS
        + """
class Padded(Net):
    def forward(self, lr):
        wide = nn.functional.pad(lr, (12, 12, 12, 12), mode="reflect")
        return super().forward(wide)[..., 48:-48, 48:-48]

class Teacher(Padded):
    pass
"""
    )
    folder = tmp_path / "sizes"
    folder.mkdir()
    for name, side in (("a", 96), ("b", 44)):
        Image.effect_noise((side, side), 60).convert("RGB").save(folder / f"{name}.png")
    name = f"{tmp_path / 'net.py'}"
    sizes = [*flags, "--patch-size", "14", "--val-dir", str(folder), "--out", str(tmp_path / "out")]
    sizes[sizes.index("--train-dir") + 1] = str(photographs)
    for given, whose in (
        (["--student", f"{name}:Padded", "--method", "vanilla"], "student Padded"),
        (
            ["--student", "edsr-s", "--teacher", f"{name}:Teacher", "--method", "response"],
            "teacher",
        ),
    ):
        assert main([*sizes, *given]) == 2
        message = capsys.readouterr().err
        assert f"{whose}" in message and "cannot be measured on a photograph of 11x11" in message
        assert not (tmp_path / "out").exists()


def test_a_photograph_that_is_met_exactly_does_not_end_a_run_or_its_resume(
    student, flags, tmp_path
):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Black(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.gain = nn.Parameter(torch.ones(1))\n"
        "    def forward(self, lr):\n"
        "        return (lr * self.gain).repeat_interleave(4, 2).repeat_interleave(4, 3)\n"
    )
    folder = tmp_path / "black"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    own = [
        "--student",
        f"{tmp_path / 'net.py'}:Black",
        "--method",
        "vanilla",
        "--val-dir",
        str(folder),
    ]
    run = tmp_path / "run"
    assert (
        main([*flags, *own, "--iterations", "2", "--validate-every", "1", "--out", str(run)]) == 0
    )
    assert main(["--resume", "--out", str(run), "--iterations", "4"]) == 0
    scores = json.loads((run / "summary.json").read_text())["validation"]["black"]["student"]
    assert scores["psnr_y"] is None and scores["exact"] == ["black.png"]
