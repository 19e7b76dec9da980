"""The stages in which a student grows (eq. 5, Algorithm 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mkdext.models import SRNetwork, forward_with_features
from mkdext.synthesis import carry_over, part_counts, with_parts
from mkdext.synthesis.growth import name_in
from mkdext.training.data_free_options import ResolvedDataFree
from mkdext.training.datafree.randomness import Draw, seed_of
from mkdext.training.datafree.scales import at_scales
from mkdext.training.plan import Networks, Points, adam, make_step, seeded
from mkdext.training.steps import Distillation, TrainingStep
from mkdext.training.student import method_statistics
from mkdext.training.teacher import Teacher

_DFSR_GRADIENT = 0.4  # norm to which the code of DFSR cuts the gradient of its SGD


class ByScale(NamedTuple):
    """Who learns from whom."""

    student: nn.Module
    """With all its parts, of the first scale."""
    teachers: dict[int, nn.Module]
    points: Points | None
    """What is compared beside the pictures."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which stage is when."""

    parts: list[int]
    """Parts of the student's body in each stage."""
    iterations: int
    """Steps of all stages together."""

    @classmethod
    def of(cls, options: ResolvedDataFree, student: nn.Module) -> Schedule:
        """The stages of a whole student.

        Raises:
            ValueError: It cannot grow in as many.
        """
        return cls(part_counts(student, options.stages), options.iterations)

    def first(self, stage: int) -> int:
        """First step of a stage.

        Example:
            >>> [Schedule([1, 2, 4], iterations=10).first(stage) for stage in range(4)]
            [0, 3, 6, 10]
        """
        return stage * self.iterations // len(self.parts)

    def stage_at(self, step: int) -> int:
        """The stage of a step.

        Example:
            >>> [Schedule([1, 2, 4], iterations=10).stage_at(step) for step in (2, 3, 9)]
            [0, 1, 2]
        """
        return next(s for s in range(len(self.parts)) if step < self.first(s + 1))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A student of some of its parts, ready to be trained."""

    index: int
    first: int
    """The step of the training that is its first."""
    steps: dict[int, TrainingStep]
    """By scale; they share weights, optimizer and method."""
    teachers: Mapping[int, nn.Module]

    @property
    def students(self) -> dict[int, nn.Module]:
        """By scale."""
        return {scale: step.student for scale, step in self.steps.items()}

    @property
    def step(self) -> TrainingStep:
        """That of the first scale."""
        return next(iter(self.steps.values()))

    @property
    def student(self) -> nn.Module:
        """That of the first scale."""
        return self.step.student

    def imitate(self, step: int, scale: int, lr: Tensor) -> dict[str, Tensor]:
        """Take one step of the student towards the teacher (eq. 5 and 14).

        Args:
            step: Of the training.
            scale: Which of the scales.
            lr: Images, `[B, 3, h, w]` in [0, 1].

        Returns:
            Losses and gradient norms by name, scalars.

        Raises:
            NonFiniteError: One of them is NaN or infinite; nothing was changed by it.
        """
        hr, hints = self._lesson(scale, lr)
        return self.steps[scale](step - self.first, lr, hr, hints)

    def statistics(self, scale: int, lr: Tensor) -> dict[str, float]:
        """What the method tells of itself on a batch."""
        if self.step.distillation is None:
            return {}
        return method_statistics(self.steps[scale], lr, *self._lesson(scale, lr))

    @torch.no_grad()
    def _lesson(self, scale: int, lr: Tensor) -> tuple[Tensor, list[Tensor] | None]:
        """The teacher's picture, and its maps if they are compared."""
        distillation = self.steps[scale].distillation
        if distillation is None:
            return self.teachers[scale](lr), None
        points = distillation.teacher.points
        picture, maps = forward_with_features(self.teachers[scale], points, lr)
        return picture, distillation.teacher.fitted(maps)


def begin_stage(
    options: ResolvedDataFree,
    networks: ByScale,
    schedule: Schedule,
    index: int,
    device: torch.device,
    before: Stage | None = None,
) -> Stage:
    """Let a student grow.

    Args:
        options: How it is trained.
        networks: Who learns from whom.
        schedule: The stages.
        index: Which of them.
        device: Where to compute.
        before: The stage before, after its training; none at the beginning, or where weights are
            loaded afterwards.
    """
    student, points = networks.student, networks.points
    if len(schedule.parts) > 1:
        assert isinstance(student, SRNetwork)  # Others have one stage.
        with seeded(seed_of(options.seed, Draw.NEW_PARTS, index), device):
            grown = with_parts(student, schedule.parts[index])
        if before:
            assert isinstance(before.student, SRNetwork)
            carry_over(before.student, grown)
        points = points and _points_of_parts(grown, student, points)
        student = grown
    first, end = schedule.first(index), schedule.first(index + 1)
    chosen = {scale: options.for_scale(scale, end - first) for scale in options.scale}
    if points is None:
        chosen = {scale: dataclasses.replace(o, method="vanilla") for scale, o in chosen.items()}
    students = at_scales(student, options.scale, "`student`")
    scale = options.scale[0]
    pair = Networks(students[scale], networks.teachers[scale] if points else None)
    sgd = options.optimizer == "sgd"
    step = make_step(chosen[scale], pair, device, points, dfsr_sgd if sgd else adam)
    if before and before.step.distillation and step.distillation:
        _carry_method(before.step.distillation.method, step.distillation.method)
    steps = {
        scale: TrainingStep(
            chosen[scale],
            student,
            step.optimizer,
            step.distillation and _at_scale(step.distillation, networks.teachers[scale]),
            options.criterion,
            _DFSR_GRADIENT if sgd else math.inf,
        )
        for scale, student in students.items()
    }
    return Stage(index, first, steps, networks.teachers)


def dfsr_sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The student's optimizer in the code of DFSR."""
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)


def _points_of_parts(student: SRNetwork, whole: SRNetwork, points: Points) -> Points | None:
    """Those of the distillation points that a student has already; none if it has none."""
    named = [(name_in(student, whole, own), other) for own, other in zip(*points, strict=True)]
    there = [(own, other) for own, other in named if own is not None]
    return ([own for own, _ in there], [other for _, other in there]) if there else None


def _carry_method(trained: nn.Module, method: nn.Module) -> None:
    """Give a method the weights of one for fewer points."""
    state = method.state_dict()
    for name, weight in trained.state_dict().items():
        if name in state and state[name].shape == weight.shape:
            state[name] = weight
    method.load_state_dict(state)


def _at_scale(distillation: Distillation, teacher: nn.Module) -> Distillation:
    """The same distillation from a teacher of another scale."""
    # Networks of several scales see pictures of one size, and so are the maps.
    of = distillation.teacher
    return distillation._replace(teacher=Teacher(teacher, of.points, of.sizes, of.dtype))
