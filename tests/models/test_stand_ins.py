"""Networks called with other tensors in the places of their own."""

from __future__ import annotations

import torch
from torch import nn

from mkdext.models import forward_with_features
from mkdext.models.stand_ins import call_with


class Recursive(nn.Module):
    """A block under three names, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh())
        self.body = nn.Sequential(block, block, block)
        self.first, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.last.weight = self.first.weight

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.body(self.first(image)))
        return result


def test_a_network_whose_modules_have_several_names_is_left_as_it_was() -> None:
    network = Recursive()
    before = dict(network.named_parameters(remove_duplicate=False))
    image = torch.rand(2, 3, 5, 5)
    stand_ins = {name: tensor.detach() * 2 for name, tensor in network.named_parameters()}
    stand_ins |= {name: tensor.clone() for name, tensor in network.named_buffers()}
    for result in (
        call_with(network, stand_ins, image),
        forward_with_features(network, ["first"], image, stand_ins)[0],
    ):
        after = dict(network.named_parameters(remove_duplicate=False))
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
        assert network.body[0][1].num_batches_tracked == 0
        doubled = Recursive()
        doubled.load_state_dict(network.state_dict())
        with torch.no_grad():
            for parameter in doubled.parameters():
                parameter.mul_(2)
        torch.testing.assert_close(result, doubled(image))


def test_any_name_of_a_tied_weight_stands_for_all() -> None:
    network = Recursive().eval()
    image, zero = torch.rand(1, 3, 5, 5), torch.zeros(3, 3, 1, 1)
    for name in ("first.weight", "last.weight"):
        result = call_with(network, {name: zero}, image)
        assert torch.equal(result, network.last.bias.view(1, 3, 1, 1).expand(1, 3, 5, 5))


def test_gradients_reach_the_stand_ins() -> None:
    network = Recursive()
    stand_in = network.body[0][0].weight.detach().clone().requires_grad_()
    call_with(network, {"body.0.0.weight": stand_in}, torch.rand(2, 3, 5, 5)).sum().backward()
    assert stand_in.grad is not None and stand_in.grad.any()
    assert network.body[0][0].weight.grad is None
