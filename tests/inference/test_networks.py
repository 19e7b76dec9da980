"""Networks as `--model` and `--weights` name them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mkdext.inference import Network, load_network, load_networks
from mkdext.models import (
    EDSR,
    EDSRConfig,
    adapt,
    load_weights,
    make_own,
    resolve_teacher,
    save_model,
)


@pytest.mark.parametrize("saved_by", ["mkdext", "torch", "safetensors"])
def test_weights_of_a_users_network_are_loaded_into_what_its_factory_makes(
    own_network: tuple[str, Path], tmp_path: Path, saved_by: str
) -> None:
    name, weights = own_network
    content = load_file(weights)
    file = weights if saved_by == "mkdext" else tmp_path / "weights"
    if saved_by == "torch":
        torch.save({"state_dict": content}, file)
    elif saved_by == "safetensors":
        save_file(content, file)
    network = load_network(file, None if saved_by == "mkdext" else 4, name)
    trained = make_own(name, "`model`")
    load_weights(trained, content)
    low = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(network(low), adapt(trained, 4, "a network")(low))
    assert (network.architecture, network.scale, network.name) == ("ESPCN", 4, file.stem)
    assert network.parameters == sum(tensor.numel() for tensor in content.values())


def test_a_factory_may_bring_its_own_weights() -> None:
    network = load_network(None, 2, "torch.nn:Identity")
    assert (network.name, network.scale) == ("Identity", 2)
    assert network(torch.ones(1, 3, 5, 4)).shape == (1, 3, 10, 8)


def test_a_file_of_a_users_network_says_which_one_to_name(own_network: tuple[str, Path]) -> None:
    name, weights = own_network
    message = rf"{re.escape(str(weights))} is of your own network at x4; .*`model` {name} "
    with pytest.raises(ValueError, match=message):
        load_network(weights)
    with pytest.raises(ValueError, match=message):
        resolve_teacher(None, weights, scale=4)


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("{own}", 3, r"`model` .*ESPCN must turn an image \[1, 1, 17, 19\].*at scale 3; got"),
        ("{own}s", None, r"has no 'ESPCNs'; did you mean ESPCN\?"),
        ("torch.nn:Identity", None, r"espcn\.safetensors: the weights do not fit the network"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    own_network: tuple[str, Path], name: str, scale: int | None, message: str
) -> None:
    own, weights = own_network
    with pytest.raises(ValueError, match=message):
        load_network(weights, scale, name.format(own=own))


def test_the_scale_of_a_users_network_is_found_unless_it_sharpens(
    own_network: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = own_network
    torch.save(load_file(weights), tmp_path / "plain.pt")
    for file in (None, tmp_path / "plain.pt"):
        assert load_network(file, None, name).scale == 4
    with pytest.raises(ValueError, match=r"Identity needs `scale`, because no weights file gives"):
        load_network(None, None, "torch.nn:Identity")
    with pytest.raises(ValueError, match=r"none\.pt does not exist"):
        load_network(tmp_path / "none.pt", None, name)


def test_each_file_can_have_a_network_of_its_own(own_network: tuple[str, Path], tmp_path) -> None:
    name, weights = own_network
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert [n.name for n in load_networks([weights, copy], None, [name])] == ["espcn", "copy"]
    assert [n.name for n in load_networks([weights, copy], None, [name, name])] == ["espcn", "copy"]
    by_themselves = load_networks([], 2, ["torch.nn:Identity"])
    assert [network.name for network in by_themselves] == ["Identity"]
    with pytest.raises(ValueError, match=r"once for each of the 2, got 3: "):
        load_networks([weights, copy], None, [name] * 3)
    with pytest.raises(ValueError, match=r"`model` torch\.nn:Identity is given twice"):
        load_networks([], 2, ["torch.nn:Identity"] * 3)


LEVELS = """
from torch import nn
from mkdext.models import builtin_teacher

class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = builtin_teacher()

    def forward(self, x):
        return self.net(x / 255) * 255
"""


def test_the_range_of_a_users_network_is_found_and_told(tmp_path: Path) -> None:
    (tmp_path / "levels.py").write_text(LEVELS)
    network = load_network(None, None, f"{tmp_path / 'levels.py'}:Levels")
    assert str(network.remark).startswith("`model` Levels takes colours from 0 to 255 (29.")
    low = torch.rand(1, 3, 9, 8)
    torch.testing.assert_close(network(low), load_network(None)(low), rtol=1e-4, atol=1e-4)


def test_a_networks_own_scale_and_weights_of_its_names_do_not_mislead(tmp_path: Path) -> None:
    model = EDSR(EDSRConfig(blocks=1, features=8), scale=2)
    file = tmp_path / "weights.safetensors"
    # What a user's variant of EDSR would leave.
    save_file(model.state_dict(), file)
    assert load_network(file).architecture == "EDSR"
    own = torch.nn.Module()
    own.scale = torch.nn.Parameter(torch.ones(1))
    save_model(file, own, {"student": "nets.py:variant", "scale": 2})
    with pytest.raises(ValueError, match=r"`model` nets\.py:variant"):
        load_network(file)


def test_a_picture_stays_as_it_is_where_a_network_works_in_place() -> None:
    network = Network("clip", nn.ReLU6(inplace=True), 1, torch.device("cpu"))
    low = torch.full((1, 3, 8, 8), 9.0)
    assert network(low).max() == 6
    assert low.min() == 9
