"""One network at several scales."""

from __future__ import annotations

from collections.abc import Sequence

from mkdext.models.blocks import SuperResolver


def at_scales(network: SuperResolver, scales: Sequence[int], flag: str) -> dict[int, SuperResolver]:
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
        other = network.at_scale(scale)
        if other is None:
            raise ValueError(
                f"`scale` {' '.join(map(str, scales))}: the weights of {flag} "
                f"{type(network).__name__} serve for one scale; name one, or take a network that "
                "sharpens images enlarged before, such as vdsr"
            )
        networks[scale] = other
    return networks
