"""Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal, for small networks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = "momentum_buffer"
_DECAY = 0.95
_STEPS = 5
_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_ADAM_SIZE = 0.2
_LEAST = 1e-12


class Muon(torch.optim.Adam):
    """Convolution kernels move along their orthogonalised momentum, all else by Adam.

    A kernel counts as a matrix, `[C_out, C_in * k * k]`, whose singular values a Newton-Schulz
    iteration brings near 1. A step is scaled to the size that Adam's usually has (Liu et al., "Muon
    is scalable for LLM training", 2025), so that one learning rate serves both.

    Kernels of one shape are handled together, in float32: those of a student are many and small,
    and `torch.optim.Muon`, which takes one after another, needs longer than the student's step.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> optimizer = Muon(conv.parameters(), lr=0.01)
        >>> conv(torch.rand(1, 3, 8, 8)).mean().backward()
        >>> optimizer.step()
        >>> [sorted(optimizer.state[p]) for p in conv.parameters()]
        [['momentum_buffer'], ['exp_avg', 'exp_avg_sq', 'step']]
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        """Take what is trained, and the learning rate."""
        super().__init__(params, lr, betas=(0.9, 0.999))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state; that of kernels has no count of steps, for which Adam would look."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            kernels = [p for p in group["params"] if is_kernel(p) and p.grad is not None]
            self._move(kernels, group["lr"])
            for kernel in kernels:
                kernel.grad = None  # Adam passes by what has no gradient.
        super().step()

    def kept(self, parameter: Tensor) -> set[str]:
        """Names of what is kept of a parameter."""
        return {MOMENTUM} if is_kernel(parameter) else {"step", "exp_avg", "exp_avg_sq"}

    def _move(self, kernels: Iterable[Tensor], lr: float) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for kernel in kernels:
            assert kernel.grad is not None
            if MOMENTUM not in self.state[kernel]:
                self.state[kernel][MOMENTUM] = torch.zeros_like(kernel)
            momentum = self.state[kernel][MOMENTUM].lerp_(kernel.grad, 1 - _DECAY)
            ahead = kernel.grad.lerp(momentum, _DECAY).flatten(1)
            alike.setdefault(ahead.shape, []).append((kernel, ahead))
        for shape, rows in alike.items():
            size = _ADAM_SIZE * math.sqrt(max(shape))
            directions = orthogonalised(torch.stack([ahead for _, ahead in rows]))
            for (kernel, _), direction in zip(rows, directions, strict=True):
                kernel.sub_(direction.view(kernel.shape), alpha=lr * size)


def is_kernel(parameter: Tensor) -> bool:
    """Whether a parameter is that of a convolution."""
    return parameter.ndim == 4


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices of the same singular vectors, whose singular values lie between about 0.7 and 1.2.

    Args:
        matrices: `[N, rows, columns]`; one of zeros stays so.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(_LEAST)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
