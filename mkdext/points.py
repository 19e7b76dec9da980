"""`python -m mkdext.points`: the sub-modules of a network that can be distillation points."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from mkdext._cli.flags import parse_flags
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.plugins import named_options
from mkdext._system.terminal import text_table
from mkdext.models import (
    SuperResolver,
    default_points,
    is_from_elsewhere,
    load_own,
    load_recognised,
    make_from_elsewhere,
    resolve_student,
)
from mkdext.models.features import shown_name
from mkdext.models.handling import unwrapped
from mkdext.models.proposed_points import possible_points
from mkdext.models.user.spandrel import is_of_spandrel

_USUAL_SCALE = 4


@dataclasses.dataclass(frozen=True)
class PointsCommand:
    """Show which sub-modules of a network can be distillation points, and propose some.

    A point runs once and gives a map [C, height, width] for each image: a tensor, the first of
    several, or tokens. Those that are proposed are evenly spaced and differ: those that a network
    declares itself, or those of its equal parts that hold most of its parameters.
    """

    network: tyro.conf.Positional[str | None] = None
    """As --student of a training takes it; default: the network that the weights are of."""
    weights: Path | None = None
    """Weights that tell the network."""
    options: tuple[str, ...] = ()
    """Arguments of your factory, as name=value."""
    scale: int | None = None
    """Enlargement factor; default: the weights', or the one found by running the network, or 4."""
    count: int = 4
    """How many to propose."""
    size: int = 24
    """Width and height of the low-resolution image that the network is run on."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.network is None and self.weights is None:
            raise ValueError("name a network, or --weights FILE of one")
        if self.network is not None and self.weights is not None:
            raise ValueError("weights tell their network: leave --weights or the network out")
        for name in ("count", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table.

    Args:
        arguments: Flags; default: those of the process.

    Returns:
        The exit status: 2 for a network that cannot be used, or has no point.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse_flags(PointsCommand, arguments, prog="python -m mkdext.points")
        network = _network(command)
        points = possible_points(network, command.size)
        chosen = [shown_name(network, n) for n in default_points(network, command.count)]
        title = (
            f"{type(unwrapped(network)).__name__} x{network.scale}, image of "
            f"{command.size}x{command.size} pixels"
        )
        table = text_table(title, "sub-module", "class", "channels", "height", "width", "proposed")
        for point in points:
            sizes = map(str, (point.channels, point.height, point.width))
            table.add_row(point.name, point.kind, *sizes, "*" * (point.name in chosen))
        console.show(table)
        console.say(f"proposed: {' '.join(chosen)}")

    return exit_status("mkdext.points", run)


def _network(command: PointsCommand) -> SuperResolver:
    options = named_options(command.options, "`options`")
    if command.network is None:
        assert command.weights is not None
        return load_recognised(command.weights, command.scale)
    name, scale = command.network, command.scale
    if is_from_elsewhere(name) and not is_of_spandrel(name):
        if scale is None:
            return load_own(name, None, None, "network", options=options)
        return make_from_elsewhere(name, scale, "network", options)
    return resolve_student(name, scale or _USUAL_SCALE, options)


if __name__ == "__main__":
    sys.exit(main())
