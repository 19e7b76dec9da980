"""Functions whose gradient is computed together with their value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def differentiated(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor]
) -> Tensor:
    """`function(x)`, a scalar; its gradient is computed at once, and its graph freed.

    Of a sum of functions that each need much memory, one after the other needs it. Differentiable
    once, with respect to `x` and `parameters`.

    Args:
        function: Depends on `x` and on `parameters`.
        x: Of any shape.
        parameters: Leaves that `function` depends on.

    Example:
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> loss = differentiated(lambda x: (weight * x).sum(), torch.ones(2), [weight])
        >>> torch.autograd.grad(loss, weight)
        (tensor(2.),)
    """
    value: Tensor = _Differentiated.apply(function, x, *parameters)  # type: ignore[no-untyped-call]
    return value


class _Differentiated(Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = function(x)
            ctx.save_for_backward(*torch.autograd.grad(value, (x, *parameters)))
        return value.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * gradient for gradient in ctx.saved_tensors)
