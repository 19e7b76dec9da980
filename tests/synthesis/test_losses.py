"""The losses of the generator, and that they reach it.

Images are enlarged and reduced on the way; one rounding would leave nothing of the gradient.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext.data import imresize
from mkdext.models import RCAN, VDSR, RCANConfig, VDSRConfig
from mkdext.synthesis import Criterion, Generator, adversarial_loss, reconstruction_loss
from mkdext.synthesis.generator import LATENT
from mkdext.synthesis.losses import LossWeights

NETWORKS = {
    "rcan": lambda features: RCAN(RCANConfig(2, 1, features, reduction=4), scale=2),
    "vdsr": lambda features: VDSR(VDSRConfig(features, blocks=2), scale=2),
}
CRITERIA = [Criterion(error, how) for error in ("l1", "squared") for how in ("mean", "sum")]


@pytest.fixture(params=NETWORKS)
def networks(request) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    make = NETWORKS[request.param]
    return tuple(make(features).double().requires_grad_(False) for features in (8, 4))


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(1)
    return Generator(8).double()


def noise() -> Tensor:
    return torch.randn(2, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_losses_are_those_of_the_formulas(criterion: Criterion):
    torch.manual_seed(0)
    images, teacher, student = torch.rand(2, 3, 8, 8), *torch.rand(2, 2, 3, 32, 32)

    def distance(a: Tensor, b: Tensor) -> float:
        power = 1 if criterion.error == "l1" else 2
        pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
        errors = [abs(x - y) ** power for x, y in pairs]
        return float(sum(errors)) / (len(errors) if criterion.reduction == "mean" else 1)

    gap = distance(imresize(teacher, 1 / 4), images)
    assert reconstruction_loss(images, teacher, criterion).item() == pytest.approx(gap, rel=1e-4)
    gap = torch.tensor(1 + distance(teacher, student)).log().item()
    assert adversarial_loss(teacher, student, criterion).item() == pytest.approx(-gap, rel=1e-4)


def test_the_total_weighs_every_term():
    terms = [torch.tensor(10.0**i) for i in range(4)]
    weights = LossWeights(reconstruction=2, contrastive=3, statistics=4)
    assert weights.total(*terms).item() == 1 + 20 + 300 + 4000
    assert weights.total(*terms[:2]).item() == 21


def gradients_reach(loss: Tensor, generator: Generator) -> bool:
    gradients = torch.autograd.grad(loss, generator.parameters(), allow_unused=True)
    return all(g is not None and g.abs().max() > 0 for g in gradients)


def test_the_adversarial_loss_reaches_every_parameter_of_the_generator(networks, generator):
    teacher, student = networks
    images = generator(noise())
    assert gradients_reach(adversarial_loss(teacher(images), student(images)), generator)


def test_the_reconstruction_loss_reaches_the_generator_through_the_reduced_picture(
    networks, generator
):
    """Not by the image beside it alone, which is held constant here."""
    images = generator(noise())
    loss = reconstruction_loss(images.detach(), networks[0](images))
    assert gradients_reach(loss, generator)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("which", ["adversarial", "reconstruction", "reduced picture alone"])
def test_gradients_of_images_agree_with_finite_differences(which, criterion, networks):
    teacher, student = networks
    torch.manual_seed(3)
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    fixed = images.clone()

    def loss(images: Tensor) -> Tensor:
        enlarged = teacher(images)
        if which == "adversarial":
            return adversarial_loss(enlarged, student(images), criterion)
        beside = fixed if which == "reduced picture alone" else images
        return reconstruction_loss(beside, enlarged, criterion)

    (gradient,) = torch.autograd.grad(loss(images.requires_grad_()), images)
    direction = torch.randn_like(gradient)
    step = 1e-7 * direction
    with torch.no_grad():
        slope = (loss(images + step) - loss(images - step)) / 2e-7
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)
    assert abs(slope.item()) > 1e-6
