from __future__ import annotations

import dataclasses
from importlib import resources

import pytest

from mkdext.data import builtin_photographs, imresize, make_pair, read_image
from mkdext.inference import load_network
from mkdext.metrics import psnr_y, to_uint8
from mkdext.models import (
    RCAN,
    check_points,
    create_model,
    default_points,
    read_metadata,
    resolve_teacher,
)
from mkdext.models.builtin import BUILTIN_NAMES


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_a_builtin_network_is_for_scale_4_and_better_than_bicubic_on_a_photograph(name) -> None:
    network = load_network(None, name=name)
    assert isinstance(network.model, RCAN) and (network.name, network.scale) == (name, 4)
    (coffee,) = (path for path in builtin_photographs("validation") if path.stem == "coffee")
    lr, hr = make_pair(read_image(coffee)[:, :256, :256], 4)
    sr = network(lr[None] / 255)[0]
    gain = psnr_y(to_uint8(sr), hr, border=4) - psnr_y(imresize(lr, 4), hr, border=4)
    assert gain > 0.5


def test_a_network_that_is_not_built_in_needs_weights() -> None:
    with pytest.raises(ValueError, match=r"`model` edsr-s needs .* built in are rcan-c and rcan-a"):
        load_network(None, name="edsr-s")


@pytest.mark.parametrize(("name", "steps"), [("rcan-c", 10_000), ("rcan-a", 30_000)])
def test_the_file_of_a_builtin_network_says_what_it_is(name, steps) -> None:
    file = resources.files("mkdext") / "assets" / f"{name}-x4.safetensors"
    with resources.as_file(file) as path:
        metadata = read_metadata(path)
    assert metadata is not None
    assert (metadata.architecture, metadata.scale) == ("RCAN", 4)
    assert metadata.origin["steps"] == steps
    config = create_model(name, scale=4).config
    assert metadata.config == dataclasses.asdict(config)


def test_the_builtin_teacher_can_be_distilled_at_four_points() -> None:
    teacher = resolve_teacher(None, None, scale=4)
    assert len(check_points(teacher, default_points(teacher))) == 4
