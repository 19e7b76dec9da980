"""What all operators share between the checks and the kernel: precision, choice, shapes, `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from mkdext import _extension


def has_kernel(tensor: Tensor) -> bool:
    """Tell whether compiled kernels can take tensors of this device."""
    return tensor.device.type == "cpu" and _extension.available()


def is_autocast(tensor: Tensor) -> bool:
    """Tell whether automatic mixed precision is on for this tensor's device."""
    return torch.is_autocast_enabled(tensor.device.type)


def to_kernel_dtype(tensor: Tensor) -> Tensor:
    """Return the tensor as float32 unless it is float64; differentiable."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


_Function = TypeVar("_Function", bound=Callable[..., object])


def register_fake(operator: str) -> Callable[[_Function], _Function]:
    """Register a function that only makes the result's shape; nothing without the extension."""
    if _extension.status().state != "loaded":
        return lambda function: function
    register: Callable[[_Function], _Function] = torch.library.register_fake(f"mkdext::{operator}")
    return register


def apply(function: type[Function], *inputs: object) -> Any:
    """Call an autograd function; PyTorch leaves its `apply` untyped."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]


def fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Merge the mapped dimension of `vmap` into the batch, which comes first."""
    if tensor is None:
        return None
    mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return mapped.flatten(0, 1)


def unfold(tensor: Tensor | None, size: int) -> Tensor | None:
    """Undo `fold`: the mapped dimension comes first."""
    return None if tensor is None else tensor.reshape(size, -1, *tensor.shape[1:])
