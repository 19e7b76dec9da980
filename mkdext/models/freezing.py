"""Parts of a network that are not trained, by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mkdext.models.blocks import is_within
from mkdext.models.features import near_names, pattern_matches
from mkdext.models.handling import unwrapped


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let parameters take no gradient.

    Args:
        model: The network; of an `AdaptedNetwork` the names are those of the user's network in it.
        patterns: Names of parameters, or of sub-modules for all parameters in them; `*`, `?` and
            `[...]` stand for characters other than dots.

    Returns:
        The names of all parameters that take no gradient.

    Raises:
        ValueError: A pattern finds nothing, near names are given; or nothing is left to train. The
            network is not changed.

    Example:
        >>> from mkdext.models import create_model
        >>> freeze(create_model("edsr-s", scale=2), ["head", "body.*.body.0.bias"])[:3]
        ['head.0.weight', 'head.0.bias', 'body.0.body.0.bias']
    """
    network = unwrapped(model)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    modules = [name for name, module in network.named_modules() if name and [*module.parameters()]]
    names, meant = [*modules, *parameters], set[str]()
    for pattern in patterns:
        found = [name for name in names if pattern_matches(name, pattern)]
        if not found:
            raise ValueError(
                f"`freeze` {pattern} is neither a parameter of {type(network).__name__} nor a "
                f"sub-module that has some{near_names(pattern, names)}"
            )
        meant.update(found)
    frozen = [
        name
        for name, parameter in parameters.items()
        if not parameter.requires_grad or any(is_within(name, part) for part in meant)
    ]
    if len(frozen) == len(parameters):
        raise ValueError(
            f"`freeze` {' '.join(patterns)} leaves nothing of {type(network).__name__} to train; "
            "freeze less"
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen
