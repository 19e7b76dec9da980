"""Networks of the package spandrel: recognised by their weights, or made by name.

spandrel knows 40 and more architectures of super-resolution. It is given weights that were read
here, never a file: its own reader of pickles is not used. Its networks are called as modules, since
its own call clamps and leaves no gradient.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mkdext._system.near_names import did_you_mean
from mkdext._system.plugins import check_options, error_in_words
from mkdext.models.user.adapted import AdaptedNetwork, adapt_as
from mkdext.models.user.factory import recorded_options
from mkdext.models.user.interface import Interface, Sizes
from mkdext.models.weights.files import load_weights_file, read_metadata, states_in, tensors_of
from mkdext.models.weights.state_dicts import plainly_named, preferred

PREFIX = "spandrel:"
INSTALL = "pip install 'mkdext[spandrel]'"


class Small(NamedTuple):
    """A network of spandrel that is small enough for a student."""

    architecture: str
    options: Mapping[str, Any]


SMALL: Mapping[str, Small] = {
    "span-s": Small("SPAN", {"feature_channels": 28}),
    "compact-s": Small("Compact", {"num_feat": 32, "num_conv": 8}),
    "plksr-s": Small("PLKSR", {"dim": 32, "n_blocks": 8, "kernel_size": 13}),
    "safmn-s": Small("SAFMN", {"dim": 24}),
    "mosr-s": Small("MoSR", {"n_block": 6, "dim": 32}),
    "swinir-s": Small(
        "SwinIR",
        {
            "embed_dim": 36,
            "depths": [4, 4],
            "num_heads": [6, 6],
            "window_size": 8,
            "mlp_ratio": 2.0,
            "upsampler": "pixelshuffledirect",
        },
    ),
}
"""By the names that `student` knows."""

_SCALES = ("upscale", "scale", "upscaling_factor", "upscale_factor", "up_scale")
_COLOURS = ("num_in_ch", "num_out_ch", "in_chans", "in_channels", "out_channels", "in_nc", "out_nc")


def is_of_spandrel(name: str) -> bool:
    """Whether `name` is that of a network of spandrel, `spandrel:CLASS` or one of `SMALL`."""
    return name.startswith(PREFIX) or name in SMALL


def make(
    name: str, scale: int, flag: str, options: Mapping[str, Any] | None = None
) -> AdaptedNetwork:
    """A network of spandrel with random weights.

    Args:
        name: `spandrel:CLASS`, such as `spandrel:SPAN`, or one of `SMALL`.
        scale: Enlargement factor.
        flag: The option that `name` was given to, for error messages.
        options: Arguments of the class by name; scale and channels are given to it in any case.

    Raises:
        ValueError: spandrel is not installed or has no such class, the options do not go with it,
            or it makes no network that enlarges colours `scale` times.
    """
    what = f"{flag} {name}"
    network = instance(name, scale, flag, options)
    try:
        # What it asks of its images only the description tells that spandrel makes of weights.
        described = _described(network.state_dict())
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} cannot be made: {error_in_words(error)}") from error
    if described:
        _check_enlarges(described, scale, what)
    _without_unused(network)
    return adapt_as(network, scale, what, _interface(described) if described else Interface())


def instance(
    name: str, scale: int, flag: str, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """The same network as spandrel has it.

    Raises:
        ValueError: As `make`, where it can be told without running it.
    """
    what, small = f"{flag} {name}", SMALL.get(name)
    made_by = _class(small.architecture if small else name.removeprefix(PREFIX), what)
    takes = inspect.signature(made_by).parameters
    given = {each: scale for each in _SCALES if each in takes}
    given |= {each: 3 for each in _COLOURS if each in takes}
    given |= {**(small.options if small else {}), **(options or {})}
    check_options(made_by, given, what)
    try:
        network: nn.Module = made_by(**given)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} cannot be made: {error_in_words(error)}") from error
    return network


def load(path: str | Path, scale: int | None) -> AdaptedNetwork | None:
    """The network that a file of weights is of, if spandrel knows it.

    Args:
        path: A file that `read_weights` can read; of several networks in it that are known the one
            that `load_model` prefers is taken.
        scale: Scale that the network must have; none: any.

    Returns:
        The network in evaluation mode; none if it is of no architecture that spandrel knows.

    Raises:
        ValueError: The file cannot be read, spandrel is not installed, or the network does not
            enlarge colours, or not `scale` times.
    """
    what = f"weights file {path}"
    states = [plainly_named(state) for state in states_in(path)]
    _require(f"{what}: the weights may be of a network that the package spandrel knows")
    known = [state for state in states if _architecture(state.weights) is not None]
    if not known:
        return None
    try:
        weights = preferred(known).weights
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    name = _architecture(weights).name
    try:
        described = _described(weights)
    except (Exception, SystemExit) as error:  # Whatever it may raise of other weights.
        raise ValueError(
            f"{what}: spandrel takes it for {name}, but cannot load it: {error_in_words(error)}"
        ) from None
    what = f"{what} of spandrel's {name}"
    _check_enlarges(described, scale, what)
    network = described.model.eval().float()
    _without_unused(network)
    return adapt_as(network, described.scale, what, _interface(described))


def load_named(
    name: str,
    weights: str | Path,
    scale: int | None,
    flag: str,
    options: Mapping[str, Any] | None = None,
) -> AdaptedNetwork:
    """A network that `make` makes, with the weights of a file, in evaluation mode.

    Args:
        name: As for `make`.
        weights: A file that `read_weights` can read.
        scale: Enlargement factor; none: that of the file's metadata.
        flag: As for `make`.
        options: As for `make`; none: those that the file says the network was made with.

    Raises:
        ValueError: As `make`, or the weights do not fit, or the scale is not known.
    """
    metadata = read_metadata(weights)
    scale = scale or (metadata.scale if metadata else None)
    if scale is None:
        raise ValueError(f"{flag} {name} needs `scale`, because the weights file does not give it")
    with torch.random.fork_rng(devices=[]):
        network = make(name, scale, flag, options or recorded_options(name, weights))
    load_weights_file(network.unwrapped, weights)
    return network.eval()


def recorded_name(weights: str | Path) -> str | None:
    """The name of the network of spandrel that a student's file says it is of; none: it does not.

    Raises:
        ValueError: The file cannot be read.
    """
    metadata = read_metadata(weights)
    name = metadata.origin.get("student") if metadata and not metadata.architecture else None
    return name if isinstance(name, str) and is_of_spandrel(name) else None


def is_installed() -> bool:
    """Whether the package spandrel is there."""
    return importlib.util.find_spec("spandrel") is not None


def _require(why: str) -> None:
    if not is_installed():
        raise ValueError(f"{why}, which is not installed: {INSTALL}")
    try:
        importlib.import_module("spandrel")
    except Exception as error:  # A torchvision for another torch raises more than ImportError.
        raise ValueError(
            f"the package spandrel is installed, but cannot be imported: {error_in_words(error)}; "
            "give it the torchvision of your torch"
        ) from error


def _class(name: str, what: str) -> Any:
    """A class of spandrel by its name."""
    _require(f"{what} is of the package spandrel")
    from spandrel import architectures

    classes: dict[str, Any] = {}
    for module in pkgutil.iter_modules(architectures.__path__):
        if not module.name.startswith("_"):
            named = importlib.import_module(f"{architectures.__name__}.{module.name}")
            classes |= {
                each: getattr(named, each)
                for each in named.__all__
                if isinstance(getattr(named, each), type)
                and issubclass(getattr(named, each), nn.Module)
            }
    if name not in classes:
        hint = did_you_mean(name, classes) or f"; it has {', '.join(classes)}"
        raise ValueError(f"{what}: spandrel has no {name!r}{hint}")
    return classes[name]


def _architecture(weights: Mapping[str, Any]) -> Any:
    """The architecture that weights are of; none: no one that spandrel knows."""
    from spandrel import MAIN_REGISTRY

    tensors = tensors_of(weights)
    for support in MAIN_REGISTRY.architectures("detection"):
        if support.detect(tensors):
            return support.architecture
    return None


def _described(weights: Mapping[str, Any]) -> Any:
    """What spandrel makes of weights, a network and what it knows of it; none: it knows no such."""
    architecture = _architecture(weights)
    # A copy, because it puts things in.
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors_of(weights).items()
    }
    # It makes a network with random weights first.
    with torch.random.fork_rng(devices=[]):
        return architecture and architecture.load(tensors)


def _check_enlarges(described: Any, scale: int | None, what: str) -> None:
    from spandrel import ImageModelDescriptor

    if not isinstance(described, ImageModelDescriptor):
        raise ValueError(f"{what} fills holes of pictures and does not enlarge them")
    if described.scale < 2:
        raise ValueError(f"{what} restores pictures at their own size and does not enlarge them")
    if described.purpose != "SR":
        raise ValueError(f"{what} restores faces, at one size, and does not enlarge photographs")
    channels = described.input_channels, described.output_channels
    if channels not in ((3, 3), (1, 1)):
        raise ValueError(f"{what} must take and give 3 channels or one, got {channels}")
    if scale not in (described.scale, None):
        raise ValueError(f"{what} is for x{described.scale}, asked for is x{scale}")


def _interface(described: Any) -> Interface:
    asked = described.size_requirements
    return Interface(
        channels=described.input_channels,
        sizes=Sizes(asked.multiple_of, max(1, asked.minimum), asked.square),
        # Some give several results, or want to be called by more than the image.
        call=described._call_fn,
    )


def _without_unused(network: nn.Module) -> None:
    """Take what a network of branches computes by itself, for evaluation, from what is trained."""
    for module in network.modules():
        folded = getattr(module, "eval_conv", None)
        if isinstance(folded, nn.Module) and hasattr(module, "update_params"):
            folded.requires_grad_(False)
