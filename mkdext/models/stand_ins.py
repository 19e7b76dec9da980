"""A network is called with other tensors in the places of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *arguments: Any) -> Any:
    """Call a module while tensors stand in for its own, which are not changed.

    As `torch.func.functional_call`, which leaves the stand-in where a module has several names:
    blocks that are the same object, as recursive networks have them.

    Args:
        module: The network.
        tensors: Parameters and buffers by name; of tied ones any name stands for all. A buffer that
            the network replaces while it runs is not given back.
        arguments: Of its `forward`.

    Example:
        >>> import torch
        >>> block = nn.Linear(1, 1, bias=False)
        >>> twice = nn.Sequential(block, block)
        >>> call_with(twice, {"0.weight": torch.full((1, 1), 3.0)}, torch.ones(1))
        tensor([9.])
        >>> twice[1] is block and block.weight.shape == (1, 1)
        True
    """
    named = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    given = {id(own): tensors[name] for name, own in named if name in tensors}
    # Each place once: a module under its first name.
    places = {
        f"{prefix}.{name}" if prefix else name: given[id(own)]
        for prefix, part in module.named_modules()
        for name, own in chain(part._parameters.items(), part._buffers.items())
        if own is not None and id(own) in given
    }
    return functional_call(module, places, arguments, tie_weights=False)
