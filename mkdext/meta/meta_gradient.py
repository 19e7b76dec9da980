"""The gradient of what an inner loop reaches, with respect to what its loss depends on.

MKD eq. 2 and 3: the student takes T steps on the distillation loss; the meta-gradient says how the
parameters of that loss should change for the student to reconstruct better afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mkdext.meta.inner_optimizers import InnerOptimizer, Tensors

Parameters = dict[str, Tensor]
"""The student's parameters by name."""

Loss = Callable[[Parameters], Tensor]
"""A scalar function of the student's parameters."""

Descent = Callable[[Parameters], tuple[Tensor, Tensors]]
"""A loss, and the gradient that a step descends, one tensor for each parameter, differentiable."""


def gradient_of(loss: Loss) -> Descent:
    """The descent along the whole gradient of a loss."""

    def descent(parameters: Parameters) -> tuple[Tensor, Tensors]:
        value = loss(parameters)
        gradients = _gradients(value, tuple(parameters.values()), create_graph=True)
        return value.detach(), gradients

    return descent


@dataclasses.dataclass(frozen=True)
class MetaGradient:
    """What `meta_gradient` returns."""

    gradients: Tensors
    """Of the meta-objective, one for each meta-parameter; zeros where it does not depend on it."""
    objective: Tensor
    """Value of the meta-objective at the end of the inner loop, a scalar."""
    inner_losses: Tensors
    """Loss before each inner step."""
    parameters: dict[str, Tensor]
    """The student's parameters at the end of the inner loop, without gradient."""


def meta_gradient(
    inner: Descent,
    objective: Loss,
    parameters: Mapping[str, Tensor],
    meta_parameters: Sequence[Tensor],
    optimizer: InnerOptimizer,
    steps: int = 1,
    mode: Literal["unrolled", "replayed"] = "unrolled",
    closing: Descent | None = None,
    state: Tensors | None = None,
) -> MetaGradient:
    """Differentiate `objective(theta_T)` with respect to what the inner loop depends on.

    Args:
        inner: What each inner step descends, usually `gradient_of(loss)`; depends on
            `meta_parameters`.
        objective: What the meta-parameters shall minimise (MKD eq. 3); may depend on
            `meta_parameters` directly too.
        parameters: `theta_0` by name; not changed. Leaves that require a gradient are themselves
            what the first step is given, so that it can take up what was computed from them.
        meta_parameters: Leaf tensors, phi in the paper.
        optimizer: Update rule of the inner loop.
        steps: Number T of inner steps.
        mode: "unrolled" keeps the graph of all steps; "replayed" keeps the parameters only and
            computes each step again on the way back: the same gradient with the memory of one
            step, for the time of one more forward and backward a step.
        closing: If given, one more recorded step descends this before the objective is taken, as
            L2T-ww (Jang et al. 2019) does with the reconstruction loss.
        state: Optimizer state to begin with; default: the initial one.

    Returns:
        The meta-gradient; nothing is accumulated into `.grad`.

    Raises:
        ValueError: `steps` is less than 1.

    Example:
        >>> from mkdext.meta import InnerSGD, gradient_of
        >>> phi = torch.tensor(2.0, requires_grad=True)
        >>> result = meta_gradient(
        ...     inner=gradient_of(lambda theta: phi * theta["x"] ** 2),
        ...     objective=lambda theta: theta["x"],
        ...     parameters={"x": torch.tensor(1.0)},
        ...     meta_parameters=[phi],
        ...     optimizer=InnerSGD(lr=0.1),
        ... )
        >>> round(result.gradients[0].item(), 6)  # d/dphi of (1 - 0.1 * 2 * phi)
        -0.2
    """
    if steps < 1:
        raise ValueError(f"meta_gradient: steps must be at least 1, got {steps}")
    names = list(parameters)

    def named(theta: Tensors) -> Parameters:
        return dict(zip(names, theta, strict=True))

    def positional(descent: Descent) -> _PositionalDescent:
        return lambda theta: descent(named(theta))

    descents = [inner] * steps + ([closing] if closing else [])
    theta = tuple(
        p if p.is_leaf and p.requires_grad else p.detach().requires_grad_()
        for p in parameters.values()
    )
    if state is None:
        state = optimizer.initial_state(theta)
    differentiate = _unrolled if mode == "unrolled" else _replayed
    gradients, value, values, theta = differentiate(
        [positional(descent) for descent in descents],
        lambda theta: objective(named(theta)),
        theta,
        tuple(meta_parameters),
        optimizer,
        tuple(tensor.detach() for tensor in state),
    )
    return MetaGradient(
        gradients=gradients,
        objective=value.detach(),
        inner_losses=tuple(values[:steps]),
        parameters=named(tuple(p.detach() for p in theta)),
    )


_PositionalDescent = Callable[[Tensors], tuple[Tensor, Tensors]]
_Result = tuple[Tensors, Tensor, list[Tensor], Tensors]


def _unrolled(
    descents: list[_PositionalDescent],
    objective: Callable[[Tensors], Tensor],
    theta: Tensors,
    phi: Tensors,
    optimizer: InnerOptimizer,
    state: Tensors,
) -> _Result:
    values = []
    for descent in descents:
        value, gradients = descent(theta)
        theta, state = optimizer.step(theta, gradients, state)
        values.append(value)
    final = objective(theta)
    return _gradients(final, phi), final, values, theta


def _replayed(
    descents: list[_PositionalDescent],
    objective: Callable[[Tensors], Tensor],
    theta: Tensors,
    phi: Tensors,
    optimizer: InnerOptimizer,
    state: Tensors,
) -> _Result:
    values, trajectory = [], []
    for descent in descents:
        trajectory.append((theta, state))
        value, gradients = descent(theta)
        values.append(value)
        with torch.no_grad():
            theta, state = optimizer.step(theta, gradients, state)
        theta = tuple(p.requires_grad_() for p in theta)
    final = objective(theta)
    # The adjoints: how the objective depends on parameters and state after the step looked at.
    both = _gradients(final, theta + phi)
    adjoint, phi_gradients = both[: len(theta)], both[len(theta) :]
    adjoint += tuple(torch.zeros_like(s) for s in state)
    for index in reversed(range(len(descents))):
        before, state = trajectory[index]
        state = tuple(s.clone().requires_grad_() for s in state)
        after = sum(optimizer.step(before, descents[index](before)[1], state), start=())
        # Nobody asks about theta_0 and the first state.
        earlier = before + state if index > 0 else ()
        pulled = torch.autograd.grad(
            [a for a in after if a.requires_grad],
            earlier + phi,
            [a for a, b in zip(adjoint, after, strict=True) if b.requires_grad],
            allow_unused=True,
            materialize_grads=True,
        )
        adjoint = pulled[: len(earlier)]
        phi_gradients = tuple(
            g + p for g, p in zip(phi_gradients, pulled[len(earlier) :], strict=True)
        )
    return phi_gradients, final, values, theta


def _gradients(value: Tensor, inputs: Tensors, create_graph: bool = False) -> Tensors:
    return torch.autograd.grad(
        value, inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
