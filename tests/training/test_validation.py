"""Measuring while training."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import nn

from mkdext.training.run.live import _flat
from mkdext.training.run.report import save_curves, score_table
from mkdext.training.step import NonFiniteError
from mkdext.training.validation import bicubic, measure, picture

RANDOM = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
PAIRS = [(image[:, ::2, ::2], image) for image in RANDOM]
BLACK = torch.zeros(3, 12, 12, dtype=torch.uint8), torch.zeros(3, 24, 24, dtype=torch.uint8)


def test_a_photograph_that_is_met_exactly_is_named_and_left_out_of_the_mean_psnr():
    others = measure(bicubic(2), PAIRS, 2)
    scores = measure(bicubic(2), [PAIRS[0], BLACK, PAIRS[1]], 2, ["a", "black", "b"])
    assert scores["psnr_y"] == pytest.approx(others["psnr_y"])
    assert scores["exact"] == ["black"] and "exact" not in others
    assert scores["ssim_y"] == pytest.approx((2 * others["ssim_y"] + 1) / 3)
    assert measure(bicubic(2), [BLACK], 2) == {
        "psnr_y": math.inf,
        "ssim_y": 1.0,
        "exact": ["picture 0"],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_picture_that_is_not_finite_is_refused_and_named(value):
    network = nn.Conv2d(3, 3, 1)
    nn.init.constant_(network.weight, value)
    with pytest.raises(NonFiniteError, match="the enlarged picture of 12x12 is not finite"):
        picture(network, BLACK[0] + 1)
    with pytest.raises(NonFiniteError, match=r"^b: the enlarged"):
        measure(lambda lr: torch.full((1, 3, 24, 24), value), [PAIRS[0]], 2, ["b"])


def test_curves_of_a_distillation_show_gradients_and_details(tmp_path):
    plain = [{"step": step, "reconstruction": 0.1} for step in (1, 2)]
    distilled = [
        {"gradient_ratio": 0.5, "gradient_cosine": 0.1, "meta_cosine": -0.1, "detail_maps": 0.4} | r
        for r in plain
    ]
    heights = []
    for index, records in enumerate((plain, distilled)):
        save_curves(tmp_path / f"{index}.png", records, {})
        with Image.open(tmp_path / f"{index}.png") as image:
            heights.append(image.height)
    assert heights[1] == 2 * heights[0]


def test_curves_tables_and_events_hold_what_is_infinite_as_far_as_they_can(tmp_path):
    scores = {"psnr_y": None, "ssim_y": 1.0, "exact": ["a"]}
    records = [{"step": 1, "validation": {"_set": scores}}]
    validation = {"_set": {"student": {"psnr_y": math.inf, "ssim_y": 1.0}}}
    save_curves(tmp_path / "curves.png", records, validation)
    assert (tmp_path / "curves.png").stat().st_size > 0
    assert score_table(validation).row_count == 1
    record = {"step": 1, "validation": {"_set": {"psnr_y": math.inf, "exact": ["a"]}}}
    assert list(_flat(record)) == [("validation/_set/psnr_y", math.inf)]
