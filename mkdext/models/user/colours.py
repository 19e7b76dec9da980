"""Which colours a trained network takes, found by what it makes of photographs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mkdext.data import ImagePairs, builtin_photographs, imresize
from mkdext.metrics import psnr_y, to_uint8
from mkdext.models.blocks import SuperResolver
from mkdext.models.handling import evaluation_mode
from mkdext.models.user.adapted import AdaptedNetwork
from mkdext.models.user.interface import COLOURS, IN_WORDS, ColoursName

Crops = Sequence[tuple[Tensor, Tensor]]
"""Cuttings `(low, high)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`."""

_SIDE = 48  # of a cutting, in low-resolution pixels
_COUNT = 3  # photographs of a set that are looked at
_EXACT = 60.0  # dB; where bicubic reaches that, nothing can be told
_CLEARLY = 0.5  # dB by which other colours cannot be better by chance
_TRAINED = 3.0  # dB below bicubic that a trained network is at most; one by a GAN is below it


class FoundColours(NamedTuple):
    """A network with the colours that suit it best."""

    network: SuperResolver
    remark: str | None
    """What to tell of them; none: they are the usual ones."""


def with_found_colours(network: SuperResolver, whose: str) -> FoundColours:
    """A user's network, taken for one of the colours with which it enlarges photographs best.

    The usual ones, red, green and blue from 0 to 1, are left only where others are clearly better
    and come near to bicubic enlargement or above it: a network with random weights stays as it is.

    Args:
        network: What `adapt` gives, trained; one of this package stays as it is.
        whose: Names the network in the remark.

    Example:
        >>> from torch import nn
        >>> from mkdext.models import adapt, builtin_teacher
        >>> class Levels(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = builtin_teacher()
        ...     def forward(self, x):
        ...         return self.net(x / 255) * 255
        >>> with_found_colours(adapt(Levels(), 4, "`teacher`"), "teacher").remark[:43]
        'teacher Levels takes colours from 0 to 255 '
    """
    if not isinstance(network, AdaptedNetwork):
        return FoundColours(network, None)
    photographs = ImagePairs(builtin_photographs("validation"), network.scale)
    crops = informative(photographs, network.scale)
    least = psnr_of(lambda low: imresize(low, network.scale), crops, network.scale)
    usual = _reached(network, crops)
    names = [name for name in COLOURS if _can_be(name, network)]
    reached = {name: _reached(network.with_colours(COLOURS[name]), crops) for name in names}
    best = max(reached, key=reached.__getitem__)
    if reached[best] < max(usual + _CLEARLY, least - _TRAINED):
        return FoundColours(network, None)
    kind = type(network.unwrapped).__name__
    remark = (
        f"{whose} {kind} takes {IN_WORDS[best]} ({reached[best]:.1f} dB on photographs, otherwise "
        f"{usual:.1f})"
    )
    return FoundColours(network.with_colours(COLOURS[best]), remark)


def in_colours(network: SuperResolver, name: ColoursName, flag: str) -> SuperResolver:
    """A user's network, taken for one of the colours that are named.

    Raises:
        ValueError: It is one of this package, whose colours are known, or one of Y.
    """
    if not isinstance(network, AdaptedNetwork):
        if name == 1:
            return network
        raise ValueError(
            f"{flag} {name}: {type(network).__name__} is a network of this package, which takes "
            f"{IN_WORDS[1]}; leave {flag} out"
        )
    if not _can_be(name, network):
        raise ValueError(f"{flag} {name}: {type(network.unwrapped).__name__} takes Y alone")
    return network.with_colours(COLOURS[name])


def _can_be(name: ColoursName, network: AdaptedNetwork) -> bool:
    colours = COLOURS[name]
    return network.interface.channels == 3 or not (colours.is_bgr or len(set(colours.less)) > 1)


def informative(pairs: Crops, scale: int) -> Crops:
    """The middles of the first photographs that bicubic does not meet exactly.

    Args:
        pairs: Photographs, as the cuttings are.
        scale: Enlargement factor.
    """
    crops: list[tuple[Tensor, Tensor]] = []
    for index in range(len(pairs)):
        crop = _middle(*pairs[index], scale)
        if psnr_of(lambda low: imresize(low, scale), [crop], scale) < _EXACT:
            crops.append(crop)
        if len(crops) == _COUNT:
            break
    return crops


@torch.no_grad()
def psnr_of(upscale: Callable[[Tensor], Tensor], crops: Crops, scale: int) -> float:
    """PSNR-Y of all cuttings together, so that one that is met exactly does not count for all."""
    values = []
    for low, high in crops:
        sr = upscale(low[None].float() / 255)[0].cpu()
        values.append(psnr_y(to_uint8(sr), high, scale) if sr.isfinite().all() else -math.inf)
    return _pooled(values)


def _reached(network: SuperResolver, crops: Crops) -> float:
    like = next(network.parameters(), torch.empty(0))
    # Code of others may raise anything on other colours.
    with contextlib.suppress(Exception), evaluation_mode(network):
        return psnr_of(lambda low: network(low.to(like.device)), crops, network.scale)
    return -math.inf


def _middle(low: Tensor, high: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    height, width = (min(side, _SIDE) for side in low.shape[1:])
    top, left = (low.shape[1] - height) // 2, (low.shape[2] - width) // 2
    rows, columns = slice(top * scale, (top + height) * scale), slice(left, left + width)
    return (
        low[:, top : top + height, columns],
        high[:, rows, left * scale : (left + width) * scale],
    )


def _pooled(values: Iterable[float]) -> float:
    errors = [10 ** (-value / 10) for value in values]
    mean = sum(errors) / len(errors)
    return -10 * math.log10(mean) if mean else math.inf
