"""Networks that users name: `package.module:factory` or `file.py:factory`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mkdext._system.plugins import check_options, error_in_words, loaded, named_options
from mkdext.models.blocks import SuperResolver
from mkdext.models.user.adapted import adapt, found_scale
from mkdext.models.weights.files import load_weights_file, read_metadata
from mkdext.models.weights.metadata import WeightsMetadata


def make_own(name: str, flag: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Call the factory called `name`.

    Args:
        name: `package.module:factory` or `file.py:factory`: a function or class that gives a
            `torch.nn.Module`. A file may import from its own folder, also relatively
            (`from . import block`), and from the packages around it.
        flag: The option that `name` was given to, for error messages.
        options: Arguments of the factory by name; it must need no others.

    Raises:
        ValueError: The module cannot be imported, has no such factory, or the factory has no such
            option, needs other arguments, fails, or gives no module.

    Example:
        >>> make_own("torch.nn:PixelShuffle", "`student`", {"upscale_factor": 2})
        PixelShuffle(upscale_factor=2)
    """
    options, what = options or {}, f"{flag} {name}"
    with loaded(name, what, "factory") as factory:
        if isinstance(factory, nn.Module) or not callable(factory):
            raise ValueError(
                f"{what} must be a function or class that makes a network, "
                f"got an object {type(factory).__name__}"
            )
        check_options(factory, options, what)
        try:
            made = factory(**options)
        except (Exception, SystemExit) as error:  # Whatever the user's code may raise.
            raise ValueError(f"{what} failed: {error_in_words(error)}") from error
    if inspect.iscoroutine(made):
        made.close()  # or Python warns of it
    if not isinstance(made, nn.Module):
        raise ValueError(f"{what} must return a torch.nn.Module, got {type(made).__name__}")
    return made


def load_own(
    name: str,
    weights: str | Path | None,
    scale: int | None,
    flag: str,
    size: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> SuperResolver:
    """A user's network with its weights.

    Args:
        name: `package.module:factory` or `file.py:factory`.
        weights: A file that `read_weights` can read; default: those that the factory gives it.
        scale: Enlargement factor; none: that of the weights, or the one found by running it.
        flag: The option that `name` was given to, for error messages.
        size: Height and width of the only pictures that it must take; default: any.
        options: Arguments of the factory by name; none: those that the file says a factory of the
            same name was given.

    Returns:
        A network that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].

    Raises:
        ValueError: There is no such factory, the weights do not fit what it makes, or that is not
            usable at this scale, or no scale is known.

    Example:
        >>> import torch
        >>> sharpen_nothing = load_own("torch.nn:Identity", None, scale=2, flag="`model`")
        >>> sharpen_nothing(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """
    what, metadata = f"{flag} {name}", read_metadata(weights) if weights is not None else None
    network = make_own(name, flag, options or recorded_options(name, weights))
    if weights is not None:
        try:
            load_weights_file(network, weights)
        except ValueError:
            # Some networks make what is to be loaded when they run first, as here.
            _adapted(network, scale, metadata, what, size)
            load_weights_file(network, weights)
    return _adapted(network, scale, metadata, what, size)


def _adapted(
    network: nn.Module,
    scale: int | None,
    metadata: WeightsMetadata | None,
    what: str,
    size: tuple[int, int] | None,
) -> SuperResolver:
    scale = scale or (metadata.scale if metadata else None) or found_scale(network)
    if scale is None:
        raise ValueError(
            f"{what} needs `scale`, because no weights file gives it, and it does not enlarge "
            "pictures 2 times or more by itself"
        )
    return adapt(network, scale, what, size)


def recorded_options(name: str, weights: str | Path | None) -> dict[str, Any]:
    """The options that a factory was given where the weights were trained."""
    metadata = read_metadata(weights) if weights is not None else None
    made_by = metadata.origin.get("student") if metadata else None
    if metadata is None or metadata.architecture is not None or not isinstance(made_by, str):
        return {}
    if made_by.rpartition(":")[2] != name.rpartition(":")[2]:
        return {}
    return named_options(metadata.factory_options, f"weights file {weights}: its student_options")
