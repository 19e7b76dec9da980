"""3x3 convolutions by `mkdext.ops.conv2d`: those of the networks here, and of any other network."""

from __future__ import annotations

import contextlib
from typing import Literal, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import _has_any_global_hook

from mkdext.ops.conv2d import conv2d_algorithm, stock_convolutions, winograd_conv2d

Convolutions = Literal["winograd", "stock"]
"""Who convolves: Winograd kernels of this package where they are faster, or PyTorch alone."""

_Layer = TypeVar("_Layer", bound=nn.Module)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Conv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` that `mkdext.ops.conv2d` computes if that is the same.

    Example:
        >>> conv = Conv2d(16, 16, 3, padding=1)
        >>> conv(torch.rand(2, 16, 9, 7)).shape, list(conv.state_dict())
        (torch.Size([2, 16, 9, 7]), ['weight', 'bias'])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if qualifies(self):
            return convolve(input, weight, bias)
        result: Tensor = super()._conv_forward(input, weight, bias)
        return result


class SubPixelSequential(nn.Sequential):
    """Layers in a row, in which a `Conv2d` and the pixel shuffle after it are computed as one.

    Example:
        >>> layers = SubPixelSequential(Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2), nn.ReLU())
        >>> layers(torch.rand(1, 8, 5, 6)).shape
        torch.Size([1, 8, 10, 12])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to what the last layer makes of it."""
        layers = list(self)
        while layers:
            match layers:
                case [conv, shuffle, *rest] if (
                    is_joinable(conv)
                    and is_plain(shuffle, nn.PixelShuffle)
                    and (joined := _shuffled(x, conv, shuffle)) is not None
                ):
                    x = joined
                case [layer, *rest]:
                    x = layer(x)
            layers = rest
        return x


def qualifies(conv: nn.Conv2d) -> bool:
    """Whether `mkdext.ops.conv2d` computes what a convolution does: 3x3, zero 'same' padding."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding in ((1, 1), "same")
        and conv.padding_mode == "zeros"
        and conv.groups == 1
    )


def is_joinable(layer: nn.Module) -> TypeGuard[Conv2d]:
    """Whether a layer may be computed by `mkdext.ops.conv2d` together with what follows it."""
    return is_plain(layer, Conv2d) and qualifies(layer)


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a convolution that qualifies does; PyTorch has its own words for bad input."""
    result = winograd_conv2d(input, weight, bias)
    if result is None:
        result = functional.conv2d(input, weight, bias, padding=1)
    return result


def accelerate(module: nn.Module) -> contextlib.ExitStack:
    """Let `mkdext.ops.conv2d` compute the convolutions of a network, in place.

    These are its `torch.nn.Conv2d` of 3x3 pixels, stride 1, dilation 1 and one group, with a
    padding of one pixel of zeros, also with hooks, parametrized or shared. All others, and classes
    that have a forward of their own, stay as they are. On a CPU, in float32, the operator takes
    Winograd kernels where these are faster; results differ from PyTorch's by rounding. It can be
    differentiated any number of times. Exporters and `torch.compile` see PyTorch's convolutions.

    A copy of the network is accelerated too, and stays so when this is undone. So is one that is
    pickled, which needs this package to be loaded; state dicts do not change. `torch.jit.script`
    wants it undone. A convolution must keep its stride, padding, dilation and groups meanwhile.

    Args:
        module: The network. To accelerate it again changes nothing.

    Returns:
        A context manager at whose end, or when its `close` is called, this is undone; to keep the
        network accelerated, drop it.

    Raises:
        TypeError: `module` is no `torch.nn.Module`.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 3, 5, padding=2))
        >>> with accelerate(network):
        ...     network(torch.rand(1, 3, 24, 24)).shape
        torch.Size([1, 3, 24, 24])
    """
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise TypeError(f"accelerate: module must be a torch.nn.Module, got {kind}")
    undo = contextlib.ExitStack()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and _is_of_pytorch(layer) and qualifies(layer):
            # In the place of the method, by name: neither copies nor pickles hold the layer twice.
            vars(layer)["_conv_forward"] = convolve
            undo.callback(vars(layer).pop, "_conv_forward", None)
    return undo


def convolutions_on(device: str | torch.device) -> Convolutions:
    """Which convolutions networks on a device take now: "winograd" on a CPU that has them."""
    if torch.device(device).type != "cpu":
        return "stock"
    # Of many channels, for which they are faster if there are any.
    algorithm = conv2d_algorithm(torch.empty(1, 64, 48, 48), torch.empty(64, 64, 3, 3))
    return cast(Convolutions, algorithm)


def stock_if(condition: bool) -> contextlib.AbstractContextManager[None]:
    """On a condition, PyTorch's own convolutions for all networks of the process meanwhile."""
    return stock_convolutions() if condition else contextlib.nullcontext()


def _shuffled(x: Tensor, conv: Conv2d, shuffle: nn.PixelShuffle) -> Tensor | None:
    """What both make of `x`; nothing where the operator would not be faster."""
    return winograd_conv2d(x, conv.weight, conv.bias, upscale_factor=shuffle.upscale_factor)


def _is_of_pytorch(conv: nn.Conv2d) -> bool:
    """Whether nothing but PyTorch's own methods stand between a convolution and its result."""
    kind = type(conv)
    return (
        kind.forward is nn.Conv2d.forward
        and kind._conv_forward is nn.Conv2d._conv_forward
        and not {"forward", "_conv_forward"} & vars(conv).keys()
        and not isinstance(conv, LazyModuleMixin)
    )


def is_plain(layer: nn.Module, kind: type[_Layer]) -> TypeGuard[_Layer]:
    """Whether a layer is of this very class, and no one sees or has changed what it does.

    Only then may the layer be computed as a part of something else.
    """
    return type(layer) is kind and not (
        _has_any_global_hook()  # type: ignore[no-untyped-call]
        or any(getattr(layer, name) for name in _HOOKS)
        or {"forward", "_conv_forward"} & vars(layer).keys()
    )
