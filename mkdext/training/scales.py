"""One network at several scales."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mkdext.models import VDSR, AdaptedNetwork


def at_scales(network: nn.Module, scales: Sequence[int], flag: str) -> dict[int, nn.Module]:
    """Networks of several scales that share the weights of one.

    Args:
        network: A network of the first scale.
        scales: Which.
        flag: Names the network in the error message.

    Raises:
        ValueError: The weights serve for one scale alone.

    Example:
        >>> from mkdext.models import create_model
        >>> networks = at_scales(create_model("vdsr-half", scale=2), [2, 3], "`student`")
        >>> networks[3].scale, networks[3].luma is networks[2].luma
        (3, True)
    """
    networks = {scales[0]: network}
    for scale in scales[1:]:
        if isinstance(network, VDSR):
            networks[scale] = other = VDSR(network.config, scale)
            other.luma = network.luma
        elif isinstance(network, AdaptedNetwork) and network.enlarged:
            networks[scale] = AdaptedNetwork(network.network, scale, network.channels, True)
        else:
            raise ValueError(
                f"`scale` {' '.join(map(str, scales))}: the weights of {flag} "
                f"{type(network).__name__} serve for one scale; name one, or take a network that "
                "sharpens images enlarged before, such as vdsr"
            )
    return networks
