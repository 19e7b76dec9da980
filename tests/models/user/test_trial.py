"""One trial run tells whether a user's network can be trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mkdext.models import adapt
from mkdext.models.user.trial import check_passes_gradient, check_trains


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout())
        self.tail = nn.Sequential(nn.Conv2d(4, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, lr: Tensor) -> Tensor:
        return self.tail(self.body(self.head(lr)))


class Detached(Net):
    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(lr).detach()


class WithoutGradient(Net):
    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(lr)


class Reentrant(Net):
    def forward(self, lr: Tensor) -> Tensor:
        return self.tail(checkpoint(self.body, self.head(lr), use_reentrant=True))


class Checkpointed(Net):
    def forward(self, lr: Tensor) -> Tensor:
        return self.tail(checkpoint(self.body, self.head(lr), use_reentrant=False))


class InPlace(Net):
    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(lr).exp().add_(1)


class IntegersInTraining(Net):
    def forward(self, lr: Tensor) -> Tensor:
        sr = super().forward(lr)
        return (sr * 255).to(torch.uint8) if self.training else sr


class SeveralInTraining(Net):
    def forward(self, lr: Tensor) -> Tensor | list[Tensor]:
        sr = super().forward(lr)
        return [sr, sr] if self.training else sr


class SmallInTraining(Net):
    def forward(self, lr: Tensor) -> Tensor:
        sr = super().forward(lr)
        return sr.mean(dim=1) if self.training else sr


class Raises(Net):
    def forward(self, lr: Tensor) -> Tensor:
        if self.training:
            raise KeyError("mask")
        return super().forward(lr)


class Exits(Net):
    def forward(self, lr: Tensor) -> Tensor:
        if self.training:
            raise SystemExit(0)
        return super().forward(lr)


class NotANumber(Net):
    def forward(self, lr: Tensor) -> Tensor:
        sr = super().forward(lr)
        return sr / 0 * 0 if self.training else sr


class NoGradientNumber(Net):
    def forward(self, lr: Tensor) -> Tensor:
        return (super().forward(lr) * 0).sqrt()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Detached, "cannot be trained: its result is computed without a gradient"),
        (WithoutGradient, "cannot be trained: its result is computed without a gradient"),
        (Reentrant, r"uses reentrant checkpointing.*use_reentrant=False"),
        (InPlace, "cannot be differentiated: RuntimeError: .*inplace operation"),
        (IntegersInTraining, r"floating point in training mode, got torch\.uint8"),
        (SeveralInTraining, "floating point in training mode, got list"),
        (SmallInTraining, r"must give \[2, 3, scale\*h, scale\*w\] .*, got \[2, 34, 38\]"),
        (Raises, r"fails in training mode on images \[2, 3, 17, 19\]: KeyError: 'mask'"),
        (Exits, "fails in training mode .*SystemExit: 0"),
        (NotANumber, "gives NaN or infinite numbers in training mode"),
        (NoGradientNumber, "has a gradient of NaN or infinite numbers"),
    ],
)
@pytest.mark.parametrize("points", [[], ["network.body"]])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_student_that_cannot_be_trained_is_refused_in_one_sentence(kind, points, message):
    network = adapt(kind(), 2, "student")
    with pytest.raises(ValueError, match=message) as refused:
        check_trains(network, points, twice=False)
    assert str(refused.value).startswith(f"student {kind.__name__}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [Net, Checkpointed])
def test_a_trial_leaves_the_student_and_the_random_numbers_as_they_were(kind):
    network = adapt(kind(), 2, "student")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    check_trains(network, ["network.body"], twice=kind is Net)
    check_passes_gradient(network, "student", "a generator")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.network.body[1].num_batches_tracked == 0
    assert network.training and network.network.body.training


class FillsWeights(Net):
    """Puts other memory into the place of its weights, as re-parameterised blocks do."""

    def forward(self, lr: Tensor) -> Tensor:
        self.head.weight.data = torch.zeros_like(self.head.weight)
        self.body[1].running_mean = torch.ones(4)
        return super().forward(lr)


def test_what_a_network_puts_into_the_place_of_its_tensors_is_undone():
    network = FillsWeights()
    weight, memory = network.head.weight, network.head.weight.data_ptr()
    mean = network.body[1].running_mean
    check_trains(network, [], twice=False)
    assert network.head.weight is weight and weight.data_ptr() == memory and weight.any()
    assert network.body[1].running_mean is mean and not mean.any()


def test_a_point_before_which_all_is_frozen_is_refused():
    network = adapt(Net(), 2, "student")
    network.network.head.requires_grad_(False)
    check_trains(network, ["network.body"], twice=False)
    with pytest.raises(ValueError, match=r"nothing that is trained comes before .* point 'head'"):
        check_trains(network, ["network.head"], twice=False)


def test_a_network_that_rounds_passes_no_gradient_to_its_image():
    class Rounds(Net):
        def forward(self, lr: Tensor) -> Tensor:
            return super().forward((lr * 255).round() / 255)

    with pytest.raises(ValueError, match="teacher Rounds must pass a gradient to its image, for a"):
        check_passes_gradient(adapt(Rounds(), 2, "teacher"), "teacher", "a generator")
