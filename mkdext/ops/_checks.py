"""Checks of arguments, worded alike in all operators: `operator: rule, got value`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MAX_BYTES = 2**63 - 1


def check_tensor(operator: str, name: str, value: object) -> None:
    """Require a dense tensor of a floating dtype.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{operator}: {name} must be a dense tensor, got {value.layout}")
    if value.dtype not in _DTYPES:
        raise TypeError(
            f"{operator}: {name} must be float32, float64, float16 or bfloat16, "
            f"got {dtype_name(value)}"
        )


def check_positive_int(operator: str, name: str, value: object) -> None:
    """Require an int of at least 1.

    Raises:
        TypeError: It is no int (a bool is none either).
        ValueError: It is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{operator}: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{operator}: {name} must be at least 1, got {value}")


def check_map(operator: str, name: str, value: Tensor, dimensions: str) -> None:
    """Require a 4-D tensor whose sizes, the batch aside, are at least 1.

    Raises:
        ValueError: It has other sizes.
    """
    if value.dim() != 4:
        raise ValueError(f"{operator}: {name} must be {dimensions}, got {list(value.shape)}")
    if min(value.shape[1:]) < 1:
        raise ValueError(
            f"{operator}: {name} must be {dimensions} with at least one channel, row and column, "
            f"got {list(value.shape)}"
        )


def check_size(operator: str, name: str, shape: Sequence[int], like: Tensor) -> None:
    """Require that a dense tensor of this shape, like ``like``, can be held.

    Raises:
        ValueError: Its size overflows, or exceeds the memory of this machine.
    """
    size = math.prod(shape) * like.element_size()
    if size > _MAX_BYTES:
        raise ValueError(
            f"{operator}: {name} of {list(shape)} needs {size:.1e} bytes, which overflows"
        )
    if size > _MEMORY and like.device.type == "cpu":
        raise ValueError(
            f"{operator}: {name} of {list(shape)} needs {size / 2**30:,.0f} GiB, "
            f"but this machine has {_MEMORY / 2**30:,.1f} GiB of memory"
        )


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype as a user writes it, without `torch.`."""
    return str(tensor.dtype).removeprefix("torch.")


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        return _MAX_BYTES


_MEMORY = _memory_bytes()
