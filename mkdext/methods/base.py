"""What a distillation method is, and what several of them compute alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn


class MetaDefaults(NamedTuple):
    """How a method's meta-parameters were trained where it was published."""

    steps: int = 1
    """Inner steps T."""
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    """Update rule of the inner loop."""
    inner_lr: float | None = 1e-3
    """Step length of the inner loop; None for the student's own."""
    closing_step: bool = False
    """Whether a step on the reconstruction loss ends the inner loop."""
    kappa: float = 0.0
    """Weight of the gradient of the distillation loss beside that of the meta-objective, both of
    norm 1."""


class Descent(NamedTuple):
    """A loss, and the gradient along which it is descended."""

    loss: Tensor
    """A scalar without gradient."""
    maps: tuple[Tensor, ...]
    """With respect to the student's feature maps."""
    parameters: tuple[Tensor, ...]
    """With respect to the parameters of the method that were asked for."""


class DistillationMethod(nn.Module, ABC):
    """A loss between feature maps of a student and of a teacher.

    A method is made for the channels of the distillation points, `Method(student_channels,
    teacher_channels)` with one number for each point, and sees nothing of the networks but their
    feature maps, which are of one size. What else its constructor takes are its options: one object
    of its class `Options`, or arguments by name. Its parameters are trained together with the
    student, but for those that the meta-gradient trains.

    Its loss is a mean over samples. With several processes each computes it of its own samples, and
    gradients are averaged. A loss that is something else of the batch, such as a ratio of means,
    makes it of means over all samples, by `mkdext._system.processes.averaged`.
    """

    Options: ClassVar[type | None] = None
    """A frozen dataclass with defaults, which the constructor takes as its third argument."""
    compares: ClassVar[Literal["features", "pictures"]] = "features"
    """What the maps are: those of the distillation points, or the enlarged pictures alone."""
    whitens: ClassVar[bool] = True
    """Whether it compares maps that `Whitened` has brought to a common scale."""
    privileged: ClassVar[bool] = False
    """Whether the teacher sees the high-resolution picture, and is trained before the student."""
    published_weight: ClassVar[float] = 1.0
    """Weight beside the reconstruction loss. One that belongs to a loss in levels from 0 to 255 is
    divided by 255."""
    published_meta: ClassVar[MetaDefaults] = MetaDefaults()
    """How the meta-gradient trains parameters."""

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Check the channels.

        Raises:
            ValueError: Student and teacher differ in the number of points.
        """
        super().__init__()
        if len(student_channels) != len(teacher_channels) or not student_channels:
            raise ValueError(
                f"{type(self).__name__}: student and teacher must have the same number of "
                f"distillation points, got {len(student_channels)} and {len(teacher_channels)}"
            )

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

    def observe(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """See the maps of a batch, before anything is computed of them."""
        return

    def meta_parameters(self) -> list[nn.Parameter]:
        """The parameters that were trained by the meta-gradient where the method was published."""
        return []

    def once_differentiable(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The same loss where one derivative is enough; a method may need less memory for it."""
        loss: Tensor = self(student, teacher)
        return loss

    def gradient(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        create_graph: bool = False,
        parameters: Sequence[Tensor] = (),
    ) -> Descent:
        """The loss, and what student and method descend.

        A method may cut part of the loss's dependence on the student from what it descends. With
        `create_graph` the gradient is differentiable, also through what was cut: the meta-gradient
        of several inner steps sees how every step changes the next one.

        Args:
            student: As in `forward`.
            teacher: As in `forward`.
            create_graph: Whether the gradient is to be differentiated.
            parameters: Those of the method's parameters whose gradient is asked for.
        """
        maps = tuple(f.view_as(f) for f in student)
        loss = self(maps, teacher)
        gradients = torch.autograd.grad(
            loss,
            (*maps, *parameters),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return Descent(loss.detach(), gradients[: len(maps)], gradients[len(maps) :])

    def statistics(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
        """Numbers that show how the method fares, to be logged now and then."""
        return {}


def matching_convolutions(
    student_channels: Sequence[int], teacher_channels: Sequence[int], kernel_size: int = 1
) -> nn.ModuleList:
    """One convolution `C_s -> C_t` with 'same' padding for each distillation point."""
    return nn.ModuleList(
        nn.Conv2d(cs, ct, kernel_size, padding=kernel_size // 2)
        for cs, ct in zip(student_channels, teacher_channels, strict=True)
    )


def inverse_norm(vectors: Tensor) -> Tensor:
    """`1 / max(|v|, 1e-12)` of each last dimension, which is kept; smooth at 0, to any order.

    Example:
        >>> inverse_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))[0]
        tensor([0.2000])
    """
    return vectors.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()


def total(losses: Sequence[Tensor]) -> Tensor:
    """The sum of the losses of all points."""
    return torch.stack(list(losses)).sum()
