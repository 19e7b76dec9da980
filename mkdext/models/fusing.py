"""Networks that are trained with more branches than they run with.

ECBSR, SPAN, RepVGG and their like train several convolutions where they run one. How the branches
become one their own code knows. It is asked by the names that are agreed upon: `fuse()` or
`switch_to_deploy()`, of the network or of its layers; or layers that compute `eval_conv` by
`update_params()`, as SPAN's do.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from mkdext._system.plugins import error_in_words
from mkdext.models.blocks import SuperResolver
from mkdext.models.handling import evaluation_mode, unwrapped
from mkdext.models.user.adapted import PROBE, probe_image

_HOOKS = ("fuse", "switch_to_deploy")
_TOLERANCE = 1e-3  # of white, or of the largest number in the picture, by which folding may differ

_Network = TypeVar("_Network", bound=SuperResolver)


def fused(network: _Network, what: str) -> _Network:
    """A copy of a network whose branches are folded, in evaluation mode.

    Args:
        network: Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`; it is not changed.
        what: Names the network in error messages.

    Returns:
        The copy; the network itself where nothing is to fold.

    Raises:
        ValueError: Folding fails, or the folded network gives another picture.

    Example:
        >>> from mkdext.models import adapt
        >>> class Branches(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv, self.scale = nn.Conv2d(3, 3, 1), nn.Parameter(torch.ones(()))
        ...     def forward(self, x):
        ...         return self.conv(x) if self.scale is None else self.conv(x) * self.scale
        ...     def fuse(self):
        ...         self.conv.weight.data *= self.scale
        ...         self.conv.bias.data *= self.scale
        ...         self.scale = None
        >>> network = adapt(Branches(), 2, "`model`")
        >>> folded = fused(network, "`model`")
        >>> folded.network.scale is None, network.network.scale is None
        (True, False)
    """
    if not _is_foldable(unwrapped(network)):
        return network
    with torch.no_grad():
        try:
            folded = copy.deepcopy(network).eval()
            _fold(unwrapped(folded))
            before, after = (_picture(each) for each in (network, folded))
        except (Exception, SystemExit) as error:  # Whatever code of others may raise.
            raise ValueError(
                f"{what}: its branches cannot be folded for use: {error_in_words(error)}"
            ) from error
    difference = (before - after).abs().max() / max(1.0, float(before.abs().max()))
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"{what}: with its branches folded for use it gives another picture, by "
            f"{255 * float(difference):.2g} of 255 levels; look at its {_called(network)}"
        )
    return folded


def _picture(network: nn.Module) -> Tensor:
    like = next(network.parameters(), torch.empty(0))
    with evaluation_mode(network):
        picture: Tensor = network(probe_image(1, 3, like.device, PROBE))
    return picture


def _is_foldable(network: nn.Module) -> bool:
    return any(_hook(module) or _has_folded(module) for module in network.modules())


def _hook(module: nn.Module) -> str | None:
    """The name of the method by which a module folds its branches."""
    return next((name for name in _HOOKS if callable(getattr(module, name, None))), None)


def _has_folded(module: nn.Module) -> bool:
    has_layer = isinstance(getattr(module, "eval_conv", None), nn.Conv2d)
    return has_layer and callable(getattr(module, "update_params", None))


def _called(network: nn.Module) -> str:
    found = (_hook(module) for module in unwrapped(network).modules())
    return next((f"{name}()" for name in found if name), "update_params()")


def _fold(network: nn.Module) -> None:
    hook = _hook(network)
    if hook:  # A network that knows how folds its layers itself.
        getattr(network, hook)()
        return
    for name, part in list(network.named_children()):
        if _has_folded(part):
            setattr(network, name, _folded(part))
        else:
            _fold(part)


def _folded(layer: nn.Module) -> nn.Module:
    """The one convolution that a layer of branches runs, with what follows it."""
    layer.update_params()  # type: ignore[operator]
    convolution: nn.Module = layer.eval_conv  # type: ignore[assignment]
    if getattr(layer, "has_relu", False):
        return nn.Sequential(convolution, nn.LeakyReLU(0.05))
    return convolution
