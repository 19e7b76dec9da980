"""Feature maps of any network, taken at named sub-modules: its distillation points."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext._system.near_names import did_you_mean
from mkdext._system.plugins import error_in_words
from mkdext.models.handling import evaluation_mode, unwrapped
from mkdext.models.maps import map_in, size_inside
from mkdext.models.proposed_points import proposed_points
from mkdext.models.stand_ins import call_with

WHOLE = ""
"""The distillation point whose feature map is what the network gives, the enlarged picture."""

_PROBE_SIZE = 16
_HELD = "network."  # what an AdaptedNetwork puts before the names of the user's


class PointError(ValueError):
    """A distillation point does not exist, or gives no feature map."""


class MapShape(NamedTuple):
    """Shape of a feature map of one image."""

    channels: int
    height: int
    width: int


def forward_with_features(
    model: nn.Module,
    points: Sequence[str],
    low: Tensor,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Run a network and keep the outputs of some of its sub-modules.

    Of an output of several tensors the first is kept; tokens `[B, h*w, C]` become a map.

    The feature maps are copies: an in-place operation that follows a point in the network changes
    neither their values nor their gradients. Everything is as often differentiable as the network.

    Args:
        model: The network. It is left as it was, also after an error.
        points: Names of sub-modules, as in `model.named_modules()`.
        low: Input of the network, `[B, 3, h, w]`.
        parameters: Parameters or buffers by name that stand in for those of the network, which are
            not changed; gradients flow to these tensors. Names left out keep their own tensors.

    Returns:
        The output of the network and one feature map `[B, C, H, W]` for each point, in the order of
        `points`.

    Raises:
        PointError: A point does not exist, does not run exactly once, or gives no `[B, C, H, W]`.
        ValueError: A name in `parameters` does not exist.

    Example:
        >>> from mkdext.models import create_model
        >>> model = create_model("rcan-a", scale=4)
        >>> low = torch.rand(1, 3, 8, 8)
        >>> sr, features = forward_with_features(model, ["body.0", "body.3"], low)
        >>> [list(feature.shape) for feature in features]
        [[1, 16, 8, 8], [1, 16, 8, 8]]
    """
    size = size_inside(model, low)
    taps = [_Tap(name, shown_name(model, name), size) for name in points]
    with contextlib.ExitStack() as hooks:
        for tap in taps:
            hooks.enter_context(_submodule(model, tap.name).register_forward_hook(tap))
        if parameters is None:
            sr: Tensor = model(low)
        else:
            _check_parameter_names(model, parameters)
            sr = call_with(model, parameters, low)
    return sr, [tap.feature() for tap in taps]


def features_at(model: nn.Module, points: Sequence[str], low: Tensor) -> list[Tensor]:
    """Feature maps alone: the network runs no further than its last point.

    Args:
        model: The network. It is left as it was, also after an error.
        points: Names of sub-modules that `check_points` accepts.
        low: Input of the network, `[B, 3, h, w]`.

    Returns:
        One contiguous feature map `[B, C, H, W]` for each point, in the order of `points`.

    Example:
        >>> from mkdext.models import create_model
        >>> model = create_model("rcan-a", scale=4)
        >>> features_at(model, ["body.1"], torch.rand(1, 3, 8, 8))[0].shape
        torch.Size([1, 16, 8, 8])
    """
    features: dict[str, Tensor] = {}
    size = size_inside(model, low)

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # The copy is what a later in-place operation cannot reach, in the operators' layout.
            feature = map_in(output, size)
            assert feature is not None, f"{name!r} is no point that `check_points` accepts"
            features[name] = feature.clone(memory_format=torch.contiguous_format)
            if len(features) == len(points):
                raise _LastPointPassed

        return hook

    with contextlib.ExitStack() as hooks, contextlib.suppress(_LastPointPassed):
        for name in points:
            hooks.enter_context(_submodule(model, name).register_forward_hook(keep(name)))
        model(low)
    # A network that runs in inference mode gives what no gradient can be taken beside.
    return [f.clone() if f.is_inference() else f for f in (features[name] for name in points)]


class _LastPointPassed(Exception):
    """Ends a forward pass of which the rest is not needed."""


def check_points(
    model: nn.Module, points: Sequence[str], size: int = _PROBE_SIZE
) -> list[MapShape]:
    """Check that feature maps can be taken at `points`, by running the network on a black image.

    The network is run in evaluation mode and left as it was.

    Args:
        model: The network.
        points: Names of sub-modules.
        size: Width and height of the image.

    Returns:
        The shape of the feature map of each point.

    Raises:
        ValueError: There is no point, or one does not exist, does not run exactly once, or gives no
            `[B, C, H, W]`; or the network fails on such an image.

    Example:
        >>> from mkdext.models import create_model
        >>> check_points(create_model("rcan-a", scale=4), ["body.0", "tail.0"])
        [MapShape(channels=16, height=16, width=16), MapShape(channels=16, height=64, width=64)]
    """
    if not points:
        raise ValueError("distillation points: at least one is needed, got none")
    like = next(model.parameters(), torch.empty(0))
    # Two images, to notice a map that cuts each into several.
    probe = torch.zeros(2, 3, size, size, dtype=like.dtype, device=like.device)
    with evaluation_mode(model), torch.no_grad():
        try:
            _, features = forward_with_features(model, points, probe)
        except PointError:
            raise
        except (Exception, SystemExit) as error:  # Whatever code of others may raise.
            raise ValueError(
                f"{type(unwrapped(model)).__name__} fails on images {list(probe.shape)}: "
                f"{error_in_words(error)}"
            ) from error
    for name, feature in zip(points, features, strict=True):
        if len(feature) != len(probe):
            raise ValueError(
                f"distillation point {shown_name(model, name)!r} must give one map for each image, "
                f"got {list(feature.shape)} for {len(probe)}; name another sub-module"
            )
    return [MapShape(*feature.shape[1:]) for feature in features]


