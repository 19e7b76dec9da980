"""One step of a training: the meta step of the method, then the student's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mkdext.distill import DistillationMethod
from mkdext.meta import InnerAdam, InnerOptimizer, InnerSGD, gradient_of, meta_gradient
from mkdext.models import forward_with_features
from mkdext.training.options import TrainOptions
from mkdext.training.schedule import phase
from mkdext.training.teacher import Teacher


class Distillation(NamedTuple):
    """Who teaches, what is compared, and where."""

    teacher: Teacher
    student_points: list[str]
    method: DistillationMethod
    optimizer: torch.optim.Optimizer
    """Of the method's parameters."""


class TrainingStep:
    """The computation of one student step, with a meta step before it when one is due."""

    def __init__(
        self,
        options: TrainOptions,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        distillation: Distillation | None,
    ) -> None:
        """Take what is trained; `distillation` is none for vanilla training."""
        self.options = options
        self.student = student
        self.optimizer = optimizer
        self.distillation = distillation

    def __call__(
        self, step: int, lr: Tensor, hr: Tensor, hints: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compute all gradients of one step, then change the parameters.

        Args:
            step: Which one, from 0.
            lr: `[B, 3, p, p]` in [0, 1].
            hr: `[B, 3, scale*p, scale*p]` in [0, 1].
            hints: The teacher's feature maps for `lr`, if they are known already.

        Returns:
            Losses and gradient norms by name, scalars.

        Raises:
            NonFiniteError: One of them is NaN or infinite; no parameter was changed by it.
        """
        now = phase(step, self.options)
        if step and step == self.options.hint_steps:
            # The next stage has another loss; Adam's moments of this one would slow it for long.
            self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = now.lr
        distillation = self.distillation if now.distillation > 0 else None
        if hints is None:
            hints = self.teacher_features(distillation, lr) if distillation else []
        points = distillation.student_points if distillation else []
        sr, features = forward_with_features(self.student, points, lr)
        values: dict[str, Tensor] = {}
        if distillation and step % self.options.meta.every == 0:
            values |= self.meta_step(distillation, lr, hr, hints, features)
            if not self.options.meta.rollback:
                sr, features = forward_with_features(self.student, points, lr)
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        outputs, slopes = [], []
        if distillation:
            values["distillation"], feature_slopes = distillation.method.gradient(features, hints)
            outputs += features
            slopes += [now.distillation * slope for slope in feature_slopes]
        values["reconstruction"] = functional.l1_loss(sr, hr)
        if now.reconstruction > 0:
            outputs.append(values["reconstruction"])
            slopes.append(torch.full_like(values["reconstruction"], now.reconstruction))
        gradients = torch.autograd.grad(
            outputs, parameters, slopes, allow_unused=True, materialize_grads=True
        )
        values["student_gradient"] = gradient_norm(gradients)
        values = {name: value.detach() for name, value in values.items()}
        require_finite(values)
        apply(self.optimizer, parameters, gradients)
        return values

    def teacher_features(self, distillation: Distillation, lr: Tensor) -> list[Tensor]:
        """The teacher's feature maps, without gradient, in the layout of the operators."""
        return distillation.teacher(lr)

    def meta_step(
        self,
        distillation: Distillation,
        lr: Tensor,
        hr: Tensor,
        hints: Sequence[Tensor],
        features: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Improve the method by the meta-gradient (MKD eq. 3).

        Args:
            distillation: The method, and where it looks.
            lr: `[B, 3, p, p]` in [0, 1].
            hr: `[B, 3, scale*p, scale*p]` in [0, 1].
            hints: The teacher's feature maps.
            features: The student's, with their graph, from which the inner loop begins.
        """
        options = self.options.meta
        method, points = distillation.method, distillation.student_points
        theta = {n: p for n, p in self.student.named_parameters() if p.requires_grad}

        def inner(parameters: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
            maps = features
            if any(parameters[name] is not parameter for name, parameter in theta.items()):
                _, maps = forward_with_features(self.student, points, lr, parameters)
            loss, slopes = method.gradient(maps, hints, create_graph=True)
            gradients = torch.autograd.grad(
                maps,
                tuple(parameters.values()),
                slopes,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return loss, gradients

        def reconstruction(parameters: dict[str, Tensor]) -> Tensor:
            sr: Tensor = functional_call(self.student, parameters, (lr,))
            return functional.l1_loss(sr, hr)

        def objective(parameters: dict[str, Tensor]) -> Tensor:
            if options.keep == 0:
                return reconstruction(parameters)
            sr, maps = forward_with_features(self.student, points, lr, parameters)
            kept: Tensor = options.keep * method.once_differentiable(maps, hints)
            return functional.l1_loss(sr, hr) + kept

        phi = list(method.parameters())
        optimizer, state = self.inner_optimizer(theta)
        result = meta_gradient(
            inner,
            objective,
            theta,
            phi,
            optimizer,
            options.steps,
            options.mode,
            gradient_of(reconstruction) if options.closing_step else None,
            state,
        )
        values = {
            "meta_objective": result.objective,
            "inner_first": result.inner_losses[0],
            "inner_last": result.inner_losses[-1],
            "meta_gradient": gradient_norm(result.gradients),
        }
        require_finite(values)
        apply(distillation.optimizer, phi, result.gradients)
        if not options.rollback:
            with torch.no_grad():
                for name, parameter in theta.items():
                    parameter.copy_(result.parameters[name])
        return values

    def inner_optimizer(
        self, theta: Mapping[str, Tensor]
    ) -> tuple[InnerOptimizer, tuple[Tensor, ...] | None]:
        """The update rule of the inner loop and its state, Adam's being the student's own."""
        options = self.options.meta
        if options.inner_optimizer == "sgd":
            return InnerSGD(options.inner_lr), None
        states = [self.optimizer.state[parameter] for parameter in theta.values()]
        if not all(states):
            return InnerAdam(options.inner_lr), None
        count = states[0]["step"].double()
        moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        return InnerAdam(options.inner_lr), (count, *moments[0], *moments[1])


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite."""


def require_finite(values: dict[str, Tensor]) -> None:
    """Raise `NonFiniteError` naming the first value that is NaN or infinite."""
    together = torch.stack(list(values.values()))
    # A meta tensor has no value; it serves to estimate the memory.
    if together.is_meta or bool(torch.isfinite(together).all()):
        return
    name, value = next((n, v) for n, v in values.items() if not torch.isfinite(v))
    raise NonFiniteError(f"{name.replace('_', ' ')} is {value.item()}")


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together."""
    return torch.nn.utils.get_total_norm(gradients)


def apply(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """One step of a torch optimizer along given gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
