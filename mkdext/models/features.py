"""Feature maps of any network, taken at named sub-modules: its distillation points."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mkdext.models.near_names import did_you_mean

_PROBE_SIZE = 16


def forward_with_features(
    model: nn.Module,
    points: Sequence[str],
    lr: Tensor,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Run a network and keep the outputs of some of its sub-modules.

    The feature maps are copies: an in-place operation that follows a point in the network changes
    neither their values nor their gradients. Everything is as often differentiable as the network.

    Args:
        model: The network. It is left as it was, also after an error.
        points: Names of sub-modules, as in `model.named_modules()`.
        lr: Input of the network, `[B, 3, h, w]`.
        parameters: Parameters or buffers by name that stand in for those of the network, which are
            not changed; gradients flow to these tensors. Names left out keep their own tensors.

    Returns:
        The output of the network and one feature map `[B, C, H, W]` for each point, in the order of
        `points`.

    Raises:
        ValueError: A point does not exist, does not run exactly once, or gives no `[B, C, H, W]`;
            or a name in `parameters` does not exist.

    Example:
        >>> from mkdext.models import create_model
        >>> model = create_model("rcan-a", scale=4)
        >>> lr = torch.rand(1, 3, 8, 8)
        >>> sr, features = forward_with_features(model, ["body.0", "body.3"], lr)
        >>> [list(feature.shape) for feature in features]
        [[1, 16, 8, 8], [1, 16, 8, 8]]
    """
    taps = [_Tap(name) for name in points]
    with contextlib.ExitStack() as hooks:
        for tap in taps:
            hooks.enter_context(_submodule(model, tap.name).register_forward_hook(tap))
        if parameters is None:
            sr: Tensor = model(lr)
        else:
            _check_parameter_names(model, parameters)
            sr = torch.func.functional_call(model, dict(parameters), (lr,))
    return sr, [tap.feature() for tap in taps]


def features_at(model: nn.Module, points: Sequence[str], lr: Tensor) -> list[Tensor]:
    """Feature maps alone: the network runs no further than its last point.

    Args:
        model: The network. It is left as it was, also after an error.
        points: Names of sub-modules that `check_points` accepts.
        lr: Input of the network, `[B, 3, h, w]`.

    Returns:
        One feature map `[B, C, H, W]` for each point, in the order of `points`.

    Example:
        >>> from mkdext.models import create_model
        >>> model = create_model("rcan-a", scale=4)
        >>> features_at(model, ["body.1"], torch.rand(1, 3, 8, 8))[0].shape
        torch.Size([1, 16, 8, 8])
    """
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            features[name] = output.clone()
            if len(features) == len(points):
                raise _LastPointPassed

        return hook

    with contextlib.ExitStack() as hooks, contextlib.suppress(_LastPointPassed):
        for name in points:
            hooks.enter_context(_submodule(model, name).register_forward_hook(keep(name)))
        model(lr)
    return [features[name] for name in points]


class _LastPointPassed(Exception):
    """Ends a forward pass of which the rest is not needed."""


def check_points(model: nn.Module, points: Sequence[str]) -> list[int]:
    """Check that feature maps can be taken at `points`, by running the network on a small image.

    The network is run in evaluation mode and left as it was.

    Returns:
        The number of channels of the feature map of each point.

    Raises:
        ValueError: There is no point, or one does not exist, does not run exactly once, or gives no
            `[B, C, H, W]`.

    Example:
        >>> from mkdext.models import create_model
        >>> check_points(create_model("rcan-a", scale=4), ["body.0", "body.3"])
        [16, 16]
    """
    if not points:
        raise ValueError("distillation points: at least one is needed, got none")
    like = next(model.parameters(), torch.empty(0))
    probe = torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, dtype=like.dtype, device=like.device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            _, features = forward_with_features(model, points, probe)
    finally:
        for module in training:
            module.training = True
    return [feature.shape[1] for feature in features]


def default_points(model: nn.Module, count: int = 4) -> list[str]:
    """Names of the `count` sub-modules that `model` itself declares as distillation points.

    A network declares them by a method `distillation_points(count)`, as the built-in ones do.

    Raises:
        ValueError: The network declares none, or not as many.

    Example:
        >>> from mkdext.models import create_model
        >>> default_points(create_model("rcan-b", scale=4), count=2)
        ['body.1', 'body.3']
    """
    declare = getattr(model, "distillation_points", None)
    if declare is None:
        raise ValueError(
            f"network {type(model).__name__} declares no distillation points; name {count} of its "
            f"sub-modules, for example {', '.join(_module_names(model)[:count])}"
        )
    return list(declare(count))


class _Tap:
    """Forward hook that keeps a copy of the output of the sub-module called `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._outputs: list[Any] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        # The copy is what a later in-place operation cannot reach.
        self._outputs.append(output.clone() if isinstance(output, Tensor) else output)

    def feature(self) -> Tensor:
        if len(self._outputs) != 1:
            raise ValueError(
                f"distillation point {self.name!r} must run once in a forward pass, "
                f"it ran {len(self._outputs)} times; name another sub-module"
            )
        (output,) = self._outputs
        if not isinstance(output, Tensor) or output.ndim != 4:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"distillation point {self.name!r} must give a tensor [B, C, H, W], got {got}; "
                "name another sub-module"
            )
        return output


def _submodule(model: nn.Module, name: str) -> nn.Module:
    with contextlib.suppress(AttributeError):
        if name:
            return model.get_submodule(name)
    names = _module_names(model)
    hint = did_you_mean(name, names) or f"; it has {', '.join(names[:8])}, ..."
    raise ValueError(
        f"distillation point {name!r} is no sub-module of {type(model).__name__}{hint}"
    )


def _module_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _check_parameter_names(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    # functional_call would ignore an unknown name.
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
