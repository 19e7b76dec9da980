"""Trial runs: whether a user's network can be trained, or trained through, before it is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.plugins import error_in_words
from mkdext.models.features import forward_with_features, shown_name
from mkdext.models.handling import evaluation_mode, unwrapped
from mkdext.models.user.adapted import PROBE, AdaptedNetwork, probe_image

_REENTRANT = ("use_reentrant=True", "Checkpointing is not compatible with")


def check_has_parameters(student: nn.Module) -> None:
    """Check that there is something to train.

    Raises:
        ValueError: There is no parameter, or all are frozen.
    """
    parameters = list(student.parameters())
    if not any(p.requires_grad for p in parameters):
        frozen = f"; all its {len(parameters)} are frozen by requires_grad=False"
        raise ValueError(f"{_called(student)} has no parameter to train{frozen * bool(parameters)}")


def check_trains(
    student: nn.Module, points: Sequence[str], twice: bool, size: tuple[int, int] = PROBE
) -> None:
    """Check that a step of training can be taken through a student, by computing one.

    It is run as it is, in its own mode and layout, and left as it was.

    Args:
        student: Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`; it has something to train.
        points: Its distillation points.
        twice: Whether the meta-gradient is to be taken through it as well.
        size: Height and width of the images of a step.

    Raises:
        ValueError: It fails, gives no number that depends on its parameters, or has an operator
            without the derivatives that are needed.
    """
    what = _called(student)
    parameters = [p for p in student.parameters() if p.requires_grad]
    with _undone(student):
        image = probe_image(2, 3, parameters[0].device, size)
        try:
            sr, maps = forward_with_features(student, points, image)
        except (Exception, SystemExit) as error:  # Whatever code of others may raise.
            raise ValueError(
                f"{what} fails in training mode on images {list(image.shape)}: "
                f"{error_in_words(error)}"
            ) from error
        _check_result(sr, image, what)
        try:
            first = torch.autograd.grad(
                sr.square().mean(),
                parameters,
                create_graph=twice,
                materialize_grads=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            raise ValueError(_not_differentiable(what, error)) from error
        for name, feature in zip(points, maps, strict=True):
            if not feature.requires_grad:
                raise ValueError(
                    f"{what}: nothing that is trained comes before distillation point "
                    f"{shown_name(student, name)!r}, all parameters there are frozen; name a later "
                    "one"
                )
        if not all(gradient.isfinite().all() for gradient in first):
            raise ValueError(f"{what} has a gradient of NaN or infinite numbers on a trial image")
        if twice:
            _check_second(first, what)


def _called(student: nn.Module) -> str:
    return f"student {type(unwrapped(student)).__name__}"


def _check_result(sr: object, image: Tensor, what: str) -> None:
    if not isinstance(sr, Tensor) or not sr.is_floating_point():
        got = sr.dtype if isinstance(sr, Tensor) else type(sr).__name__
        raise ValueError(f"{what} must give a tensor of floating point in training mode, got {got}")
    if sr.ndim != 4 or sr.shape[:2] != image.shape[:2]:
        raise ValueError(
            f"{what} must give [2, 3, scale*h, scale*w] for images {list(image.shape)} in training "
            f"mode, got {list(sr.shape)}"
        )
    if not sr.requires_grad:
        raise ValueError(
            f"{what} cannot be trained: its result is computed without a gradient, by "
            "torch.no_grad, detach or rounding"
        )
    if not sr.isfinite().all():
        raise ValueError(f"{what} gives NaN or infinite numbers in training mode")


def _check_second(first: tuple[Tensor, ...], what: str) -> None:
    size = torch.stack([gradient.square().sum() for gradient in first]).sum()
    try:
        # Not torch.autograd.grad: it passes by a function that is differentiable once only, and
        # gives a part of the second derivative without a word.
        torch.autograd.backward(size)
    except RuntimeError as error:
        raise ValueError(
            f"{what} cannot be differentiated twice, which the meta-gradient needs: "
            f"{error_in_words(error)}"
        ) from error


def _not_differentiable(what: str, error: RuntimeError) -> str:
    if any(part in str(error) for part in _REENTRANT):
        return (
            f"{what} uses reentrant checkpointing, through which no gradient of chosen tensors can "
            "be taken; give torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    return f"{what} cannot be differentiated: {error_in_words(error)}"


def check_passes_gradient(network: nn.Module, whose: str, trained: str) -> None:
    """Check that a network can be differentiated with respect to its image.

    Args:
        network: The network; it is left as it was.
        whose: What it is, as in "student".
        trained: What is to be trained through it, as in "an encoder".

    Raises:
        ValueError: It cannot, or no gradient arrives.
    """
    # In an AdaptedNetwork a gradient passes beside the user's network, too.
    inner = unwrapped(network)
    channels, run = 3, inner.__call__
    if isinstance(network, AdaptedNetwork):
        interface, scale = network.interface, network.scale
        channels = interface.channels
        run = functools.partial(interface.run, inner, scale=scale)
    like = next(inner.parameters(), torch.empty(0))
    image = probe_image(1, channels, like.device).requires_grad_()
    reason = "no gradient arrives"
    with _undone(inner), evaluation_mode(inner):
        with torch.no_grad():
            for tensor in inner.parameters():
                tensor.add_(0.01)  # Weights that are zero at first would let nothing pass.
        try:
            sr = run(image)
            (gradient,) = torch.autograd.grad(sr.square().mean(), image, allow_unused=True)
        except (Exception, SystemExit) as error:
            gradient, reason = None, error_in_words(error)
    if gradient is None or not gradient.any():
        raise ValueError(
            f"{whose} {type(inner).__name__} must pass a gradient to its image, for {trained} to "
            f"be trained through it, and not detach or round it: {reason}"
        )


@contextlib.contextmanager
def _undone(network: nn.Module) -> Iterator[None]:
    """Undo what happens to the numbers of a network, and to those of torch's random generators."""
    kept = []
    for module in network.modules():
        owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in owners:
            for name, tensor in tensors.items():
                if tensor is not None:
                    # Code of others may put other memory into its place, or another tensor.
                    kept.append((tensors, name, tensor, tensor.data, tensor.detach().clone()))
    devices = {tensor.device.index for *_, tensor in kept if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=[index for index in devices if index is not None]):
            yield
    finally:
        with torch.no_grad():
            for tensors, name, tensor, memory, numbers in kept:
                tensor.data = memory
                tensor.copy_(numbers)
                tensor.grad = None
                tensors[name] = tensor
