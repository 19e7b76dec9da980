"""Weights in files: read without executing anything, loaded strictly or not at all, and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from mkdext._system.files import atomic_write
from mkdext.models.blocks import SRNetwork, repetitions, same_shapes
from mkdext.models.registry import (
    Recognised,
    create_model,
    first_layers,
    nearest_network,
    recognise,
)
from mkdext.models.weights.content import file_metadata, read_content
from mkdext.models.weights.metadata import METADATA_KEY, WeightsMetadata
from mkdext.models.weights.state_dicts import (
    PREFERRED,
    StateDict,
    candidates,
    extraction,
    plainly_named,
    preferred,
    state_dicts,
)
from mkdext.models.weights.state_tensors import from_tensors, to_tensors
from mkdext.models.weights.strict_loading import (
    check_fit,
    completed,
    have_same_names,
    have_same_shapes,
    listing,
    load_strictly,
    shortened,
)

_SHOWN = 3


def load_model(path: str | Path, scale: int | None = None, name: str | None = None) -> SRNetwork:
    """Make the network that a file holds the weights of.

    Architecture, size and scale are those of the file's metadata (`save_model`), and where it has
    none, those that names and shapes of the weights tell. The official files of EDSR, RCAN, RDN
    (EDSR-PyTorch's), SAN, HAN, IMDN (the challenges' baseline) and VDSR (pytorch-vdsr's) are
    understood, those of BasicSR's EDSR and RCAN, and those of this package; those of
    `--rgb_range 1` become ones of 255 levels, as their colour shifts tell. Weights are found
    wherever training programs put them (`read_weights`), with a prefix, and beside those of losses,
    metrics and discriminators. Of several networks that fit, averaged weights are preferred, then
    the first of the order of `read_weights`. Torch's random generator is not touched.

    Args:
        path: A file that `read_weights` can read.
        scale: Scale that the network must have; default: that of the file.
        name: One of `MODEL_NAMES` that the network must be; default: any.

    Returns:
        A network in float32 on the CPU that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`,
        colours in [0, 1].

    Raises:
        ValueError: The file cannot be read, or the weights are of an unknown architecture, of
            another scale or name than asked for, incomplete, not finite, for another range of
            colours, or not what the metadata say; or they serve for every scale and none is given,
            or several networks could be meant.

    Example:
        >>> import tempfile
        >>> from mkdext.models import create_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(create_model("rcan-b", scale=2).state_dict(), f"{folder}/weights.pt")
        ...     model = load_model(f"{folder}/weights.pt")
        >>> model.config
        RCANConfig(groups=4, blocks=4, features=16, reduction=16)
        >>> model.scale
        2
    """
    states = states_in(path)
    metadata = read_metadata(path)
    if name is None and metadata is not None and metadata.factory is not None:
        raise ValueError(
            f"weights file {path} is of your own network"
            f"{f' at x{metadata.scale}' if metadata.scale else ''}; name what makes "
            f"it: `model` {shortened(metadata.factory)} (in a training: `teacher`)"
        )
    try:
        state, found = _recognised(states, scale, name)
        if metadata is not None:
            found = _as_described(found, metadata)
        if repetitions(found.config) > len(state.weights):
            raise ValueError(f"the weights of a {found.config} are not all there")
        model, weights = _empty(found, scale, name), own_form(found.network, state.weights)
        # Before memory is taken, which a damaged file can ask for without end.
        check_fit(model, weights, lambda: causes_of_misfit(model, weights))
        load_strictly(model.to_empty(device="cpu"), weights, list, buffers_finite=True)
        if model.config != found.config:
            raise ValueError(f"the weights are of {found.config}, {name} is {model.config}")
    except ValueError as error:
        raise type(error)(f"weights file {path}: {error}") from None
    return model


class UnknownArchitecture(ValueError):
    """Weights are of no network of this package."""


def _recognised(
    states: Sequence[StateDict], scale: int | None, name: str | None
) -> tuple[StateDict, Recognised]:
    """The weights that are meant, and what they are of."""
    seen = [(state, recognise(state.weights)) for state in candidates(states, first_layers())]
    found = [(state, known) for state, known in seen if known is not None]
    if not found:
        state = plainly_named(states[0])
        known = recognise(tensors_of(state.weights))
        if known is None:
            raise _unknown(states)
        return state, known
    if len(found) > 1:
        found = [(s, known) for s, known in found if _is_complete(s.weights, known)] or found
        found = [(s, known) for s, known in found if known.scale in (scale, None)] or found
        if name is not None:
            model = _empty(found[0][1], scale, name)
            same = (type(model), model.config)
            found = [(s, known) for s, known in found if (known[0], known[1]) == same] or found
    chosen = preferred([state for state, _ in found])
    return next((state, known) for state, known in found if state is chosen)


def _unknown(states: Sequence[StateDict]) -> UnknownArchitecture:
    names = [name for state in states for name in state.weights]
    return UnknownArchitecture(
        f"the weights are of no architecture that mkdext knows{nearest_network(names)}; "
        f"{_contents(states)}; name what makes the network: `model` FILE.py:FACTORY (in a "
        "training: `teacher`)"
    )


def _contents(states: Sequence[StateDict]) -> str:
    """What a file holds, in words."""
    held = [
        f"{f'under {state.where} ' if state.where else ''}{listing(list(state.weights))}"
        for state in states[:_SHOWN]
    ]
    more = f"; {len(states)} dictionaries of weights in all" if len(states) > _SHOWN else ""
    return f"it holds {'; and '.join(held)}{more}"


def _is_complete(weights: Mapping[str, Any], found: Recognised) -> bool:
    try:
        if repetitions(found.config) > len(weights):
            return False
        check_fit(_empty(found, found.scale or 2, None), own_form(found.network, weights), list)
    except ValueError:
        return False
    return True


def _empty(found: Recognised, scale: int | None, name: str | None) -> SRNetwork:
    """The network on the meta device."""
    scale = found.scale if scale is None else scale
    if scale is None:
        raise ValueError(
            f"the weights are of {found.network.__name__} and serve for every scale; "
            "say for which one"
        )
    with torch.device("meta"):
        return found.network(found.config, scale) if name is None else create_model(name, scale)


def _as_described(found: Recognised, metadata: WeightsMetadata) -> Recognised:
    """What weights are of: shapes do not tell everything, metadata do."""
    if metadata.architecture is None or metadata.scale is None:
        return found
    told, seen = shortened(metadata.architecture), found.network.__name__
    if told != seen:
        raise ValueError(f"the metadata say {told}, the weights are of {seen}")
    if found.scale not in (metadata.scale, None):
        raise ValueError(f"the metadata say x{metadata.scale}, the weights are for x{found.scale}")
    try:
        config = type(found.config)(**metadata.config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata name an impossible {told}: {error}") from None
    if not same_shapes(config, found.config):
        raise ValueError(f"the metadata say {config}, the weights are of {found.config}")
    return Recognised(found.network, config, metadata.scale)


def save_model(path: str | Path, model: nn.Module, origin: Mapping[str, Any]) -> None:
    """Write a network as a safetensors file, atomically, with all that `load_model` must know.

    Args:
        path: File to write, in a folder that exists.
        model: The network. One that is not of this package is written without its architecture.
        origin: How the weights came about, as plain values for JSON.

    Raises:
        OSError: The file cannot be written.
        ValueError: As `serialized`.

    Example:
        >>> import tempfile
        >>> from mkdext.models import create_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/weights.safetensors"
        ...     save_model(file, create_model("vdsr-half", scale=3), {"steps": 20_000})
        ...     load_model(file).scale, read_metadata(file).origin
        (3, {'steps': 20000})
    """
    content = serialized(model, origin)
    with atomic_write(Path(path)) as unfinished:
        unfinished.write_bytes(content)


def serialized(model: nn.Module, origin: Mapping[str, Any]) -> bytes:
    """The file that `save_model` writes. The same network and origin give the same bytes.

    Raises:
        ValueError: The network has weights without numbers (of lazy modules, or on the meta
            device), or extra state that is no plain value.
    """
    tensors, metadata = _kept(model, origin)
    return save(tensors, {METADATA_KEY: metadata.to_json()})


def check_comes_back(model: nn.Module, origin: Mapping[str, Any]) -> None:
    """Check that what `save_model` writes of a network can be read, and gives the same weights.

    They are written to memory and loaded into the network again, which stays as it is.

    Raises:
        ValueError: They cannot be written, the network does not take them, or takes others.

    Example:
        >>> from mkdext.models import create_model
        >>> check_comes_back(create_model("rcan-a", scale=4), {})
    """
    tensors, metadata = _kept(model, origin)
    written = load(save(tensors))
    about = WeightsMetadata.from_json(metadata.to_json()).state
    weights = from_tensors(written, about, "what was saved")
    load_strictly(model, weights, list, buffers_finite=False)
    again, _ = _kept(model, origin)
    changed = [name for name in written if not _equal(written[name], again.get(name))]
    if changed:
        raise ValueError(
            f"network {type(model).__name__} does not read what it writes: {listing(changed)} "
            "come back with other numbers; look at its own hooks for state dicts"
        )


def _kept(model: nn.Module, origin: Mapping[str, Any]) -> tuple[dict[str, Tensor], WeightsMetadata]:
    try:
        tensors, about = to_tensors(model.state_dict())
    except ValueError as error:
        raise ValueError(f"network {type(model).__name__} cannot be saved: {error}") from None
    return tensors, dataclasses.replace(WeightsMetadata.of(model, origin), state=about)


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return (
        other is not None
        and one.dtype == other.dtype
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )


def read_metadata(path: str | Path) -> WeightsMetadata | None:
    """Read what a weights file says of itself; none if it says nothing, as others' files.

    Raises:
        ValueError: The file cannot be read, is damaged, or its metadata are not as `save_model`
            writes them.
    """
    return file_metadata(Path(path))


def load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Copy weights into a network, all of them or none.

    What PyTorch's own strict loading takes is taken. A prefix before every name of the network is
    removed, and what stands beside it left out, as `load_model` does it. One name of tied weights
    is enough.

    Args:
        model: Network that takes the weights, in its own dtype and on its own device.
        weights: Weights by name, as `read_weights` gives them; a network of this package also takes
            those of other code bases that `load_model` understands.

    Raises:
        ValueError: A name is missing or unexpected, a shape or a kind of number is wrong, a
            parameter is NaN or infinite, or several networks could be meant. The network is not
            changed.

    Example:
        >>> from mkdext.models import create_model
        >>> trained, model = create_model("rcan-a", scale=4), create_model("rcan-a", scale=4)
        >>> load_weights(model, trained.state_dict())
    """
    load_one_of(model, state_dicts(weights) or [StateDict((), "", weights)])


def load_weights_file(model: nn.Module, path: str | Path) -> None:
    """Copy the weights of a file into a network, all of them or none.

    Of several state dicts in the file that is taken which fits; of several that fit, the one that
    `load_model` prefers.

    Args:
        model: As for `load_weights`.
        path: A file that `read_weights` can read.

    Raises:
        ValueError: As `read_weights` and `load_weights`; the file is named.
    """
    states = states_in(path)
    try:
        load_one_of(model, states)
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None


def load_one_of(model: nn.Module, states: Sequence[StateDict]) -> None:
    """Copy those weights into a network that fit, all of them or none.

    Raises:
        ValueError: As `load_weights`.
    """
    own = model.state_dict()
    fitting = []
    for state in states_of(model, states):
        weights = completed(model, own_form(type(model), state.weights))
        if have_same_names(own, weights):
            fitting.append(StateDict(state.keys, state.prefix, weights))
    if fitting:
        shaped = [state for state in fitting if have_same_shapes(own, state.weights)]
        weights = preferred(shaped or fitting).weights
    else:
        weights = completed(model, own_form(type(model), plainly_named(states[0]).weights))
    load_strictly(
        model,
        weights,
        lambda: causes_of_misfit(model, weights) + ([] if fitting else _places(states)),
        buffers_finite=isinstance(model, SRNetwork),
    )


def states_of(model: nn.Module, states: Sequence[StateDict]) -> Iterator[StateDict]:
    """State dicts that a network's weights can be, under every prefix that it can have."""
    own = model.state_dict()
    names = sorted(own, key=len)
    layers = first_layers() if isinstance(model, SRNetwork) else [*list(own)[:1], *names[-1:]]
    return candidates(states, layers, kept=own)


def own_form(network: type[nn.Module], weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Weights under the names and in the range of a network of this package; else as they are."""
    if not issubclass(network, SRNetwork):
        return weights
    return network.own_range(network.own_names(weights))


def causes_of_misfit(model: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """Why weights do not fit `model`, where that can be told."""
    found = recognise(tensors_of(weights))
    if found is not None and isinstance(model, SRNetwork):
        if found.network is not type(model):
            return [
                f"the checkpoint is of {found.network.__name__}, "
                f"the network is {type(model).__name__}"
            ]
        causes = []
        if found.config != model.config:
            causes.append(f"the checkpoint is {found.config}, the network is {model.config}")
        if found.scale not in (model.scale, None):
            causes.append(f"the checkpoint is for x{found.scale}, the network is x{model.scale}")
        return causes
    own = model.state_dict().keys()
    common = len(own & weights.keys())
    if 2 * common < len(own):
        return [f"they are of another architecture, {common} of {len(own)} names are the same"]
    return []


def _places(states: Sequence[StateDict]) -> list[str]:
    """Where other weights are than those that were tried, in words."""
    if len(states) < 2:
        return []
    return [
        f"these are the ones under {states[0].where}, others are under "
        f"{listing([state.where or 'no name' for state in states[1:]])}, and one is taken alone by "
        f"{extraction(states[1])}"
    ]


def tensors_of(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a state dict is tensors."""
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}


def read_weights(path: str | Path) -> Mapping[str, Any]:
    """Read a state dict from a safetensors file or from one that `torch.save` made.

    The format is told from the content, not from the name. Of a pickle only tensors and plain
    containers are read, and the weights of a whole network of pytorch-vdsr; it is refused when it
    asks for anything else, and never executed. Of several state dicts in a file, at any depth,
    averaged weights are preferred (under names with `ema`, `swa`, `averaged`), then those under
    `params`, `state_dict`, `model_state_dict`, `model`, `net`, `network`, `generator`, `net_g`,
    `netG`, `g`, `gen`, `weights`, in this order. The `module.` that DataParallel puts before every
    name is removed, as is the `_orig_mod.` of `torch.compile`.

    Returns:
        Tensors by name, on the CPU, of the dtype that they have in the file; and what else modules
        keep in their state dict, such as extra state.

    Raises:
        ValueError: The file is missing, no regular file, unreadable, empty, damaged, of another
            format, asks for code, holds no state dict or several of which any could be meant.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"params": {"module.bias": torch.ones(2)}}, f"{folder}/weights.pt")
        ...     dict(read_weights(f"{folder}/weights.pt"))
        {'bias': tensor([1., 1.])}
    """
    states = states_in(path)
    try:
        return plainly_named(preferred(states)).weights
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None


def states_in(path: str | Path) -> list[StateDict]:
    """The state dicts in a file, at least one."""
    content = read_content(Path(path))
    states = state_dicts(content)
    if not states:
        if isinstance(content, Mapping):
            what = f"a dictionary of {listing([str(key)[:80] for key in content])}"
        else:
            what = f"a {type(content).__name__}"
        raise ValueError(
            f"weights file {path} must hold a state dict, tensors by name, alone or under a name "
            f"such as {', '.join(PREFERRED)}, got {what}; save it with "
            "torch.save(model.state_dict(), FILE)"
        )
    return states
