"""A network that begins with the weights of a file: all, or those that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from mkdext.models.blocks import SRNetwork, counterpart
from mkdext.models.registry import recognise
from mkdext.models.weights.files import (
    causes_of_misfit,
    load_one_of,
    own_form,
    states_in,
    states_of,
    tensors_of,
)
from mkdext.models.weights.state_dicts import StateDict, plainly_named, preferred
from mkdext.models.weights.strict_loading import completed, fits, listing, load_strictly


def begin_with(model: nn.Module, path: str | Path) -> list[str]:
    """Copy the weights of a file into a network, as far as they fit by name and shape.

    What follows the equal parts of a body is found where the file has another number of parts.
    What does not fit stays as it is in the network.

    Args:
        model: The network; one of this package also takes weights of other code bases that
            `load_model` understands.
        path: A file that `read_weights` can read.

    Returns:
        What was taken and what not, in lines.

    Raises:
        ValueError: The file cannot be read, is of another architecture, or nothing in it fits but
            numbers by channel; or what fits is NaN or infinite. The network is not changed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from mkdext.models import create_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(create_model("rcan-a", scale=2).state_dict(), f"{folder}/x2.pt")
        ...     lines = begin_with(create_model("rcan-a", scale=4), f"{folder}/x2.pt")
        >>> print(*lines[1:])
        left as they were, not in the file: tail.0.2.weight, tail.0.2.bias
    """
    states, own = states_in(path), model.state_dict()
    begins = f"the student begins with weights of {path}"
    try:
        load_one_of(model, states)
    except ValueError:
        pass
    else:
        return [f"{begins}: all {len(own)} tensors"]
    try:
        fit = _best(model, [*states_of(model, states)] or [plainly_named(states[0])])
        _require_weights(model, fit)
        merged = model.state_dict()
        merged.update(fit.taken)
        load_strictly(model, merged, list, buffers_finite=isinstance(model, SRNetwork))
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None
    sizes = {name: tensor.numel() for name, tensor in tensors_of(own).items()}
    share = sum(sizes[name] for name in fit.taken) / sum(sizes.values())
    left = {
        "left as they were, not in the file": [name for name in own if name not in fit.found],
        "left as they were, of another shape in the file": [
            name for name in own if name in fit.found and name not in fit.taken
        ],
        "in the file and not taken": fit.unknown,
    }
    return [
        f"{begins}: {len(fit.taken)} of its {len(own)} tensors, {share:.0%} of its numbers",
        *(f"{what}: {listing(names)}" for what, names in left.items() if names),
    ]


class _Fit(NamedTuple):
    """Weights beside those of a network."""

    state: StateDict
    found: Mapping[str, Any]
    """By the network's names."""
    taken: Mapping[str, Any]
    """Those that fit."""
    unknown: Sequence[str]
    """Names of which the network has none."""


def _best(model: nn.Module, states: Sequence[StateDict]) -> _Fit:
    """The state dict of which most fits."""
    fitting = [_fit(model, state) for state in states]
    most = max(len(fit.taken) for fit in fitting)
    best = [fit for fit in fitting if len(fit.taken) == most]
    chosen = preferred([fit.state for fit in best])
    return next(fit for fit in best if fit.state is chosen)


def _fit(model: nn.Module, state: StateDict) -> _Fit:
    own = model.state_dict()
    weights = completed(model, own_form(type(model), state.weights))
    names = {name: name for name in own}
    if isinstance(model, SRNetwork):
        known = recognise(tensors_of(weights))
        if known and known.network is type(model):
            names = {n: counterpart(model, known.config, n, spaced=False) for n in own}
    found = {name: weights[theirs] for name, theirs in names.items() if theirs in weights}
    taken = {name: tensor for name, tensor in found.items() if fits(own[name], tensor)}
    seen = {names[name] for name in found}
    return _Fit(state, found, taken, [name for name in weights if name not in seen])


def _require_weights(model: nn.Module, fit: _Fit) -> None:
    """Check that weights are of the network and fit.

    One number for each channel fits in many networks, and tells nothing.

    Raises:
        ValueError: They are of another network, or none fits.
    """
    weights = own_form(type(model), fit.state.weights)
    known = recognise(tensors_of(weights)) if isinstance(model, SRNetwork) else None
    is_other = known is not None and known.network is not type(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if is_other or not any(parameters[n].ndim > 1 for n in fit.taken if n in parameters):
        causes = "; ".join(causes_of_misfit(model, weights)) or f"it holds {listing([*weights])}"
        raise ValueError(
            f"nothing can be taken of it by {type(model).__name__}: {causes}; give weights of this "
            "network, of any size in part, or leave `student_weights` out"
        )
