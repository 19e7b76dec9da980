"""From options to a training that is ready to run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mkdext._system.device import checked_device
from mkdext.methods import MKD, DistillationMethod, method_class
from mkdext.models import (
    SRNetwork,
    WHOLE,
    check_points,
    default_points,
    resolve_student,
    resolve_teacher,
    select_points,
)
from mkdext.models.own import copy_with_tensors, layout, placed, set_training_mode
from mkdext.models.trial import check_has_parameters, check_passes_gradient, check_trains
from mkdext.synthesis import carry_over, part_counts, with_parts
from mkdext.synthesis.growth import name_in
from mkdext.training.datafree.options import DataFreeOptions
from mkdext.training.datafree.randomness import Draw, seed_of
from mkdext.training.datafree.scales import at_scales
from mkdext.training.image_maker import ImageMaker
from mkdext.training.memory import LiveBytes, available_bytes
from mkdext.training.options import TrainOptions
from mkdext.training.sources import Made
from mkdext.training.stages import (
    Part,
    PrivilegedNetwork,
    PrivilegedStage,
    PrivilegedTeacher,
    Stage,
    StudentStage,
    schedules_of_part,
)
from mkdext.training.step import Batch, Distillation, StepOptions, TrainingStep
from mkdext.training.teacher import Teacher

_NO_TEACHER = {
    "teacher": "made of an encoder and the student's network",
    "teacher_weights": "made of an encoder and the student's network",
    "teacher_points": "whose points are the student's",
}


def prepare(options: Options, networks: Networks | None = None) -> Training:
    """Make the networks and check that everything fits, before any work is done.

    Args:
        options: What to do.
        networks: Who learns from whom; none: those that the options name.

    Raises:
        ValueError: The options do not go together, networks or weights are not usable, or the
            memory does not suffice.
    """
    options = options.resolved()
    device = checked_device(options.device)
    networks = networks or make_networks(options)
    set_training_mode(networks.student)
    check_has_parameters(networks.student)
    _check_gradients(options, networks)
    _require_memory_for_banks(options)
    memory = estimate_memory(options, networks)
    require_memory(memory, options)
    training = dataclasses.replace(assemble(options, networks, device), memory=memory)
    _try_step(training)
    return training


def make_networks(options: Options) -> Networks:
    """The networks that the options name.

    Raises:
        ValueError: A name or weights are not usable.
    """
    scale = options.scales[0]
    with seeded(options.seed, torch.device("cpu")):
        student = resolve_student(options.student, scale)
    at_scales(student, options.scales, "`student`")
    if options.privileged:
        _refuse_teacher_options(options)
    has_teacher = isinstance(options, DataFreeOptions) or options.method != "vanilla"
    if options.privileged or not has_teacher:
        return Networks(student, {})
    teacher = resolve_teacher(options.teacher, options.teacher_weights, scale)
    return Networks(student, at_scales(teacher, options.scales, "`teacher`"))


def _refuse_teacher_options(options: Options) -> None:
    for name, reason in _NO_TEACHER.items():
        value = getattr(options, name)
        if value:
            given = " ".join(value) if isinstance(value, tuple) else value
            raise ValueError(
                f"`{name}`: `method` {options.method} trains a teacher of its own, {reason}; leave "
                f"out `{name}` {given}"
            )


def _check_gradients(options: Options, networks: Networks) -> None:
    """Check that a gradient passes those of the user's networks that something else learns from."""
    checked: dict[str, nn.Module] = {}
    learns = "an encoder"
    if options.privileged:
        checked["student"] = networks.student
    elif isinstance(options, DataFreeOptions) and options.trains_generator:
        learns = "a generator (not with `source` procedural or `generator.every` 0)"
        checked["student"] = networks.student
        checked["teacher"] = networks.teachers[options.scales[0]]
    for whose, network in checked.items():
        if _is_users(network):
            check_passes_gradient(network, whose, learns)


def _try_step(training: Training) -> None:
    """Check that a student that is not as this package makes it can take a step.

    Raises:
        ValueError: It cannot.
    """
    student = training.networks.student
    frozen = not all(parameter.requires_grad for parameter in student.parameters())
    if not (_is_users(student) or frozen):
        return
    stage = training.student_stages[0]
    stage.begin(None)
    points = stage.step.distillation.points if stage.step.distillation else []
    side = training.options.sizes[training.options.scales[0]]
    check_trains(stage.network, points, stage.step.takes_meta_gradient, (side, side))


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters of a network."""
    return sum(p.numel() for p in model.parameters())


