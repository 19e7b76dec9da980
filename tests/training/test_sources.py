"""Batches reach the device as they are; the GPU's part is skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from mkdext.methods import MKD, MKDOptions
from mkdext.models import create_model, default_points
from mkdext.training.balance import Balance
from mkdext.training.run.live import Readings
from mkdext.training.schedule import Phase
from mkdext.training.sources import transferred
from mkdext.training.step import Batch, Distillation, TrainingStep

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batches_arrive_unchanged_in_their_order_and_in_a_layout(
    device: str, layout: torch.memory_format
) -> None:
    batches = [
        (torch.rand(2, 3, 4, 5), torch.rand(2, 3, 8, 10), torch.rand(2, 7)) for _ in range(4)
    ]
    arrived = list(transferred(iter(batches), torch.device(device), layout))
    assert len(arrived) == len(batches)
    for batch, expected in zip(arrived, batches, strict=True):
        for side, original in zip(batch, expected, strict=True):
            assert side.device.type == device
            of_side = layout if side.ndim == 4 else torch.contiguous_format
            assert side.is_contiguous(memory_format=of_side)
            assert torch.equal(side.cpu(), original)


@NEEDS_GPU
def test_an_error_of_the_batches_reaches_the_training() -> None:
    def broken():
        yield (torch.rand(1, 3, 4, 4),)
        raise OSError("the disk is gone")

    batches = transferred(broken(), torch.device("cuda"), torch.channels_last)
    next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


@NEEDS_GPU
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_waits_for_nothing() -> None:
    device = torch.device("cuda")
    student = create_model("rcan-a", scale=4).to(device, memory_format=torch.channels_last)
    method = MKD([16] * 4, [8] * 4, MKDOptions(grid=2)).to(device)
    trained = torch.optim.Adam(method.parameters(), 1e-4)
    distillation = Distillation(default_points(student), method, trained, Balance(False))
    optimizer = torch.optim.Adam(student.parameters(), 1e-4)
    step = TrainingStep(student, optimizer, distillation=distillation)
    maps = [torch.rand(2, 8, 12, 12, device=device) for _ in range(4)]
    low, high = torch.rand(2, 3, 12, 12, device=device), torch.rand(2, 3, 48, 48, device=device)
    batch, now = Batch(low, high, maps), Phase(1e-4, 1.0, 0.003)
    step(0, batch, now)
    readings = Readings({}, lambda values: None)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for index in range(0, 12, 4):
            readings.add(index, step(index, batch, now))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    readings.wait()
    assert readings.values["meta_gradient"] > 0
