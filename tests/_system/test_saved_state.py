"""Saved values and tensors are taken out only where they fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mkdext._system.saved_state import SavedState, serialized, write_state


def state_of(content: object) -> SavedState:
    return SavedState(content, "it", "delete it")


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


def test_what_was_written_is_read(tmp_path):
    module, optimizer = trained()
    file = tmp_path / "state.pt"
    write_state(file, {"net": module.state_dict(), "adam": optimizer.state_dict(), "step": 3})
    state = SavedState.read(file, "delete it")
    again, like = trained()
    state.load_module("net", again)
    state.load_optimizer("adam", like)
    assert state.number("step", 0, 3) == 3
    assert torch.equal(again.weight, module.weight)
    kept = (each.state_dict()["state"][0]["exp_avg"] for each in (like, optimizer))
    assert torch.equal(*kept)


def test_what_is_cut_short_is_refused_with_what_to_do():
    content = serialized({"step": 3})
    content.truncate(100)
    with pytest.raises(ValueError, match=r"^it is damaged \(.*\): delete it$"):
        SavedState.of(content, "it", "delete it")


@pytest.mark.parametrize("step", [-1, 8])
def test_a_number_out_of_its_range_is_refused(step):
    with pytest.raises(ValueError, match=rf"'step' must be from 0 to 7, got {step}"):
        state_of({"step": step}).number("step", 0, 7)


def test_moments_of_another_optimizer_are_refused():
    module, adam = trained()
    plain = torch.optim.SGD(module.parameters(), momentum=0.9)
    saved = copy.deepcopy(plain.state_dict()) | {"state": adam.state_dict()["state"]}
    with pytest.raises(ValueError, match="sgd is of another optimizer"):
        state_of({"sgd": saved}).load_optimizer("sgd", plain)


class Observer(nn.Module):
    """Keeps as many numbers as it has seen channels, like those of quantisation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.empty(0))

    def _load_from_state_dict(self, state, prefix, *given) -> None:
        self.largest = torch.empty_like(state[f"{prefix}largest"])
        super()._load_from_state_dict(state, prefix, *given)


def test_a_module_may_decide_about_its_buffers():
    module = nn.Sequential(nn.Linear(2, 2), Observer())
    trained = {**module.state_dict(), "1.largest": torch.tensor([1.0, 2.0, 3.0])}
    SavedState({"student": trained}, "it", "delete it").load_module("student", module)
    assert module[1].largest.tolist() == [1, 2, 3]
