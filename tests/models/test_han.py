from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mkdext.models import HAN, HANConfig
from mkdext.models.han import ChannelSpatialAttention, LayerAttention
from tests.models.textbook import Weights, channel_weights, conv, frame, with_random_weights

TINY = HANConfig(groups=2, blocks=1, features=4, reduction=2)


def textbook_layer_attention(gamma: Tensor, maps: list[Tensor]) -> list[Tensor]:
    """Niu et al. 2020, section 3.2, with the sign of the official code."""
    attended = []
    for i in maps:
        likeness = torch.stack([(i * j).sum(dim=(1, 2, 3)) for j in maps])
        weights = torch.softmax(likeness.amax(0) - likeness, dim=0)[..., None, None, None]
        attended.append(i + gamma * sum(w * j for w, j in zip(weights, maps, strict=True)))
    return attended


def textbook_channel_spatial_attention(weights: Weights, x: Tensor) -> Tensor:
    """Niu et al. 2020, section 3.3: the convolution as the sum over its 27 weights."""
    _, c, h, w = x.shape
    padded = F.pad(x, (1, 1, 1, 1, 1, 1))
    mixed = sum(
        weights["conv.weight"][0, 0, i, j, k] * padded[:, i : i + c, j : j + h, k : k + w]
        for i, j, k in itertools.product(range(3), repeat=3)
    )
    return x + x * weights["gamma"] * torch.sigmoid(mixed + weights["conv.bias"])


def textbook_body(weights: Weights, x: Tensor) -> Tensor:
    maps = []
    for g in range(TINY.groups):
        block = f"body.{g}.body.0.body"
        y = conv(weights, f"{block}.2", conv(weights, f"{block}.0", x).clamp(min=0))
        pooled = y.mean(dim=(2, 3), keepdim=True)
        y = x + y * channel_weights(weights, f"{block}.3.conv_du", pooled)
        x = x + conv(weights, f"body.{g}.body.1", y)
        maps.append(x)
    maps.append(conv(weights, f"body.{TINY.groups}", x))
    csa = {name.removeprefix("csa."): weight for name, weight in weights.items()}
    attended = textbook_layer_attention(weights["la.gamma"], maps)
    layers = conv(weights, "last_conv", torch.cat(attended[::-1], 1))
    channels = textbook_channel_spatial_attention(csa, maps[-1])
    return conv(weights, "last", torch.cat((channels, layers), 1))


@pytest.mark.parametrize("scale", [2, 3])
def test_han_is_what_the_paper_says(scale: int) -> None:
    model = with_random_weights(HAN(TINY, scale))
    # Near the mean colour, where the softmax does not saturate.
    lr = 0.44 + 0.01 * torch.randn(2, 3, 5, 7, dtype=torch.float64)
    weights = model.state_dict()
    expected = frame(weights, scale, lr, lambda x: textbook_body(weights, x))
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


def test_the_names_and_shapes_are_those_of_the_official_code() -> None:
    layers = {"sub_mean": (3, 3, 1), "add_mean": (3, 3, 1), "head.0": (4, 3, 3)}
    for g in (0, 1):
        block = f"body.{g}.body.0.body"
        layers |= {f"{block}.0": (4, 4, 3), f"{block}.2": (4, 4, 3)}
        layers |= {f"{block}.3.conv_du.0": (2, 4, 1), f"{block}.3.conv_du.2": (4, 2, 1)}
        layers[f"body.{g}.body.1"] = (4, 4, 3)
    layers |= {"body.2": (4, 4, 3), "last_conv": (4, 12, 3), "last": (4, 8, 3)}
    layers |= {"tail.0.0": (16, 4, 3), "tail.0.2": (16, 4, 3), "tail.1": (3, 4, 3)}
    expected = {f"{name}.weight": (o, i, k, k) for name, (o, i, k) in layers.items()}
    expected |= {f"{name}.bias": (o,) for name, (o, _, _) in layers.items()}
    expected |= {"la.gamma": (1,), "csa.gamma": (1,)}
    expected |= {"csa.conv.weight": (1, 1, 3, 3, 3), "csa.conv.bias": (1,)}
    state = HAN(TINY, scale=4).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_layer_attention_is_what_the_paper_says_where_no_layer_takes_all_the_weight() -> None:
    attention, maps = LayerAttention(), torch.randn(2, 3, 2, 2, 1) / 2
    with torch.no_grad():
        attention.gamma.fill_(0.7)
        expected = torch.cat(textbook_layer_attention(attention.gamma, [*maps.unbind(1)]), 1)
        torch.testing.assert_close(attention(maps), expected)


def test_the_attentions_do_nothing_before_they_are_trained() -> None:
    maps = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(LayerAttention()(maps), maps.flatten(1, 2))
    assert torch.equal(ChannelSpatialAttention()(maps[0]), maps[0])


@pytest.mark.parametrize(
    ("attention", "shape"),
    [(LayerAttention, (2, 3, 2, 1, 3)), (ChannelSpatialAttention, (2, 3, 4, 1))],
)
def test_the_attentions_differentiate_twice(attention: type, shape: tuple[int, ...]) -> None:
    module = with_random_weights(attention(), spread=0.5)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)
