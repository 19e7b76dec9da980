"""A network is known by its names and its weights once its file was imported."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mkdext.models import (
    EDSR,
    HAN,
    MODEL_NAMES,
    EDSRConfig,
    create_model,
    load_model,
    model_names,
    register,
    registry,
    resolve_student,
    save_model,
)
from mkdext.models.registry import first_layers, recognise
from mkdext.models.weights.shapes import count_numbers
from mkdext.synthesis import part_counts


@dataclasses.dataclass(frozen=True)
class _PlainConfig(EDSRConfig):
    """Size of the network of this file."""

    slope: float = 0.1


class _Plain(EDSR):
    """What a file of a new network holds: here EDSR with a head of another name."""

    config: _PlainConfig
    first_layers = ("entry.weight",)

    def __init__(self, config, scale):
        super().__init__(config, scale)
        self.entry = torch.nn.Conv2d(3, 3, 1)

    def super_resolve(self, lr):
        return super().super_resolve(self.entry(lr))

    @classmethod
    def infer(cls, weights):
        found = super().infer(weights) if "entry.weight" in weights else None
        if found is None:
            return None
        config, scale = found
        blocks = count_numbers(weights, r"body\.(\d+)\.body\.0\.weight")
        return _PlainConfig(blocks, config.features, config.residual_scale), scale


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    return register({"plain": _PlainConfig(3, 8)})(_Plain)


def test_a_registered_network_is_known_everywhere(plain, tmp_path):
    assert model_names() == (*MODEL_NAMES, "plain")
    torch.manual_seed(0)
    model = resolve_student("plain", scale=3)
    assert type(model) is plain and "entry.weight" in first_layers()
    assert recognise(model.state_dict()) == (plain, _PlainConfig(3, 8), 3)
    assert part_counts(model, 3) == [1, 2, 3]
    config = dataclasses.replace(model.config, slope=0.3)
    model = plain(config, 3)
    save_model(tmp_path / "weights", model, {})
    loaded = load_model(tmp_path / "weights")
    assert type(loaded) is plain and loaded.config == config
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_a_name_belongs_to_one_network(plain):
    with pytest.raises(ValueError, match="'edsr-s' is the name of another network"):
        register({"edsr-s": _PlainConfig(3, 8)})(plain)


def test_sizes_are_checked_by_the_types_of_their_fields():
    assert _PlainConfig(3, 8, slope=0.0).slope == 0
    with pytest.raises(TypeError, match=r"^_PlainConfig: slope must be a number, got '1'$"):
        _PlainConfig(3, 8, slope="1")
    with pytest.raises(TypeError, match=r"^_PlainConfig: blocks must be a whole number, got 3.0$"):
        _PlainConfig(3.0, 8)


def test_a_network_with_all_layers_of_another_and_more_is_not_taken_for_it():
    assert recognise(create_model("han-s", 2).state_dict()).network is HAN
