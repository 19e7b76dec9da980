"""From options to a training that is ready to run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from mkdext._system.device import checked_device
from mkdext.methods import MKD, DistillationMethod, method_class
from mkdext.models import (
    WHOLE,
    SRNetwork,
    check_points,
    default_points,
    resolve_student,
    resolve_teacher,
    select_points,
)
from mkdext.models.own import copy_with_tensors, layout, placed, set_training_mode
from mkdext.models.trial import check_has_parameters, check_passes_gradient, check_trains
from mkdext.training.memory import LiveBytes, available_bytes, reckons_inner_steps
from mkdext.training.options import ResolvedShared, ResolvedTraining
from mkdext.training.privileged import (
    PrivilegedNetwork,
    PrivilegedStep,
    PrivilegedTeacher,
    refuse_teacher_options,
)
from mkdext.training.steps import Distillation, TrainingStep
from mkdext.training.teacher import Teacher

_POINTS = 4  # as in MKD's experiments


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training ready to run: all that the options name was found and fits."""

    options: ResolvedTraining
    student: nn.Module
    step: TrainingStep
    memory: int | None
    """Bytes that a step needs, by estimate; none: not known."""

    @property
    def student_parameters(self) -> int:
        """Number of trained parameters of the student."""
        return count_parameters(self.student)

    @property
    def teacher(self) -> Teacher | None:
        """Who teaches, if anyone does."""
        return self.step.distillation.teacher if self.step.distillation else None


class Networks(NamedTuple):
    """Who learns from whom."""

    student: nn.Module
    teacher: nn.Module | None
    """None: vanilla training, or a method that makes a teacher of its own."""


def prepare(options: ResolvedTraining, networks: Networks | None = None) -> Plan:
    """Make the networks and check that everything fits, before any work is done.

    Args:
        options: What to do.
        networks: Who learns from whom; none: those that the options name.

    Raises:
        ValueError: The options do not go together, networks or weights are not usable, or the
            memory does not suffice.
    """
    checked_device(options.device)
    networks = networks or make_networks(options)
    set_training_mode(networks.student)
    check_has_parameters(networks.student)
    memory = estimate_memory(options, networks)
    require_memory(memory, options)
    if is_own(networks.student) and options.privileged:
        check_passes_gradient(networks.student, "student", "an encoder")
    step = make_step(options, networks, torch.device(options.device))
    try_step(step)
    return Plan(options, step.student, step, memory)


def try_step(step: TrainingStep) -> None:
    """Check that a student that is not as this package makes it can take a step.

    Raises:
        ValueError: It cannot.
    """
    frozen = not all(parameter.requires_grad for parameter in step.student.parameters())
    if is_own(step.student) or frozen:
        points = step.distillation.student_points if step.distillation else []
        side = step.options.patch_size
        check_trains(step.student, points, step.takes_meta_gradient, (side, side))


def make_networks(options: ResolvedTraining) -> Networks:
    """The networks that the options name.

    Raises:
        ValueError: A name or weights are not usable.
    """
    with seeded(options.seed, torch.device("cpu")):
        student = resolve_student(options.student, options.scale)
    if options.privileged:
        refuse_teacher_options(options)
    if options.method == "vanilla" or options.privileged:
        return Networks(student, None)
    teacher = resolve_teacher(options.teacher, options.teacher_weights, options.scale)
    return Networks(student, teacher)


@reckons_inner_steps
def estimate_memory(options: ResolvedTraining, networks: Networks) -> int | None:
    """Bytes that networks, optimizers and one step take up together, by a dry computation.

    It is done with few samples: PyTorch's own second derivative of a per-sample convolution, which
    stands for the operators there, takes its time for every sample.

    Returns:
        The estimate; none where a user's network cannot be computed without numbers.

    Raises:
        ValueError: The sizes asked for are impossible, or the networks do not go together.
    """
    meta, samples = torch.device("meta"), 2
    low, high = options.patch_size, options.patch_size * options.scale
    try:
        with LiveBytes() as memory:
            step = make_step(options, _without_numbers(networks), meta)
            held: int = memory.live
            lr = torch.empty(samples, 3, low, low, device=meta)
            hr = torch.empty(samples, 3, high, high, device=meta)
            teacher = step.distillation and step.distillation.teacher
            if isinstance(teacher, PrivilegedTeacher):
                PrivilegedStep(options, teacher.network)(0, lr, hr)
            step(0, lr, hr)
    except Exception as error:
        if any(is_own(network) for network in networks):
            return None
        if not isinstance(error, RuntimeError):
            raise
        raise ValueError(f"the sizes asked for are impossible: {error}") from None
    work: int = memory.peak - held
    return held + work * options.batch_size // samples


def require_memory(needed: int | None, options: ResolvedShared) -> None:
    """Check that a step fits into memory, where it is known what it needs and what there is.

    Raises:
        ValueError: It does not.
    """
    available = available_bytes()
    on_cpu = torch.device(options.device).type == "cpu"
    if on_cpu and needed and available and needed > available:
        steps = options.meta.steps
        fewer = f", `meta.steps` (now {steps})" if steps > 1 and options.method != "vanilla" else ""
        raise ValueError(
            f"a step needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are "
            f"available: lower `batch_size` or `patch_size`{fewer}, or take a smaller `student`"
        )


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters of a network."""
    return sum(p.numel() for p in model.parameters())


def on_meta(network: nn.Module) -> nn.Module:
    """A copy of a network whose tensors have shapes but no memory."""
    return copy_with_tensors(network, lambda tensor: tensor.to("meta"))


def _without_numbers(networks: Networks) -> Networks:
    student, teacher = networks
    return Networks(on_meta(student), None if teacher is None else on_meta(teacher))


def is_own(network: nn.Module | None) -> bool:
    """Whether there is a network and it is the user's."""
    return network is not None and not isinstance(network, SRNetwork)


