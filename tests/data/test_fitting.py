"""Sizes of photographs and of given low-resolution versions."""

from __future__ import annotations

import pytest
import torch

from mkdext.data import BadImageError, fitted


def images(low: tuple[int, int], high: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pixel says where it is."""
    return tuple(torch.arange(h * w).reshape(1, h, w).expand(3, h, w) for h, w in (low, high))


def test_the_photograph_is_cut_to_whole_cells() -> None:
    low, high = images((42, 33), (170, 134))
    same, cut = fitted(low, high, 4)
    assert torch.equal(same, low)
    assert torch.equal(cut, high[:, :168, :132])


@pytest.mark.parametrize(
    ("low_size", "high_size", "scale", "cells"),
    [
        ((43, 34), (170, 134), 4, (42, 33)),  # MATLAB rounds up
        ((43, 33), (170, 134), 4, (42, 33)),
        ((24, 60), (59, 121), 2, (24, 60)),  # of a photograph that was cut to a multiple of 12
    ],
)
def test_cropping_keeps_the_whole_cells_that_both_have(
    low_size: tuple[int, int], high_size: tuple[int, int], scale: int, cells: tuple[int, int]
) -> None:
    low, high = images(low_size, high_size)
    with pytest.raises(BadImageError, match=r"in low resolution, has .*; `crop` cuts both"):
        fitted(low, high, scale)
    a, b = fitted(low, high, scale, crop=True)
    assert torch.equal(a, low[:, : cells[0], : cells[1]])
    assert torch.equal(b, high[:, : cells[0] * scale, : cells[1] * scale])


def test_another_picture_is_not_cropped_until_it_fits() -> None:
    low, high = images((30, 30), (170, 134))
    for crop in (False, True):
        with pytest.raises(BadImageError, match=r"must be 33x42 .* has 30x30, for .* 134x170$"):
            fitted(low, high, 4, crop)
