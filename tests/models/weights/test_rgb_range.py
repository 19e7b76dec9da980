"""Weights of networks of the official code that were trained for another value of white."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mkdext.models import (
    EDSR,
    EDSRConfig,
    builtin_teacher,
    create_model,
    load_model,
    load_weights,
    read_metadata,
    save_model,
)
from mkdext.models.weights.rgb_range import with_rgb_range

SHIFTED = ["rcan-a", "edsr-s", "san-s", "han-s"]
MEANS = [(0.4488, 0.4371, 0.4040), (0.485, 0.456, 0.406), (0.5, 0.5, 0.5), (0.09, 0.2, 0.95)]


def shifted(weights: dict[str, Tensor], white: float, mean: tuple[float, ...], std: float) -> None:
    """Give the weights the shifts of the official code."""
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        weights[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1) / std
        weights[f"{name}.bias"] = sign * white * torch.tensor(mean) / std


def of_range_1(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function of colours in [0, 1], as `--rgb_range 1` writes it."""
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["head.0.weight"] *= 255
    for name in ("tail.1.weight", "tail.1.bias", "sub_mean.bias", "add_mean.bias"):
        weights[name] /= 255
    return weights


@pytest.mark.parametrize("name", SHIFTED)
def test_networks_of_range_1_are_the_same_functions(name: str, tmp_path: Path) -> None:
    network = create_model(name, scale=2).eval()
    torch.save(of_range_1(network.state_dict()), tmp_path / "1.pt")
    loaded = load_model(tmp_path / "1.pt").eval()
    lr = torch.rand(1, 3, 9, 8)
    torch.testing.assert_close(loaded(lr), network(lr), rtol=1e-5, atol=1e-5)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=1e-6, atol=0)
    into = create_model(name, scale=2)
    load_weights(into, of_range_1(network.state_dict()))
    assert all(
        torch.equal(a, b) for a, b in zip(into.parameters(), loaded.parameters(), strict=True)
    )


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("std", [1.0, 0.5])
def test_any_mean_and_deviation_tell_the_range(mean: tuple[float, ...], std: float) -> None:
    weights = EDSR(EDSRConfig(1, 8), 2).state_dict()
    shifted(weights, 255, mean, std)
    unchanged = with_rgb_range(weights)
    assert all(torch.equal(unchanged[name], weights[name]) for name in weights)
    converted = with_rgb_range(of_range_1(weights))
    for name, tensor in weights.items():
        torch.testing.assert_close(converted[name].float(), tensor, rtol=1e-6, atol=0)


def test_what_is_saved_again_is_read_as_it_is(tmp_path: Path) -> None:
    torch.save(of_range_1(builtin_teacher().state_dict()), tmp_path / "1.pt")
    once = load_model(tmp_path / "1.pt")
    save_model(tmp_path / "again.safetensors", once, {})
    metadata = read_metadata(tmp_path / "again.safetensors")
    assert metadata is not None and metadata.value_range == (0, 1)
    twice = load_model(tmp_path / "again.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True)
    )
    assert torch.equal(once.sub_mean.bias, twice.sub_mean.bias)
    lr = torch.rand(1, 3, 12, 12)
    torch.testing.assert_close(twice(lr), builtin_teacher()(lr), rtol=1e-5, atol=1e-5)


def test_weights_of_range_1_in_half_precision_lose_nothing_more() -> None:
    weights = {n: t.half() for n, t in of_range_1(builtin_teacher().state_dict()).items()}
    converted = with_rgb_range(weights)
    exact = weights["tail.1.weight"].double() * 255
    assert torch.equal(converted["tail.1.weight"], exact)


def test_no_mean_tells_nothing_and_255_stays() -> None:
    weights = EDSR(EDSRConfig(1, 8), 2).state_dict()
    shifted(weights, 255, (0.0, 0.0, 0.0), 1.0)
    kept = with_rgb_range(weights)
    assert all(torch.equal(kept[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("white", "mean", "said"),
    [
        (1023, MEANS[0], "--rgb_range 1023"),
        (2, MEANS[0], "--rgb_range 2"),
        (-1, MEANS[0], "--rgb_range -1"),
        (65535, MEANS[1], "a mean colour of 3.178e+04, 2.988e+04, 2.661e+04"),
        (5, MEANS[1], "a mean colour of 2.425, 2.28, 2.03"),
    ],
)
def test_other_ranges_are_refused_with_their_value(
    white: float, mean: tuple[float, ...], said: str, tmp_path: Path
) -> None:
    weights = EDSR(EDSRConfig(1, 8), 2).state_dict()
    shifted(weights, white, mean, 1.0)
    torch.save(weights, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load_model(tmp_path / "odd.pt")
    assert str(caught.value).startswith(f"weights file {tmp_path / 'odd.pt'}: sub_mean.bias is of")


def test_a_mean_that_is_no_number_is_refused_as_such() -> None:
    model = EDSR(EDSRConfig(1, 8), 2)
    weights = model.state_dict() | {"sub_mean.bias": torch.full((3,), float("nan"))}
    with pytest.raises(ValueError, match=r"NaN or infinite numbers \(sub_mean\.bias\)"):
        load_weights(model, weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        lambda tensor: tensor.half(),
        lambda tensor: tensor.int(),
    ],
)
def test_tensors_of_any_form_are_for_others_to_refuse(change) -> None:
    weights = {name: change(t) for name, t in create_model("edsr-s", 2).state_dict().items()}
    assert with_rgb_range(weights).keys() == weights.keys()
