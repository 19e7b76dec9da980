"""Numbers whose gradient was computed together with them, so that no graph of theirs must wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def with_known_gradient(
    value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tensor:
    """A scalar as a function of `inputs` that has the given gradients; differentiable once.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> square = with_known_gradient(torch.tensor(5.0), [x], [2 * x.detach()])
        >>> torch.autograd.grad(square, x)
        (tensor([2., 4.]),)
    """
    apply = _KnownGradient.apply
    known: Tensor = apply(value.detach(), gradients, *inputs)  # type: ignore[no-untyped-call]
    return known


class _KnownGradient(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad * gradient for gradient in ctx.saved_tensors)
