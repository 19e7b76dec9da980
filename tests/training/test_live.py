"""Numbers that arrive late: in their order, and none is accepted that must not be."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from rich.console import Console

from mkdext.training import NonFiniteError, train
from mkdext.training.run import live
from mkdext.training.run.live import Arrival, Readings
from mkdext.training.step import TrainingStep
from tests.training.test_step import TINY


class Late(Arrival):
    """Numbers that are never there before they are waited for, as from a GPU far behind."""

    def is_there(self) -> bool:
        return False


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "Arrival", Late)


def value(number: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(number)}


def accept(values: object) -> None:
    pass


def test_on_a_cpu_numbers_are_there_at_once() -> None:
    read = Readings({"loss": 5.0, "other": 7.0}, accept)
    assert read.values == {"loss": 5.0, "other": 7.0}
    read.add(0, value(1.5))
    assert read.values == {"loss": 1.5, "other": 7.0}


def test_late_numbers_are_read_in_their_order_and_two_steps_later_at_most(late: None) -> None:
    read = Readings({}, accept)
    seen = []
    for step in range(5):
        read.add(step, value(float(step)))
        seen.append(read.values.get("loss"))
    assert seen == [None, None, 0.0, 1.0, 2.0]
    read.wait()
    assert read.values == {"loss": 4.0}


def test_numbers_that_are_refused_name_their_own_step(late: None) -> None:
    def refuse(values: dict[str, float]) -> None:
        if values["loss"] > 2:
            raise NonFiniteError("too large")

    read = Readings({}, refuse)
    for step in range(5):
        read.add(step, value(float(step)))
    assert read.failed is None
    with pytest.raises(NonFiniteError):
        read.wait()
    assert read.failed == 3
    assert read.values == {"loss": 2.0}


def test_a_nan_that_is_seen_late_names_its_step_and_reaches_no_checkpoint(
    late: None, monkeypatch, photographs, tmp_path
) -> None:
    """A GPU computes one step more before anyone looks."""
    compute = TrainingStep.__call__

    def broken(step, index, *batch):
        values = compute(step, index, *batch)
        return values | {"reconstruction": torch.tensor(math.nan if index == 2 else 1.0)}

    monkeypatch.setattr(TrainingStep, "__call__", broken)
    folders = {"train_dir": (photographs,), "val_dir": (photographs,)}
    options = dataclasses.replace(
        TINY, method="vanilla", checkpoint_every=2, log_every=2, out=tmp_path / "run", **folders
    )
    with pytest.raises(NonFiniteError, match=r"^step 3: reconstruction is nan; .* keeps"):
        train(options, Console(quiet=True))
    checkpoint = torch.load(tmp_path / "run/checkpoints/state.pt", weights_only=True)
    assert checkpoint["step"] == 2
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] <= 2 for line in lines)
