from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mkdext.synthesis import Generator
from mkdext.synthesis.generator import LATENT


@pytest.mark.parametrize(("size", "parameters"), [(24, 1_406_849), (16, 748_929), (12, 518_657)])
def test_a_grey_generator_has_the_published_number_of_parameters(size: int, parameters: int):
    assert sum(p.numel() for p in Generator(size, channels=1).parameters()) == parameters


@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_three_colours_between_black_and_white(channels: int):
    torch.manual_seed(0)
    images = Generator(16, channels)(torch.randn(3, LATENT))
    assert images.shape == (3, 3, 16, 16)
    assert images.min() >= 0 and images.max() <= 1
    grey = torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    assert grey == (channels == 1)
    assert images.std(dim=(1, 2, 3)).min() > 0.05


def test_the_layers_are_those_of_the_formula():
    torch.manual_seed(0)
    generator = Generator(8).double()
    noise = torch.randn(2, LATENT, dtype=torch.float64)
    weights = generator.state_dict()

    def normalised(x, layer, eps):
        gap = x - x.mean(dim=(2, 3), keepdim=True)
        unit = gap / (gap.square().mean(dim=(2, 3), keepdim=True) + eps).sqrt()
        scale, shift = (weights[f"layers.{layer}.{kind}"] for kind in ("weight", "bias"))
        return unit * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    def convolved(x, layer):
        bias = weights[f"layers.{layer}.bias"]
        return functional.conv2d(x, weights[f"layers.{layer}.weight"], bias, padding=1)

    def twice(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x = (noise @ weights["first.weight"].T + weights["first.bias"]).view(2, 128, 2, 2)
    x = convolved(twice(normalised(x, 0, 1e-5)), 2)
    x = convolved(twice(functional.leaky_relu(normalised(x, 3, 0.8), 0.2)), 6)
    x = convolved(functional.leaky_relu(normalised(x, 7, 0.8), 0.2), 9)
    torch.testing.assert_close(generator(noise), (x.tanh() + 1) / 2)


def test_impossible_sizes_are_told():
    with pytest.raises(ValueError, match="multiple of 4 and at least 8, got 18; the nearest is 16"):
        Generator(18)
    with pytest.raises(ValueError, match="the nearest is 8"):
        Generator(4)
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        Generator(8, channels=2)
