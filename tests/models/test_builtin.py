from __future__ import annotations

import dataclasses
from importlib import resources

import torch

from mkdext.data import builtin_photographs, imresize, make_pair, read_image
from mkdext.metrics import psnr_y, to_uint8
from mkdext.models import (
    RCAN,
    builtin_teacher,
    check_points,
    create_model,
    default_points,
    read_metadata,
    resolve_teacher,
)


def test_the_builtin_teacher_is_for_scale_4_and_better_than_bicubic_on_a_photograph() -> None:
    teacher = builtin_teacher()
    assert isinstance(teacher, RCAN) and teacher.scale == 4
    (coffee,) = (path for path in builtin_photographs("validation") if path.stem == "coffee")
    lr, hr = make_pair(read_image(coffee)[:, :256, :256], 4)
    with torch.inference_mode():
        sr = teacher(lr[None] / 255)[0]
    gain = psnr_y(to_uint8(sr), hr, border=4) - psnr_y(imresize(lr, 4), hr, border=4)
    assert gain > 0.5


def test_the_file_of_the_builtin_teacher_says_what_it_is() -> None:
    file = resources.files("mkdext") / "assets" / "rcan-c-x4.safetensors"
    with resources.as_file(file) as path:
        metadata = read_metadata(path)
    assert metadata is not None
    assert (metadata.architecture, metadata.scale) == ("RCAN", 4)
    assert metadata.origin["steps"] == 10_000
    config = create_model("rcan-c", scale=4).config
    assert metadata.config == dataclasses.asdict(config)


def test_the_builtin_teacher_can_be_distilled_at_four_points() -> None:
    teacher = resolve_teacher(None, None, scale=4)
    assert len(check_points(teacher, default_points(teacher))) == 4
