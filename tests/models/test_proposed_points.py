"""Distillation points for networks that name none, and maps of every form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext.models import adapt, check_points, create_model, default_points, features_at
from mkdext.models.maps import map_in
from mkdext.models.proposed_points import possible_points, proposed_points


@pytest.mark.parametrize("name", ["rcan-a", "edsr-t", "imdn-s", "rdn-s", "san-s", "han-s"])
def test_those_that_are_found_are_those_that_networks_declare(name: str) -> None:
    network = create_model(name, 4)
    assert proposed_points(network, 4) == network.distillation_points(4)


class Block(nn.Module):
    """Gives tokens and something beside, as transformers do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, int]:
        return tokens + self.linear(tokens), 0


class Transformer(nn.Module):
    """Six blocks of tokens."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block(8) for _ in range(blocks))
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.tail(tokens.transpose(1, 2).reshape(x.shape))


def test_tokens_and_the_first_of_several_results_are_maps() -> None:
    torch.manual_seed(0)
    network = adapt(Transformer(), 2, "student")
    points = default_points(network, 4)
    assert points == [f"network.blocks.{index}" for index in (1, 2, 4, 5)]
    assert check_points(network, points, size=8) == [(8, 8, 8)] * 4
    low = torch.rand(2, 3, 5, 9)
    (feature,) = features_at(network, ["network.blocks.5"], low)
    # What the tail is given.
    seen: list[Tensor] = []
    network.network.tail.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network(low)
    torch.testing.assert_close(feature, seen[0])


def test_fewer_parts_give_fewer_points_and_none_is_told() -> None:
    few = adapt(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), 2, "student")
    assert proposed_points(few, 4) == ["0"]
    shuffle = adapt(nn.Upsample(scale_factor=2), 2, "student")
    with pytest.raises(ValueError, match="compare the pictures alone, by `method` response"):
        proposed_points(shuffle, 4)


def test_parts_that_only_pass_on_a_map_are_no_points() -> None:
    convolutions = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)]
    for conv in convolutions[1::2]:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    assert proposed_points(nn.Sequential(*convolutions), 2) == ["0", "2"]


def test_what_runs_twice_and_leaves_hooks_is_no_point() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    assert [point.name for point in possible_points(network)] == ["0", "1"]
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("output", "size", "shape"),
    [
        (torch.rand(2, 4, 5, 6), (9, 9), (2, 4, 5, 6)),
        (torch.rand(2, 30, 4), (5, 6), (2, 4, 5, 6)),
        (torch.rand(2, 64, 4), (7, 8), (2, 4, 8, 8)),  # padded inside
        ([torch.rand(2, 30, 4), None], (5, 6), (2, 4, 5, 6)),
        (torch.rand(2, 31, 4), (5, 6), None),
        (torch.rand(2, 8), (5, 6), None),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int64), (4, 5), None),
        ("text", (4, 5), None),
    ],
)
def test_a_map_is_found_in_an_output(output, size, shape) -> None:
    found = map_in(output, size)
    assert (None if found is None else tuple(found.shape)) == shape
