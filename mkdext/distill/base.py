"""What a distillation method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DistillationMethod(nn.Module, ABC):
    """A loss between feature maps of a student and of a teacher.

    Its parameters, if it has any, are trained by the meta-gradient. It is made for the channel
    counts of the distillation points and sees nothing of the networks but their feature maps.
    """

    @abstractmethod
    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The distillation loss.

        Args:
            student: One feature map `[B, C_s, h, w]` for each distillation point.
            teacher: As many maps `[B, C_t, h, w]`, without gradient.

        Returns:
            A scalar, differentiable twice with respect to the student's maps and the method's
            parameters.
        """

    def once_differentiable(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The same loss where one derivative is enough; a method may need less memory for it."""
        loss: Tensor = self(student, teacher)
        return loss

    def gradient(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], create_graph: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, and what the student descends: its gradient with respect to the student's maps.

        A method may cut part of the loss's dependence on the student from what it descends. With
        `create_graph` the gradient is differentiable, also through what was cut: the meta-gradient
        of several inner steps sees how every step changes the next one. The loss is a number
        without gradient.
        """
        maps = tuple(f.view_as(f) for f in student)
        loss = self(maps, teacher)
        return loss.detach(), torch.autograd.grad(loss, maps, create_graph=create_graph)

    @abstractmethod
    def statistics(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
        """Numbers that show how the method fares, to be logged now and then."""