def select_points(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the sub-modules that `patterns` mean.

    Args:
        model: The network; of an `AdaptedNetwork` the names are those of the user's network in it.
        patterns: Names; `*`, `?` and `[...]` stand for characters other than dots, and what such a
            pattern finds comes in the order of the network.

    Raises:
        ValueError: A pattern finds nothing; near names are given.

    Example:
        >>> from mkdext.models import create_model
        >>> select_points(create_model("rcan-a", scale=4), ["body.[12]", "tail.1"])
        ['body.1', 'body.2', 'tail.1']
    """
    network = unwrapped(model)
    names = _module_names(network)
    selected: list[str] = []
    for pattern in patterns:
        found = [name for name in names if pattern_matches(name, pattern)]
        if not found:
            raise _no_submodule(network, pattern)
        selected += [name for name in found if name not in selected]
    return _names_in(model, selected)


def resized(maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Feature maps brought to given sizes, so that a method can compare two networks.

    Bilinear interpolation whose filter is as wide as a pixel of the smaller map: reducing averages,
    enlarging interpolates, and a map that has its size is returned as it is.

    Args:
        maps: `[B, C, h, w]` each.
        sizes: Height and width of each.

    Example:
        >>> resized([torch.rand(1, 8, 6, 6)], [(24, 24)])[0].shape
        torch.Size([1, 8, 24, 24])
    """
    return [
        feature
        if feature.shape[-2:] == size
        else functional.interpolate(feature, size, mode="bilinear", antialias=True)
        for feature, size in zip(maps, sizes, strict=True)
    ]


def default_points(model: nn.Module, count: int = 4) -> list[str]:
    """Names of `count` sub-modules that are good distillation points.

    A network declares them by a method `distillation_points(count)`, as the built-in ones do; for
    one that does not they are found by running it, fewer where it has not as many.

    Raises:
        ValueError: The network declares not as many, or none can be found.

    Example:
        >>> from mkdext.models import create_model
        >>> default_points(create_model("rcan-b", scale=4), count=2)
        ['body.1', 'body.3']
    """
    declare = getattr(unwrapped(model), "distillation_points", None)
    return _names_in(model, declare(count) if declare else proposed_points(model, count))


def shown_name(model: nn.Module, name: str) -> str:
    """The name of a sub-module as the user knows it, who made what an `AdaptedNetwork` holds."""
    return name if unwrapped(model) is model else name.removeprefix(_HELD)


class _Tap:
    """Forward hook that keeps a copy of the output of the sub-module called `name`."""

    def __init__(self, name: str, shown: str, image_size: tuple[int, int]) -> None:
        self.name = name
        self._shown = shown
        self._image_size = image_size
        self._outputs: list[Any] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        feature = map_in(output, self._image_size)
        # The copy is what a later in-place operation cannot reach.
        self._outputs.append(output if feature is None else feature.clone())

    def feature(self) -> Tensor:
        if len(self._outputs) != 1:
            raise PointError(
                f"distillation point {self._shown!r} must run once in a forward pass, "
                f"it ran {len(self._outputs)} times; name another sub-module"
            )
        (output,) = self._outputs
        if not isinstance(output, Tensor) or output.ndim != 4:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise PointError(
                f"distillation point {self._shown!r} must give a tensor [B, C, H, W], or tokens "
                f"[B, H*W, C], got {got}; name another sub-module"
            )
        return output


def _submodule(model: nn.Module, name: str) -> nn.Module:
    with contextlib.suppress(AttributeError):
        return model.get_submodule(name)
    raise _no_submodule(model, name)


def _no_submodule(model: nn.Module, name: str) -> PointError:
    return PointError(
        f"distillation point {name!r} is not a sub-module of {type(model).__name__}"
        f"{near_names(name, _module_names(model))}"
    )


def near_names(pattern: str, names: Sequence[str]) -> str:
    """Names that may be meant by a pattern that finds none, to be put at the end of an error."""
    patterns = {re.sub(r"(?<![^.])\d+(?![^.])", "*", known): None for known in names}
    hint = did_you_mean(pattern, patterns if "*" in pattern else names)
    return hint or f"; it has {', '.join(names[:8]) + ', ...' if names else 'none'}"


def pattern_matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a name; stars stand for characters other than dots."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _names_in(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Names of the user's network as those of `model`, which may hold it."""
    prefix = "" if unwrapped(model) is model else _HELD
    return [prefix + name for name in names]


def _module_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _check_parameter_names(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    # Else an unknown name would be ignored.
    owned = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    known = {name for name, _ in owned}
    for name in parameters:
        if name not in known:
            raise ValueError(
                f"forward_with_features: parameters has {name!r}, which {type(model).__name__} "
                f"has not{did_you_mean(name, known)}"
            )
