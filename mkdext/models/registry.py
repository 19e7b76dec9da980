"""Networks by name, and by their weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from mkdext._system.near_names import did_you_mean
from mkdext.models.blocks import SRNetwork

_MODELS: dict[str, tuple[type[SRNetwork], Any]] = {}
_Network = TypeVar("_Network", bound=type[SRNetwork])


def register(sizes: Mapping[str, Any]) -> Callable[[_Network], _Network]:
    """Decorator that makes a network known under the names of its sizes.

    Args:
        sizes: Configurations by name, at least one, of which the last is a small one. The network
            is made as `network(configuration, scale)`.

    Raises:
        ValueError: A name is taken.
    """

    def add(network: _Network) -> _Network:
        for name, config in sizes.items():
            if name in _MODELS:
                raise ValueError(f"register: {name!r} is the name of another network")
            _MODELS[name] = network, config
        return network

    return add


def model_names() -> tuple[str, ...]:
    """The names of all networks that are registered so far."""
    return tuple(_MODELS)


def names_of(network: type[SRNetwork]) -> list[str]:
    """The names of all sizes of a network."""
    return [name for name, (kind, _) in _MODELS.items() if kind is network]


def muon_rate(name: str) -> float:
    """The learning rate that a network is trained well at by Muon; a usual one for unknown ones."""
    network, _ = _MODELS.get(name, (SRNetwork, None))
    return network.muon_rate


def first_layers() -> list[str]:
    """Weights of the first layers of all networks, by their names here and in other code bases."""
    return [name for network in _networks() for name in network.first_layers]


def create_model(name: str, scale: int) -> SRNetwork:
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
            f"network {name!r} is unknown, there are {', '.join(_MODELS)}"
            f"{did_you_mean(name, _MODELS)}"
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
    for network in _networks():
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
    if not isinstance(model, SRNetwork) or type(model) not in _networks():
        return False
    with torch.device("meta"):
        fresh = type(model)(model.config, model.scale)
    return _make(model) == _make(fresh)


def _networks() -> list[type[SRNetwork]]:
    """Each network once, those first that have all layers of another and more."""
    networks = dict.fromkeys(network for network, _ in _MODELS.values())
    return sorted(networks, key=lambda network: -len(network.__mro__))


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
    small = dict(_MODELS.values())  # the last of each network
    with torch.device("meta"):
        known = {
            network.__name__: _kinds(network(config, scale=4).state_dict())
            for network, config in small.items()
        }
    name = max(known, key=lambda name: len(known[name] & given) / len(known[name] | given))
    common = len(known[name] & given)
    if not common:
        return ""
    return f"; nearest is {name}, with {common} of its {len(known[name])} kinds of weights"


def _kinds(names: Iterable[str]) -> set[str]:
    """Names of weights without the numbers of their layers."""
    return {re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names}
