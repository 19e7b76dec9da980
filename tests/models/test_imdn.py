from __future__ import annotations

import pytest
import torch

from mkdext.models import IMDN, IMDNConfig, create_model, load_model
from tests.models.textbook import Weights, conv, with_random_weights

TINY = IMDNConfig(blocks=2, features=6, kept=2)


def textbook_block(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Hui et al. 2019, eq. 3 and 4, with two channels kept of each convolution."""
    distilled, coarse = [], x
    for number in (1, 2, 3):
        y = conv(weights, f"{name}.conv{number}.0", coarse)
        y = torch.where(y > 0, y, 0.05 * y)
        distilled.append(y[:, :2])
        coarse = y[:, 2:]
    distilled.append(conv(weights, f"{name}.conv4", coarse))
    return x + conv(weights, f"{name}.conv1x1", torch.cat(distilled, 1))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_imdn_is_what_its_code_says(scale: int) -> None:
    model = with_random_weights(IMDN(TINY, scale))
    lr, weights = torch.rand(2, 3, 5, 7, dtype=torch.float64), model.state_dict()
    shallow = x = conv(weights, "model.0", lr)
    for block in range(TINY.blocks):
        x = textbook_block(weights, f"model.1.sub.{block}", x)
    y = conv(weights, "model.2", shallow + conv(weights, "model.1.sub.2", x))
    n, _, h, w = y.shape
    y = y.view(n, 3, scale, scale, h, w).permute(0, 1, 4, 2, 5, 3)
    expected = y.reshape(n, 3, scale * h, scale * w)
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


def test_the_names_and_shapes_are_those_of_the_baseline_of_the_challenge() -> None:
    with torch.device("meta"):
        model = create_model("imdn-t", scale=4)
    layers = {"model.0": (64, 3, 3), "model.1.sub.8": (64, 64, 3), "model.2": (48, 64, 3)}
    for block in range(8):
        inside = {"conv1.0": (64, 64, 3), "conv2.0": (64, 48, 3), "conv3.0": (64, 48, 3)}
        inside |= {"conv4": (16, 48, 3), "conv1x1": (64, 64, 1)}
        layers |= {f"model.1.sub.{block}.{name}": shape for name, shape in inside.items()}
    expected = {f"{name}.weight": (o, i, k, k) for name, (o, i, k) in layers.items()}
    expected |= {f"{name}.bias": (o,) for name, (o, _, _) in layers.items()}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == 893_936


def test_it_is_recognised_by_its_weights(tmp_path) -> None:
    torch.save({"params": IMDN(TINY, scale=3).state_dict()}, tmp_path / "w.pt")
    model = load_model(tmp_path / "w.pt")
    assert isinstance(model, IMDN) and (model.config, model.scale) == (TINY, 3)


def test_the_layer_after_the_blocks_is_found_in_a_network_of_others() -> None:
    whole = IMDN(TINY, scale=2)
    half = whole.with_parts(1)
    names = "model.1.sub.2.weight", "model.1.sub.1.conv4.bias", "model.1.sub.0.conv4.bias"
    assert [whole.name_in(half, name) for name in names] == [
        "model.1.sub.1.weight",
        None,
        "model.1.sub.0.conv4.bias",
    ]


def test_a_block_passes_some_channels_on() -> None:
    with pytest.raises(ValueError, match="kept must be less than features=8, got 8"):
        IMDNConfig(blocks=1, features=8, kept=8)
