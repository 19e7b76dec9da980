"""Batch normalisation of networks over the samples of all processes, in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from mkdext._system.processes import processes, var_mean


def normalised_together(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[object]:
    """Let batch normalisation see the samples of all processes, where a module has any.

    It is then made of means that are averaged over the processes, so that it can be differentiated
    any number of times, which `torch.nn.SyncBatchNorm` cannot.
    """
    has_any = any(isinstance(part, _BatchNorm) for module in modules for part in module.modules())
    if processes().size == 1 or not has_any:
        return contextlib.nullcontext()
    return _OfAllProcesses()


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm` in training, over the samples of all processes.

    Args:
        x: `[B, C, ...]`, the samples of this process.
        running_mean: `[C]`, moved in place; none: not kept.
        running_var: Likewise.
        weight: `[C]`; none: 1.
        bias: `[C]`; none: 0.
        training: It is.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.
    """
    dims = (0, *range(2, x.ndim))
    variance, mean = var_mean(x, dims)
    if running_mean is not None and running_var is not None:
        count = round(x.numel() / x.shape[1] / processes().share)
        with torch.no_grad():
            running_mean.lerp_(mean.detach().to(running_mean), momentum)
            unbiased = variance.detach() * count / max(count - 1, 1)
            running_var.lerp_(unbiased.to(running_var), momentum)
    shape = (1, -1, *[1] * (x.ndim - 2))
    factor = (variance + eps).rsqrt()
    if weight is not None:
        factor = factor * weight
    result = (x - mean.view(shape)) * factor.view(shape)
    return result if bias is None else result + bias.view(shape)


class _OfAllProcesses(TorchFunctionMode):
    """Puts `batch_norm` in the place of PyTorch's."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm and _is_training(args, kwargs):
            return batch_norm(*args, **_renamed(kwargs))
        return func(*args, **kwargs)


def _is_training(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(args[5] if len(args) > 5 else kwargs.get("training", False))


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"x" if name == "input" else name: value for name, value in kwargs.items()}
