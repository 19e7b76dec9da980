"""Networks by name, and by their weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from mkdext._system.near_names import did_you_mean
from mkdext.models.blocks import SRNetwork
from mkdext.models.edsr import EDSR, EDSRConfig
from mkdext.models.han import HAN, HANConfig
from mkdext.models.rcan import RCAN, RCANConfig
from mkdext.models.rdn import RDN, RDNConfig
from mkdext.models.san import SAN, SANConfig
from mkdext.models.vdsr import VDSR, VDSRConfig

_MODELS: dict[str, tuple[type[SRNetwork], Any]] = {
    # MKD Table 1: the teacher and three students.
    "rcan-t": (RCAN, RCANConfig(groups=10, blocks=20, features=64)),
    "rcan-a": (RCAN, RCANConfig(groups=4, blocks=1, features=16)),
    "rcan-b": (RCAN, RCANConfig(groups=4, blocks=4, features=16)),
    "rcan-c": (RCAN, RCANConfig(groups=4, blocks=4, features=32)),
    # MKD Table 5: teachers and students.
    "edsr-t": (EDSR, EDSRConfig(blocks=32, features=256, residual_scale=0.1)),
    "edsr-s": (EDSR, EDSRConfig(blocks=4, features=16)),
    "rdn-t": (RDN, RDNConfig(blocks=16, layers=8, growth=64, features=64)),
    "rdn-s": (RDN, RDNConfig(blocks=4, layers=4, growth=16, features=16)),
    "san-t": (SAN, SANConfig(groups=20, blocks=10, features=64)),
    "san-s": (SAN, SANConfig(groups=4, blocks=1, features=16, reduction=4)),
    "han-t": (HAN, HANConfig(groups=10, blocks=20, features=64)),
    "han-s": (HAN, HANConfig(groups=4, blocks=4, features=16, reduction=4)),
    # Data-free contrastive distillation (Wang et al.), section 4.2.
    "vdsr": (VDSR, VDSRConfig(features=64)),
    "vdsr-half": (VDSR, VDSRConfig(features=32)),
}

# HAN has all layers of RCAN and more.
_NETWORKS: tuple[type[SRNetwork], ...] = (HAN, RCAN, EDSR, RDN, SAN, VDSR)

MODEL_NAMES = tuple(_MODELS)

FIRST_LAYERS = ("head.0.weight", "conv_first.weight", "SFENet1.weight", "input.weight")
"""Weights of the first layers, under the names here and in other code bases."""


def create_model(name: str, scale: int) -> nn.Module:
    """Make a network with random weights, drawn from torch's global generator.

    Args:
        name: One of `MODEL_NAMES`.
        scale: Enlargement factor: 2, 3, 4 or 8.

    Returns:
        A module that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Raises:
        ValueError: The name is unknown or the network does not come at this scale.

    Example:
        >>> sum(p.numel() for p in create_model("rcan-a", scale=4).parameters())
        49799
    """
    if name not in _MODELS:
        raise ValueError(
            f"network {name!r} is unknown, there are {', '.join(MODEL_NAMES)}"
            f"{did_you_mean(name, MODEL_NAMES)}"
        )
    network, config = _MODELS[name]
    return network(config, scale)


class Recognised(NamedTuple):
    """What weights are of."""

    network: type[SRNetwork]
    config: Any
    scale: int | None
    """None: the weights serve for every scale."""


def recognise(weights: Mapping[str, Tensor]) -> Recognised | None:
    """The network that `weights` seem to be of, by names and shapes; none if it is not known here.

    Example:
        >>> recognise(create_model("edsr-s", scale=3).state_dict())[1:]
        (EDSRConfig(blocks=4, features=16, residual_scale=1.0), 3)
    """
    for network in _NETWORKS:
        found = network.infer(network.own_names(weights))
        if found is not None:
            return Recognised(network, *found)
    return None


def is_as_made(model: nn.Module) -> TypeGuard[SRNetwork]:
    """Whether a network is one of this package with just its modules and shapes of weights.

    Example:
        >>> model = create_model("edsr-s", scale=2)
        >>> is_as_made(model), is_as_made(nn.Sequential(model))
        (True, False)
    """
    if type(model) not in _NETWORKS:
        return False
    with torch.device("meta"):
        fresh = type(model)(model.config, model.scale)
    return _make(model) == _make(fresh)


def _make(model: nn.Module) -> list[Any]:
    parts = [(name, type(part)) for name, part in model.named_modules()]
    return [*parts, *((name, tensor.shape) for name, tensor in model.state_dict().items())]


def nearest_network(names: Iterable[str]) -> str:
    """In words, the known network that has most kinds of weights in common with `names`.

    Returns:
        The end of a sentence, empty if none has anything in common.

    Example:
        >>> nearest_network(["SFENet1.weight", "SFENet2.weight", "GFF.0.bias"])
        '; nearest is RDN, with 3 of its 12 kinds of weights'
    """
    given = _kinds(names)
    students = dict(_MODELS.values())  # The last of each network, which is small.
    with torch.device("meta"):
        known = {
            network.__name__: _kinds(network(config, scale=4).state_dict())
            for network, config in students.items()
        }
    name = max(known, key=lambda name: len(known[name] & given) / len(known[name] | given))
    common = len(known[name] & given)
    if not common:
        return ""
    return f"; nearest is {name}, with {common} of its {len(known[name])} kinds of weights"


def _kinds(names: Iterable[str]) -> set[str]:
    """Names of weights without the numbers of their layers."""
    return {re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names}
