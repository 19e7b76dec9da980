from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mkdext.methods import MKD, MKDOptions
from mkdext.models import check_points, create_model, default_points, load_model, resolve_teacher
from mkdext.training import TrainOptions
from mkdext.training.balance import Balance
from mkdext.training.schedule import Phase
from mkdext.training.step import Batch, Distillation, StepOptions, TrainingStep
from mkdext.training.teacher import Teacher


def vector(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "student", ["rcan-a", "edsr-s", "rdn-s", "san-s", "han-s", "imdn-s", "vdsr-half"]
)
def test_every_student_takes_a_meta_step_and_its_own(student: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = resolve_teacher(None, None, scale=4)
    model = create_model(student, scale=4).to(memory_format=torch.channels_last)
    points = default_points(model), default_points(teacher)
    maps = [check_points(*each) for each in zip((model, teacher), points, strict=True)]
    # The maps of a VDSR have the size of the output, those of the teacher do not.
    scale = maps[0][0].height // maps[1][0].height
    method = MKD(*([m.channels for m in each] for each in maps), MKDOptions(grid=2))
    optimizers = [torch.optim.Adam(module.parameters()) for module in (method, model)]
    before = [vector(module) for module in (method, model)]
    step = TrainingStep(
        model,
        optimizers[1],
        Teacher(teacher, points[1], [(9 * scale, 7 * scale)] * 4),
        Distillation(points[0], method, optimizers[0], Balance(False)),
        StepOptions(TrainOptions(student=student).resolved().meta),
    )
    for number in range(2):
        batch = Batch(torch.rand(2, 3, 9, 7), torch.rand(2, 3, 36, 28))
        values = step(number, batch, Phase(1e-4, 1.0, 0.003))
    assert values["meta_gradient"] > 0 and values["student_gradient"] > 0
    for module, old in zip((method, model), before, strict=True):
        new = vector(module)
        assert new.isfinite().all() and not torch.equal(new, old)
    torch.save(model.state_dict(), tmp_path / "student.pt")
    lr = torch.rand(1, 3, 5, 6)
    torch.testing.assert_close(load_model(tmp_path / "student.pt", scale=4)(lr), model(lr))
