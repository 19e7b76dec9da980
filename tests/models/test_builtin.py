from __future__ import annotations

import torch
import torch.nn.functional as F

from mkdext.models import RCAN, builtin_teacher, check_points, default_points, resolve_teacher


def smooth_photograph(size: int) -> torch.Tensor:
    """Soft blobs of colour, `[1, 3, size, size]` in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def test_the_builtin_teacher_is_a_trained_network_of_scale_4() -> None:
    teacher = builtin_teacher()
    assert isinstance(teacher, RCAN) and teacher.scale == 4
    hr = smooth_photograph(96)
    lr = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True)
    with torch.inference_mode():
        error = (teacher(lr) - hr)[..., 8:-8, 8:-8].square().mean()
    # More than 35 dB on a picture without detail; random weights stay below 10 dB.
    assert error < 10**-3.5


def test_the_builtin_teacher_can_be_distilled_at_four_points() -> None:
    teacher = resolve_teacher(None, None, scale=4)
    assert len(check_points(teacher, default_points(teacher))) == 4
