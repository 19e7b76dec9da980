"""The stages of a training: networks, a step and a schedule each."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mkdext._system.saved_state import SavedState
from mkdext.methods.pisr import PrivilegedEncoder, privileged_loss
from mkdext.models.gradient_watch import silence_in_words
from mkdext.models.handling import copy_with_tensors, count_parameters
from mkdext.training.data_free_options import DataFreeOptions, Resolved
from mkdext.training.image_maker import CollapseError
from mkdext.training.options import ResolvedTraining
from mkdext.training.schedule import Schedule
from mkdext.training.step import (
    Batch,
    LifelessError,
    NonFiniteError,
    TrainingFailed,
    TrainingStep,
    apply,
    gradient_norm,
    require_finite,
    together,
)
from mkdext.training.teacher import Teacher

Values = dict[str, Tensor]
"""Losses, gradient norms and the like by name, scalars."""


class Stage(ABC):
    """Some of the steps of a training, in which one network is trained in one way."""

    network_name: ClassVar[str] = "student"
    """Names the network's files. Stages of the same network share checkpoints and count their
    steps together."""
    counter: ClassVar[str] = "step"
    """What counts the steps in the metrics."""
    is_student: ClassVar[bool] = True
    """Whether it is the network that is wanted: it is measured, and what makes the batches may
    learn from it."""
    title: ClassVar[str] = "training"
    """What the progress is called."""
    whose: ClassVar[str] = ""
    """Whose steps they are, where it is not the student's."""
    shown: ClassVar[tuple[str, ...]]
    """Values that the progress shows, where there are such."""

    schedule: Schedule

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def networks(self) -> Mapping[int, nn.Module]:
        """The same by scale, where it is trained at several; they share weights."""
        return {0: self.network}

    @property
    def modules(self) -> list[nn.Module]:
        """All that learns or keeps numbers, the network first; none before it has begun."""
        return [self.network]

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """That of the network."""

    def begin(self, before: Stage | None) -> str | None:
        """Make the networks ready.

        Args:
            before: The stage before, after its training; none at the beginning, or where a
                checkpoint is loaded afterwards.

        Returns:
            What to tell of it, if anything.
        """
        return None

    def end(self) -> None:
        """Called after the last step."""
        return

    @abstractmethod
    def take(self, step: int, batch: Batch) -> Values:
        """Take a step, whose number is counted from 0 over all stages of the network.

        Raises:
            TrainingFailed: Going on would lead nowhere.
        """

    def statistics(self, batch: Batch) -> dict[str, float]:
        """What else is logged now and then, of the batch of a step."""
        return {}

    def pace(self, step: int) -> dict[str, float]:
        """The rate of a step, and the weights that are logged."""
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def remark(self, is_last: bool) -> str | None:
        """What to tell after a step, if anything.

        Args:
            is_last: Whether no step of the network follows.
        """
        return None

    def recorded(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A line of metrics of a `step`, as it is written."""
        return values

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What `load` needs, to be kept in a checkpoint."""

    @abstractmethod
    def load(self, state: SavedState) -> None:
        """Put everything back to a checkpoint.

        Raises:
            ValueError: It is damaged or of something else.
        """

    @abstractmethod
    def advice(self, error: TrainingFailed) -> str:
        """What to change after an error, as the end of a sentence; empty if that is not known."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What a student is while it does not grow (eq. 5 of the data-free paper, Algorithm 1)."""

    index: int
    """Which of the stages of growth."""
    of: int
    """How many of these there are; 1: it does not grow."""
    parts: int
    """Parts of the student's body."""
    first: int
    """The first step."""
    end: int
    """The step after the last one."""
    make_steps: Callable[[Mapping[int, TrainingStep] | None], dict[int, TrainingStep]]
    """Makes the student of these parts and its steps by scale, which share weights, optimizer and
    method; given those of the part before, after their training, it takes over what these have
    learned."""


class StudentStage(Stage):
    """Steps of a student, on reconstruction, distillation, or both."""

    shown = ("reconstruction", "distillation", "adversarial", "image_diversity", "lr")

    def __init__(self, options: Resolved, part: Part, schedule: Schedule) -> None:
        """Take the options, which part of the student's growth it belongs to, and its steps."""
        self.options = options
        self.part = part
        self.schedule = schedule
        self.steps: dict[int, TrainingStep] = {}

    @property
    def step(self) -> TrainingStep:
        """That of the first scale."""
        return next(iter(self.steps.values()))

    @property
    def networks(self) -> Mapping[int, nn.Module]:
        """The student at each scale; they share weights."""
        return {scale: step.student for scale, step in self.steps.items()}

    @property
    def network(self) -> nn.Module:
        """The student of the first scale."""
        return self.step.student

    @property
    def modules(self) -> list[nn.Module]:
        """The student, and the method with what it follows."""
        if not self.steps:
            return []
        distillation = self.step.distillation
        own = [distillation.method, distillation.balance] if distillation else []
        return [self.network, *own]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the student, and of what the method trains together with it."""
        return self.step.optimizer

    def begin(self, before: Stage | None) -> str | None:
        """Let the student grow, or go on with it on another loss."""
        if not isinstance(before, StudentStage):
            self.steps = self.part.make_steps(None)
            return None
        if before.part is self.part:
            self.steps = before.steps
            # The loss is another; Adam's moments of the one before would slow it for long.
            self.optimizer.state.clear()
            return None
        self.steps = self.part.make_steps(before.steps)
        return (
            f"step {self.part.first}: the student grows from {before.part.parts} to "
            f"{self.part.parts} parts, {count_parameters(self.network):,} parameters"
        )

    def take(self, step: int, batch: Batch) -> Values:
        """Take a step of the student, with a meta step before it when one is due."""
        taken = step - self.schedule.first
        return self.steps[batch.scale](taken, batch, self.schedule.at(step))

    def statistics(self, batch: Batch) -> dict[str, float]:
        """What the method tells of itself, and the stage of a student that grows."""
        return self._growth() | self.steps[batch.scale].statistics(batch)

    def pace(self, step: int) -> dict[str, float]:
        """With the share of the teacher's picture, where that changes."""
        start, end = self.schedule.imitation
        share = {"imitation": self.schedule.at(step).imitation} if start != end else {}
        return super().pace(step) | share

    def remark(self, is_last: bool) -> str | None:
        """Name the parameters that no gradient has reached, once it is time."""
        return silence_in_words([step.watch for step in self.steps.values()], is_last)

    def state_dict(self) -> dict[str, Any]:
        """Of the student, its method and their optimizers."""
        state = {"student": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.step.distillation:
            state["method"] = self.step.distillation.method.state_dict()
            state["balance"] = self.step.distillation.balance.state_dict()
            if self.step.distillation.optimizer:
                state["method_optimizer"] = self.step.distillation.optimizer.state_dict()
        return state | self._growth()

    def load(self, state: SavedState) -> None:
        """Give the student, its method and their optimizers what a checkpoint has kept of them."""
        for name, number in self._growth().items():
            state.number(name, number, number)
        state.load_module("student", self.network)
        state.load_optimizer("optimizer", self.optimizer)
        if self.step.distillation:
            state.load_module("method", self.step.distillation.method)
            state.load_module("balance", self.step.distillation.balance)
            if self.step.distillation.optimizer:
                state.load_optimizer("method_optimizer", self.step.distillation.optimizer)

    def _growth(self) -> dict[str, int]:
        return {"stage": self.part.index} if self.part.of > 1 else {}

    def advice(self, error: TrainingFailed) -> str:
        """Name the learning rates, or what a generator is trained with."""
        options = self.options
        made = options if isinstance(options, DataFreeOptions) else None
        if made and isinstance(error, CollapseError):
            return (
                f"Lower `generator.lr` (now {made.generator.lr:g}), raise `weights.contrastive` "
                f"(now {made.weights.contrastive:g}), or take `source` procedural"
            )
        if not isinstance(error, NonFiniteError | LifelessError):
            return ""
        rates = f"`lr` (now {options.lr:g})"
        if made and made.trains_generator:
            rates += f" or `generator.lr` (now {made.generator.lr:g})"
        elif self.step.distillation and options.meta.inner_lr:
            rates += f" or `meta.inner_lr` (now {options.meta.inner_lr:g})"
        return f"Lower {rates}"


def schedules_of_part(options: Resolved, first: int, end: int, distils: bool) -> list[Schedule]:
    """The schedules of a student's steps while it does not grow.

    Args:
        options: Those of the training.
        first: The first step.
        end: The step after the last one.
        distils: Whether there are points to be compared.
    """
    shares = (0.0, 0.0)
    if isinstance(options, ResolvedTraining):
        shares = options.imitation, options.imitation_end

    def schedule(
        first: int, end: int, imitation: tuple[float, float] = shares, **weights: Any
    ) -> Schedule:
        rates = options.lr, options.lr_min, options.warmup
        return Schedule(first, end, *rates, imitation=imitation, **weights)

    if not distils:
        return [schedule(first, end)]
    hints = round(options.hint_share * (end - first))
    if hints:
        last_hint = first + hints
        at_first = shares[0], shares[0]
        return [
            schedule(first, last_hint, at_first, reconstruction=0.0, distillation=1.0, fades=False),
            schedule(last_hint, end),
        ]
    return [schedule(first, end, distillation=options.kd_weight, fades=options.kd_fade)]


class PrivilegedNetwork(nn.Module):
    """An encoder and a decoder: `[B, 3, scale*h, scale*w]` to the same shape, in [0, 1]."""

    def __init__(self, student: nn.Module, scale: int) -> None:
        """Make an encoder with random weights; the decoder begins as a copy of `student`."""
        super().__init__()
        self.encoder = PrivilegedEncoder(scale)
        self.decoder = copy_with_tensors(student, lambda tensor: tensor.detach().clone())

    def forward(self, high: Tensor) -> Tensor:
        """Restore `high` from what the encoder makes of it."""
        sr: Tensor = self.decoder(self.encoder(high))
        return sr


class PrivilegedTeacher(Teacher):
    """A `PrivilegedNetwork` at work."""

    name = "privileged_teacher"
    network: PrivilegedNetwork

    def source(self, low: Tensor, high: Tensor) -> Tensor:
        """The high-resolution image."""
        return high


class PrivilegedStage(Stage):
    """Steps of a teacher that sees the high-resolution picture, before those of its student (PISR).

    The student begins from its decoder.
    """

    network_name = "privileged_teacher"
    counter = "privileged_step"
    is_student = False
    title = "privileged teacher"
    whose = " of the privileged teacher"
    shown = ("privileged_reconstruction", "privileged_imitation", "lr")

    def __init__(
        self,
        options: Resolved,
        steps: int,
        network: PrivilegedNetwork,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Take how and how long, what is trained, who begins from it, and what moves it."""
        self.options = options
        self.schedule = Schedule(0, steps, options.lr, options.lr_min, options.warmup)
        self.student = student
        self._network = network
        self._optimizer = optimizer
        self.parameters = optimizer.param_groups[0]["params"]

    @property
    def network(self) -> PrivilegedNetwork:
        """The teacher."""
        return self._network

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the teacher."""
        return self._optimizer

    def end(self) -> None:
        """Start the student from the decoder."""
        self.network.eval()
        self.student.load_state_dict(self.network.decoder.state_dict())

    def take(self, step: int, batch: Batch) -> Values:
        """Compute the gradient of one step, then change the parameters.

        Raises:
            NonFiniteError: A loss or the gradient is NaN or infinite; no parameter was changed.
        """
        assert batch.high is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.at(step).lr
        encoded = self.network.encoder(batch.high)
        loss, reconstruction, imitation = privileged_loss(
            self.network.decoder(encoded), batch.high, encoded, batch.low
        )
        gradients = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        own = reconstruction.detach(), imitation.detach()
        (reconstruction, imitation), gradients = together(own, gradients)
        values = {
            "privileged_reconstruction": reconstruction,
            "privileged_imitation": imitation,
            "privileged_gradient": gradient_norm(gradients),
        }
        require_finite(values)
        apply(self.optimizer, self.parameters, gradients)
        return values

    def recorded(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """With a counter of its own: all is before the student's first step."""
        own = {"privileged_lr" if name == "lr" else name: v for name, v in values.items()}
        return {**own, "step": 0, self.counter: values["step"]}

    def state_dict(self) -> dict[str, Any]:
        """Of the teacher and its optimizer."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: SavedState) -> None:
        """Give the teacher and its optimizer what a checkpoint has kept of them."""
        state.load_module("network", self.network)
        state.load_optimizer("optimizer", self.optimizer)

    def advice(self, error: TrainingFailed) -> str:
        """Name the learning rate."""
        return f"Lower `lr` (now {self.options.lr:g})"
