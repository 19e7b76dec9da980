"""Losses against their formulas, to second order, and those of users."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch.nn import functional

from mkdext.metrics.losses import LOSSES, make_loss, over_luma, require_known_loss


def pictures(dtype=torch.double):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 4, 5, generator=generator, dtype=dtype) for _ in range(2)]


def test_l1_is_pytorchs_own_bit_for_bit():
    assert make_loss("l1") is functional.l1_loss


def test_losses_are_the_means_that_their_formulas_say():
    sr, high = pictures()
    gaps = (sr - high).flatten().tolist()
    mean = {
        "l1": lambda gap: abs(gap),
        "l2": lambda gap: gap**2,
        "charbonnier": lambda gap: math.sqrt(gap**2 + 1e-6),
    }
    for name, of in mean.items():
        expected = sum(map(of, gaps)) / len(gaps)
        assert float(make_loss(name)(sr, high)) == pytest.approx(expected, rel=1e-12)


def test_fft_is_the_absolute_error_of_pixels_and_of_frequencies():
    sr, high = pictures()
    parts = []
    for plane in (sr - high).flatten(0, 1).tolist():
        rows, columns = len(plane), len(plane[0])
        for u in range(rows):
            for v in range(columns):
                turn = [
                    plane[y][x] * cmath.exp(-2j * cmath.pi * (u * y / rows + v * x / columns))
                    for y in range(rows)
                    for x in range(columns)
                ]
                parts += [abs(sum(turn).real), abs(sum(turn).imag)]
    expected = float((sr - high).abs().mean()) + 0.05 * sum(parts) / len(parts)
    assert float(make_loss("fft")(sr, high)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_right_to_second_order(name):
    sr, high = pictures()
    sr.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: make_loss(name)(x, high), sr)
    assert torch.autograd.gradgradcheck(lambda x: make_loss(name)(x, high), sr)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_pictures_have_the_least_loss(name):
    sr, high = pictures()
    least = float(make_loss(name)(high, high))
    assert least == pytest.approx(1e-3 if name == "charbonnier" else 0, abs=1e-12)
    assert float(make_loss(name)(sr, high)) > least


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_a_shape_without_numbers(name):
    sr = torch.empty(2, 3, 8, 8, device="meta", requires_grad=True)
    assert torch.autograd.grad(make_loss(name)(sr, sr.detach()), sr)[0].shape == sr.shape


@pytest.mark.parametrize(
    ("change", "levels"),
    [((0.1, 0.1, 0.1), 21.9), ((0.2, 0, 0), 13.0962), ((0, -0.1, 0.2), 7.8621)],
)
def test_over_luma_a_change_of_colours_counts_as_it_changes_y(change, levels):
    high = torch.rand(2, 3, 4, 5, dtype=torch.double)
    sr = high + torch.tensor(change, dtype=torch.double).view(3, 1, 1)
    gap = levels / 255
    assert float(over_luma(make_loss("l1"))(sr, high)) == pytest.approx(gap, rel=1e-6)
    assert float(over_luma(make_loss("l2"))(sr, high)) == pytest.approx(gap**2, rel=1e-6)


USERS = """
import torch

def half(sr, high):
    return 0.5 * (sr - high).abs().mean()

def rows(sr, high):
    return (sr - high).abs().mean(dim=3)

def number(sr, high):
    return float((sr - high).abs().mean().detach())

def constant(sr, high):
    return (sr - high).detach().abs().mean()

def infinite(sr, high):
    return (sr - high).abs().mean() / 0

def one(sr):
    return sr.mean()

class Loss(torch.nn.Module):
    pass

name = "l1"
"""


@pytest.fixture
def users(tmp_path):
    (tmp_path / "losses.py").write_text(USERS)
    return f"{tmp_path}/losses.py"


def test_a_function_of_the_users_is_taken(users):
    sr, high = pictures()
    loss = make_loss(f"{users}:half")
    assert float(loss(sr, high)) == pytest.approx(0.5 * float((sr - high).abs().mean()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows", r"^`loss` .*:rows must give a scalar tensor of floating point, got \[2, 3, 48\]$"),
        ("number", r"must give a scalar tensor of floating point, got float$"),
        ("constant", r"gives a value that does not depend on the student's picture$"),
        ("infinite", r"or its gradient is not finite for pictures in \[0, 1\]$"),
        ("one", r"^`loss` .*:one fails on pictures \[2, 3, 48, 40\]: TypeError: "),
        ("Loss", r"must be a function of two batches of pictures, got a class$"),
        ("name", r"must be a function of two batches of pictures, got str$"),
        ("hlaf", r"losses has no 'hlaf'; did you mean half\?$"),
    ],
)
def test_what_is_no_loss_is_refused_in_one_sentence(name, message, users):
    with pytest.raises(ValueError, match=message):
        make_loss(f"{users}:{name}")


def test_an_unknown_loss_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r"^`loss` must be one of l1, .*'charbonier'; did you"):
        require_known_loss("charbonier")
