"""How networks are moved, copied and put into modes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from mkdext._system.plugins import error_in_words
from mkdext.metrics.losses import Loss, over_luma
from mkdext.models.blocks import SuperResolver

_Network = TypeVar("_Network", bound=nn.Module)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(p.numel() for p in model.parameters())


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's network in an `AdaptedNetwork`; any other network itself."""
    return model.unwrapped if isinstance(model, SuperResolver) else model


def layout(model: nn.Module) -> torch.memory_format:
    """The layout of images and weights in which a network runs best of those that it can run in."""
    return model.layout if isinstance(model, SuperResolver) else torch.contiguous_format


def loss_of(model: nn.Module, loss: Loss) -> Loss:
    """A loss as it is taken of a network's pictures: over Y where the network changes Y alone.

    It is the network that is judged whose kind decides, whatever its teacher is: a student of Y can
    not follow a teacher's colours, and one of colours must learn those of a teacher of Y too, which
    are bicubic's.
    """
    alone = isinstance(model, SuperResolver) and model.changes_luma_alone
    return over_luma(loss) if alone else loss


def placed(model: _Network, device: torch.device) -> _Network:
    """A network moved to a device, in its layout."""
    moved: _Network = model.to(device).to(memory_format=layout(model))  # type: ignore[call-overload]
    return moved


def set_training_mode(student: nn.Module) -> None:
    """Put a network into training mode if all of it is in evaluation mode.

    One that is in training mode in part was made so: its frozen parts stay as they are.
    """
    network = unwrapped(student)
    if not any(module.training for module in network.modules()):
        network.train()
    student.training = network.training


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every sub-module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # Some change their weights when they are told, as adapters that are merged do.
        model.train(modes[0][1])
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every sub-module has the mode that it had."""
    with modes_kept(model):
        model.eval()
        yield


def copy_with_tensors(model: _Network, change: Callable[[Tensor], Tensor]) -> _Network:
    """A copy of a network whose parameters and buffers are what `change` makes of its own.

    With the identity the copy shares them, and has hooks and modes of its own.

    Raises:
        ValueError: The network cannot be copied.

    Example:
        >>> network = nn.Conv2d(3, 3, 1)
        >>> copy_with_tensors(network, lambda tensor: tensor.to("meta")).weight.device
        device(type='meta')
    """

    def changed(tensor: Tensor) -> Tensor:
        result = change(tensor)
        if isinstance(tensor, nn.Parameter) and not isinstance(result, nn.Parameter):
            return nn.Parameter(result, tensor.requires_grad)
        return result

    tensors = {id(t): changed(t) for t in chain(model.parameters(), model.buffers())}
    try:
        return copy.deepcopy(model, tensors)
    except Exception as error:  # Whatever a class of others may raise.
        raise ValueError(
            f"network {type(unwrapped(model)).__name__} cannot be copied: {error_in_words(error)}"
        ) from error
