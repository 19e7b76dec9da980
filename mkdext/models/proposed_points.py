"""Distillation points for a network that names none, found by running it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mkdext._system.plugins import error_in_words
from mkdext.models.blocks import evenly_spaced
from mkdext.models.handling import count_parameters, evaluation_mode, unwrapped
from mkdext.models.maps import map_in, size_inside
from mkdext.models.user.adapted import probe_image

_SIDE = 24  # of the images that tell
_BODY = 0.05  # of the parameters that equal parts in a row have at least, to be taken for the body


class PointMap(NamedTuple):
    """A sub-module that can be a distillation point."""

    name: str
    """In the network as its author knows it."""
    kind: str
    """Its class."""
    channels: int
    height: int
    width: int
    parameters: int
    signature: tuple[float, float]
    """Of its map; those that are equal have the same."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its map."""
        return self.height, self.width


def possible_points(model: nn.Module, side: int = _SIDE) -> list[PointMap]:
    """The sub-modules that run once and give one map `[B, C, h, w]` for each image.

    They come in the order in which they end.

    Args:
        model: Maps `[B, 3, h, w]` to an image; it is run in evaluation mode and left as it was.
        side: Width and height of the images that it is given.

    Raises:
        ValueError: It fails on them.

    Example:
        >>> from mkdext.models import create_model
        >>> points = possible_points(create_model("edsr-s", scale=4))
        >>> [(p.name, p.channels) for p in points if p.name in ("body.1", "tail.0.1", "tail.1")]
        [('body.1', 16), ('tail.0.1', 16), ('tail.1', 3)]
    """
    network = unwrapped(model)
    like = next(model.parameters(), torch.empty(0))
    images = probe_image(2, 3, like.device, (side, side))
    inside = size_inside(model, images)
    runs: Counter[str] = Counter()
    found: dict[str, PointMap] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: object, output: object) -> None:
            runs[name] += 1
            feature = map_in(output, inside)
            if feature is not None and _is_of_images(feature):
                found[name] = _point(name, module, feature)

        return hook

    hooks = [
        module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(images)
    except (Exception, SystemExit) as error:  # Whatever code of others may raise.
        raise ValueError(
            f"{type(network).__name__} fails on images {list(images.shape)}: "
            f"{error_in_words(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return [point for name, point in found.items() if runs[name] == 1]


def proposed_points(model: nn.Module, count: int) -> list[str]:
    """Names of `count` evenly spaced sub-modules whose maps differ, fewer if there are not as many.

    They are of the equal parts that hold most of the network's parameters, such as `body.*` or
    `layers.*.blocks.*`, if there are such; otherwise of all sub-modules whose maps are of the most
    frequent size.

    Raises:
        ValueError: There is none, or the network fails.

    Example:
        >>> proposed_points(nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(8))), 4)
        ['1', '3', '5', '7']
    """
    return of_possible(model, possible_points(model), count)


def of_possible(model: nn.Module, points: Sequence[PointMap], count: int) -> list[str]:
    """The same of what `possible_points` gives."""
    network = unwrapped(model)
    sizes = Counter(point.size for point in points if point.parameters)
    frequent = sizes.most_common(1)[0][0] if sizes else None
    trained = [point for point in points if point.parameters and point.size == frequent]
    rows: dict[object, list[PointMap]] = {}
    for point in trained:
        row = re.sub(r"\d+", "*", point.name), point.kind, point.channels
        rows.setdefault(row, []).append(point)
    bodies = [differing for row in rows.values() if len(differing := _differing(row)) >= count]

    def weight(row: Sequence[PointMap]) -> tuple[int, int]:
        return sum(point.parameters for point in row), -row[0].name.count(".")

    chosen = max(bodies, key=weight, default=[])
    if not chosen or weight(chosen)[0] < _BODY * count_parameters(network):
        chosen = _differing(trained)
    if not chosen:
        raise ValueError(
            f"no sub-module of {type(network).__name__} gives one map [B, C, h, w] for each image; "
            "compare the pictures alone, by `method` response"
        )
    count = min(count, len(chosen))
    return [chosen[index].name for index in evenly_spaced(count, len(chosen))]


def _differing(points: Sequence[PointMap]) -> list[PointMap]:
    """Those whose map is not that of one before, which they only pass on."""
    maps = {(point.size, point.channels, point.signature): point for point in reversed(points)}
    return [point for point in points if point in maps.values()]


def _is_of_images(feature: Tensor) -> bool:
    return len(feature) == 2 and min(feature.shape[2:]) > 1


def _point(name: str, module: nn.Module, feature: Tensor) -> PointMap:
    numbers = feature.detach().double()
    signature = numbers.sum().item(), numbers.square().sum().item()
    channels, height, width = feature.shape[1:]
    parameters = count_parameters(module)
    return PointMap(name, type(module).__name__, channels, height, width, parameters, signature)
