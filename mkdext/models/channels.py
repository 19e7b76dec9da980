"""Which channels the layers of a network have in common.

Channels of one *space* belong together in all layers that write or read them: those of the residual
stream, or those that a convolution inside of a block hands to the next one. A layer sees one space,
or several after one another, each in a *slot*. A slot is called as its space, and where a layer
sees the same space several times `SPACE:SOURCE`, after the module that the maps come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

STREAM = "stream"
"""The space of the residual stream."""
COLOURS = {"colours": 3}

Slots = Mapping[str, int]
"""Numbers of channels by slot, in order."""


class Channels(NamedTuple):
    """What a layer writes and reads.

    One before a pixel shuffle writes several numbers for each channel, next to each other.
    """

    writes: Slots
    reads: Slots


def of_pair(layer: str, channels: Channels, width: int) -> Channels:
    """What one of two layers has, called `PAIR.0` and `PAIR.2`, the first for the second alone.

    Args:
        layer: The name of one of them.
        channels: What the first one reads and the second one writes.
        width: Channels between them.

    Example:
        >>> stream = {STREAM: 16}
        >>> of_pair("body.0.body.2", Channels(stream, stream), width=8).reads
        {'body.0.body.0': 8}
    """
    between = {f"{layer.removesuffix('0').removesuffix('2')}0": width}
    if layer.endswith(".0"):
        return channels._replace(writes=between)
    return channels._replace(reads=between)


def space_of(slot: str) -> str:
    """The space in a slot."""
    return slot.partition(":")[0]
