"""Differentiable optimizers for the inner loop: pure functions of parameters, gradients, state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class InnerOptimizer(Protocol):
    """An update rule. Its state is a flat tuple of tensors, so that it can be differentiated."""

    def initial_state(self, parameters: Sequence[Tensor]) -> Tensors:
        """State before the first step."""

    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """New parameters and new state."""


@dataclasses.dataclass(frozen=True)
class InnerSGD:
    """Gradient descent (MKD eq. 2), as `torch.optim.SGD` computes it."""

    lr: float
    """Step length, alpha in the paper."""
    momentum: float = 0.0
    """Share of the last step that is kept."""

    def initial_state(self, parameters: Sequence[Tensor]) -> Tensors:
        """Zero velocity; none without momentum."""
        return tuple(torch.zeros_like(p) for p in parameters) if self.momentum else ()

    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """One step."""
        velocity = tuple(gradients)
        if self.momentum:
            velocity = tuple(self.momentum * v + g for v, g in zip(state, gradients, strict=True))
        moved = tuple(p - self.lr * v for p, v in zip(parameters, velocity, strict=True))
        return moved, velocity if self.momentum else ()


@dataclasses.dataclass(frozen=True)
class InnerAdam:
    """Adam (Kingma & Ba), as `torch.optim.Adam` computes it, but safe to differentiate at zero.

    The square root of the second moment has no derivative at 0, where the gradient of a dead unit
    lies; `eps_root` under the root gives it one.
    """

    lr: float
    """Step length."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: float = 1e-8
    """Added to the denominator."""
    eps_root: float = 1e-16
    """Added under the square root."""

    def initial_state(self, parameters: Sequence[Tensor]) -> Tensors:
        """Zero moments and a step count of 0."""
        zeros = tuple(torch.zeros_like(p) for p in parameters)
        count = torch.zeros((), dtype=torch.float64)
        return (count, *zeros, *(torch.zeros_like(p) for p in parameters))

    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], state: Tensors
    ) -> tuple[Tensors, Tensors]:
        """One step."""
        beta1, beta2 = self.betas
        size = len(parameters)
        count, first, second = state[0] + 1, state[1 : 1 + size], state[1 + size :]
        first = tuple(beta1 * m + (1 - beta1) * g for m, g in zip(first, gradients, strict=True))
        second = tuple(
            beta2 * v + (1 - beta2) * g * g for v, g in zip(second, gradients, strict=True)
        )
        steps = float(count.detach())
        correction1, correction2 = 1 - beta1**steps, 1 - beta2**steps
        moved = tuple(
            p - self.lr / correction1 * m / ((v / correction2 + self.eps_root).sqrt() + self.eps)
            for p, m, v in zip(parameters, first, second, strict=True)
        )
        return moved, (count, *first, *second)