Points = tuple[list[str], list[str]]
"""Distillation points of the student, and as many of the teacher."""

MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
"""From parameters and a learning rate to an optimizer."""


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The optimizer of the MKD paper, section 4.1."""
    return torch.optim.Adam(parameters, lr, betas=(0.9, 0.999))


def make_step(
    options: ResolvedTraining,
    networks: Networks,
    device: torch.device,
    points: Points | None = None,
    make_optimizer: MakeOptimizer = adam,
) -> TrainingStep:
    """The step of a training.

    Args:
        options: How.
        networks: Who learns from whom; they are moved to the device.
        device: Where to compute.
        points: What is compared; none: what the options say.
        make_optimizer: For the student.

    Raises:
        ValueError: The networks do not go together.
    """
    student = placed(networks.student, device)
    network, kind, side = networks.teacher, Teacher, options.patch_size
    if options.privileged:
        with seeded(options.seed, device):
            network = PrivilegedNetwork(student, options.scale).to(device)
        network.to(memory_format=layout(student))  # type: ignore[call-overload]
        kind, side = PrivilegedTeacher, side * options.scale
    elif network is not None:
        network = placed(network, device)
    if network is None:
        optimizer = make_optimizer(student.parameters(), options.lr)
        return TrainingStep(options, student, optimizer, None)
    student_points, teacher_points = points or choose_points(options, student, network)
    maps = check_points(student, student_points, options.patch_size)
    teacher_maps = check_points(network, teacher_points, side)
    with seeded(options.seed, device):
        channels = [m.channels for m in maps], [m.channels for m in teacher_maps]
        method = _make_method(options, *channels).to(device)
    meta = {
        "published": method.meta_parameters(),
        "plain": [],
        "meta": list(method.parameters()),
    }[options.method_training]
    decay = options.meta.weight_decay
    meta_optimizer = torch.optim.Adam(meta, options.meta.lr, weight_decay=decay) if meta else None
    sizes = [(m.height, m.width) for m in maps]
    if options.imitation:
        picture = options.patch_size * options.scale
        teacher_points, sizes = [*teacher_points, WHOLE], [*sizes, (picture, picture)]
    teacher = kind(network, teacher_points, sizes, getattr(torch, options.teacher_dtype))
    distillation = Distillation(teacher, student_points, method, meta_optimizer)
    trained = (*student.parameters(), *distillation.adapters.values())
    return TrainingStep(options, student, make_optimizer(trained, options.lr), distillation)


def _make_method(
    options: ResolvedTraining, student_channels: list[int], teacher_channels: list[int]
) -> DistillationMethod:
    method = method_class(options.method)
    if issubclass(method, MKD):
        return method(student_channels, teacher_channels, options.mkd)
    return method(student_channels, teacher_channels)


def choose_points(options: ResolvedTraining, student: nn.Module, teacher: nn.Module) -> Points:
    """The distillation points of both networks, as many of one as of the other.

    Raises:
        ValueError: Points that were named do not exist, or are not as many.
    """
    if method_class(options.method).compares == "pictures":
        for flag, patterns in (
            ("`student_points`", options.student_points),
            ("`teacher_points`", options.teacher_points),
        ):
            if patterns:
                raise ValueError(
                    f"{flag}: `method` {options.method} compares the enlarged pictures, leave out "
                    f"{' '.join(patterns)}"
                )
        return [WHOLE], [WHOLE]
    if isinstance(teacher, PrivilegedNetwork):
        same = dataclasses.replace(options, teacher_points=options.student_points)
        points, _ = choose_points(same, student, student)
        return points, [f"decoder.{name}" for name in points]
    chosen: dict[str, list[str]] = {}
    for flag, network, patterns in (
        ("`student_points`", student, options.student_points),
        ("`teacher_points`", teacher, options.teacher_points),
    ):
        try:
            chosen[flag] = select_points(network, patterns)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
    count = max(map(len, chosen.values())) or _POINTS
    for flag, network in (("`student_points`", student), ("`teacher_points`", teacher)):
        try:
            chosen[flag] = chosen[flag] or default_points(network, count)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
    points, teacher_points = chosen.values()
    if len(points) != len(teacher_points):
        raise ValueError(
            "`student_points` and `teacher_points` must be as many, "
            f"got {len(points)} ({', '.join(points)}) and {len(teacher_points)} "
            f"({', '.join(teacher_points)})"
        )
    return points, teacher_points


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw weights from a seed, without a trace in torch's own random numbers."""
    # Weights are drawn on the CPU, so that they are the same on every device; on the meta device
    # there are none.
    with (
        torch.random.fork_rng(devices=[]),
        device if device.type == "meta" else torch.device("cpu"),
    ):
        torch.manual_seed(seed)
        yield
