"""Batches reach the device as they are; the GPU's part is skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mkdext.methods import MKD, MKDOptions
from mkdext.models import create_model, default_points
from mkdext.training import TrainOptions
from mkdext.training.readings import Readings
from mkdext.training.steps import Distillation, TrainingStep
from mkdext.training.teacher import Teacher
from mkdext.training.transfer import transferred

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
    distillation = Distillation(
        Teacher(nn.Identity(), [], []),
        default_points(student),
        method,
        torch.optim.Adam(method.parameters(), 1e-4),
    )
    options = TrainOptions(batch_size=2, patch_size=12)
    optimizer = torch.optim.Adam(student.parameters(), options.lr)
    step = TrainingStep(options.resolved(), student, optimizer, distillation)
    hints = [torch.rand(2, 8, 12, 12, device=device) for _ in range(4)]
    lr, hr = torch.rand(2, 3, 12, 12, device=device), torch.rand(2, 3, 48, 48, device=device)
    step(0, lr, hr, hints)
    readings = Readings({}, lambda values: None)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for index in range(0, 12, 4):
            readings.add(index, step(index, lr, hr, hints))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    readings.wait()
    assert readings.values["meta_gradient"] > 0
