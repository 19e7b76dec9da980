"""Branches that serve a training are folded for use, on a copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext.models import adapt, create_model
from mkdext.models.fusing import fused
from mkdext.models.handling import count_parameters


class RepConv(nn.Module):
    """3x3 and 1x1 beside it, as RepVGG has them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) if self.narrow is None else self.wide(x) + self.narrow(x)

    def switch_to_deploy(self) -> None:
        self.wide.weight.data[:, :, 1:2, 1:2] += self.narrow.weight
        self.wide.bias.data += self.narrow.bias
        self.narrow = None


class Conv3XC(nn.Module):
    """As SPAN has them: an evaluation by another layer, whose numbers it computes each time."""

    def __init__(self) -> None:
        super().__init__()
        self.sk, self.has_relu = nn.Conv2d(3, 3, 1), True
        self.eval_conv = nn.Conv2d(3, 3, 1)

    def update_params(self) -> None:
        self.eval_conv.weight.data = 2 * self.sk.weight.data
        self.eval_conv.bias.data = 2 * self.sk.bias.data

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.update_params()
        out = self.sk(x) * 2 if self.training else self.eval_conv(x)
        return nn.functional.leaky_relu(out, 0.05)


def network_of(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return adapt(nn.Sequential(*layers, nn.PixelShuffle(2)), 2, "student")


def test_layers_fold_themselves_on_a_copy() -> None:
    network = network_of(Conv3XC(), RepConv(3, 8), RepConv(8, 12))
    folded = fused(network, "student")
    low = torch.rand(2, 3, 7, 6)
    torch.testing.assert_close(folded(low), network.eval()(low), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, Conv3XC) for module in folded.modules())
    assert network.network[1].narrow is not None and folded.network[1].narrow is None
    assert count_parameters(folded) < count_parameters(network)


def test_the_networks_own_method_is_asked_first() -> None:
    class Whole(nn.Sequential):
        def fuse(self) -> None:
            self.asked = True
            for layer in self[:-1]:
                layer.switch_to_deploy()

    network = adapt(Whole(RepConv(3, 12), nn.PixelShuffle(2)), 2, "student")
    assert fused(network, "student").network.asked


def test_a_network_without_branches_is_itself() -> None:
    for network in (create_model("edsr-s", 2), network_of(nn.Conv2d(3, 12, 1))):
        assert fused(network, "student") is network


def test_what_folds_wrongly_or_not_at_all_is_refused() -> None:
    class Wrong(RepConv):
        def switch_to_deploy(self) -> None:
            self.narrow = None

    class Failing(RepConv):
        def switch_to_deploy(self) -> None:
            raise RuntimeError("no")

    with pytest.raises(ValueError, match=r"another picture, by .* look at its switch_to_deploy\("):
        fused(network_of(Wrong(3, 12)), "`model` net")
    with pytest.raises(ValueError, match=r"`model` net: its branches cannot be folded .*: no"):
        fused(network_of(Failing(3, 12)), "`model` net")
