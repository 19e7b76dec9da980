"""The stages of a training, from options and networks."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from mkdext._system.plugins import is_reference, named_options
from mkdext.methods import (
    DistillationMethod,
    Whitened,
    make_method,
    method_class,
    try_method,
)
from mkdext.metrics.losses import make_loss
from mkdext.models import (
    WHOLE,
    SRNetwork,
    SuperResolver,
    at_scales,
    check_points,
    default_points,
    select_points,
)
from mkdext.models.handling import layout, loss_of, placed
from mkdext.synthesis import carry_over, part_counts
from mkdext.synthesis.randomness import Draw, seed_of
from mkdext.training.balance import Balance
from mkdext.training.data_free_options import Resolved, ResolvedDataFree
from mkdext.training.image_maker import ImageMaker
from mkdext.training.muon import Muon
from mkdext.training.options import ResolvedTraining
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
from mkdext.training.step import Distillation, StepOptions, TrainingStep
from mkdext.training.teacher import Teacher

_POINTS = 4  # as in MKD's experiments; the discriminator sees as many
_DFSR_GRADIENT = 0.4  # norm to which the code of DFSR cuts the gradient of its SGD


class Networks(NamedTuple):
    """Who learns from whom."""

    student: SuperResolver
    """With all its parts, of the first scale."""
    teachers: Mapping[int, SuperResolver]
    """By scale; none: vanilla training on photographs, or a method that makes a teacher."""
    remarks: Sequence[str] = ()
    """What to tell of how the student begins."""


Points = tuple[list[str], list[str]]
"""Distillation points of the student, and as many of the teacher."""


@dataclasses.dataclass(frozen=True)
class Training:
    """A training ready to run: all that the options name was found and fits."""

    options: Resolved
    networks: Networks
    stages: list[Stage]
    """In order."""
    teacher: Teacher | None
    """Who teaches from photographs, if anyone does."""
    made: Made | None
    """What makes images, where the student does not learn from photographs."""
    memory: int | None = None
    """Bytes that a step needs, by estimate; none: not known."""

    @property
    def teachers(self) -> Mapping[int, nn.Module]:
        """Networks that the student is compared with, by scale."""
        if self.teacher:
            return {self.options.scales[0]: self.teacher.network}
        return self.networks.teachers

    @property
    def teacher_name(self) -> str:
        """What the scores of these are called."""
        return self.teacher.name if self.teacher else "teacher"

    @property
    def by_network(self) -> dict[str, list[Stage]]:
        """The stages of each network that is trained, by its name."""
        stages: dict[str, list[Stage]] = {}
        for stage in self.stages:
            stages.setdefault(stage.network_name, []).append(stage)
        return stages

    @property
    def student_stages(self) -> list[StudentStage]:
        """Those of the student."""
        return [stage for stage in self.stages if isinstance(stage, StudentStage)]


def assemble(options: Resolved, networks: Networks, device: torch.device) -> Training:
    """The stages of a training on a device, to which the networks are moved.

    Raises:
        ValueError: The networks do not go together.
    """
    if isinstance(options, ResolvedDataFree):
        return _assemble_without_data(options, networks, device)
    student, scale = placed(networks.student, device), options.scale
    network: nn.Module | None = networks.teachers.get(scale)
    kind, before = Teacher, list[Stage]()
    if options.privileged:
        kind = PrivilegedTeacher
        with seeded(options.seed, device):
            network = privileged = PrivilegedNetwork(student, scale).to(device)
        privileged.to(memory_format=layout(student))  # type: ignore[call-overload]
        count = options.privileged_iterations
        moved = _optimizer(options, [p for p in privileged.parameters() if p.requires_grad])
        before = [PrivilegedStage(options, count, privileged, student, moved)]
    elif network is not None:
        network = placed(network, device)
    points = choose_points(options, student, network) if network is not None else None
    teachers = {} if network is None else {scale: network}
    steps = make_steps(options, {scale: student}, teachers, points, device, kind)
    part = Part(
        index=0, of=1, parts=1, first=0, end=options.iterations, make_steps=lambda before: steps
    )
    return Training(
        options, networks, [*before, *_stages_of(options, part, points)], steps[scale].teacher, None
    )


def _assemble_without_data(
    options: ResolvedDataFree, networks: Networks, device: torch.device
) -> Training:
    counts = part_counts(networks.student, options.stages)
    points = None
    if options.method != "vanilla":
        teacher = networks.teachers[options.scales[0]]
        points = choose_points(options, networks.student, teacher)
    stages: list[Stage] = []
    for index, count in enumerate(counts):
        first, end = (i * options.iterations // len(counts) for i in (index, index + 1))
        growth = Growth(options, networks, points, index, count, device)
        part = Part(
            index=index,
            of=len(counts),
            parts=count,
            first=first,
            end=end,
            make_steps=growth.steps,
        )
        stages += _stages_of(options, part, growth.points)
    made = Made(options, _make_makers(options, networks, device))
    return Training(options, networks, stages, None, made)


def _stages_of(options: Resolved, part: Part, points: Points | None) -> list[StudentStage]:
    distils = points is not None and options.method != "vanilla"
    schedules = schedules_of_part(options, part.first, part.end, distils)
    return [StudentStage(options, part, schedule) for schedule in schedules]


class Growth:
    """A student of some of its parts."""

    def __init__(
        self,
        options: ResolvedDataFree,
        networks: Networks,
        points: Points | None,
        index: int,
        parts: int,
        device: torch.device,
    ) -> None:
        """Take the whole student and its points, which stage it is, and how many parts it has."""
        self.options = options
        self.networks = networks
        self.index = index
        self.parts = parts
        self.device = device
        self.points = points
        if self._grows and points:
            assert isinstance(networks.student, SRNetwork)  # Others have one stage.
            with torch.device("meta"):
                grown = networks.student.with_parts(parts)
            self.points = _points_of_parts(grown, networks.student, points)

    @property
    def _grows(self) -> bool:
        return self.options.stages > 1

    def steps(self, before: Mapping[int, TrainingStep] | None) -> dict[int, TrainingStep]:
        """The steps of such a student by scale, which takes over what one before has learned."""
        options, student = self.options, self.networks.student
        if self._grows:
            assert isinstance(student, SRNetwork)  # Others have one stage.
            with seeded(seed_of(options.seed, Draw.NEW_PARTS, self.index), self.device):
                student = student.with_parts(self.parts)
            if before:
                trained = next(iter(before.values())).student
                assert isinstance(trained, SRNetwork)
                carry_over(trained, student)
        students = at_scales(student, options.scale, "`student`")
        steps = make_steps(options, students, self.networks.teachers, self.points, self.device)
        if before:
            old, new = (next(iter(by_scale.values())).distillation for by_scale in (before, steps))
            if old and new:
                _carry_method(old.method, new.method)
                new.balance.load_state_dict(old.balance.state_dict())
        return steps


def make_steps(
    options: Resolved,
    students: Mapping[int, nn.Module],
    teachers: Mapping[int, nn.Module],
    points: Points | None,
    device: torch.device,
    teacher_kind: type[Teacher] = Teacher,
) -> dict[int, TrainingStep]:
    """The step of a student at each scale; they share weights, optimizer and method.

    Args:
        options: How.
        students: By scale; that of the first is moved to the device.
        teachers: By scale, on the device; none: no one teaches.
        points: What is compared beside the pictures; none: nothing.
        device: Where to compute.
        teacher_kind: What makes teachers of the networks.

    Raises:
        ValueError: The networks do not go together.
    """
    scale = next(iter(students))
    student = placed(students[scale], device)
    trained: list[nn.Parameter] = list(student.parameters())
    distillation, sizes, teacher_points = None, list[tuple[int, int]](), list[str]()
    if points is not None:
        own_points, teacher_points = points
        side = options.sizes[scale]
        maps = check_points(student, own_points, side)
        teacher_side = side * scale if teacher_kind is PrivilegedTeacher else side
        teacher_maps = check_points(teachers[scale], teacher_points, teacher_side)
        with seeded(options.seed, device):
            channels = [m.channels for m in maps], [m.channels for m in teacher_maps]
            given = named_options(options.method_options, "`method_options`")
            method = make_method(options.method, *channels, [options.mkd], given).to(device)
        sizes = [(m.height, m.width) for m in maps]
        optimizer_of_method = _meta_optimizer(options, method)
        if is_reference(options.method) and device.type != "meta":
            seen = [(t.channels, *size) for t, size in zip(teacher_maps, sizes, strict=True)]
            twice = optimizer_of_method is not None
            try_method(method, maps, seen, twice, f"`method` {options.method}")
        if method.whitens and options.kd_maps == "whitened":
            method = Whitened(method, channels[1]).to(device)
        distillation = Distillation(
            own_points,
            method,
            optimizer_of_method,
            Balance(options.kd_ratio is not None).to(device),
        )
        trained += distillation.adapters.values()
    optimizer, step_options = _optimizer(options, trained), _step_options(options, student)
    dtype, picture = torch.float32, None
    if isinstance(options, ResolvedTraining):
        dtype = getattr(torch, options.teacher_dtype)
        if options.imitates:
            picture = (options.patch_size * options.scale,) * 2
    # Networks of several scales see pictures of one size, and so are the maps.
    taught_by = {
        scale: teacher_kind(network, teacher_points, sizes, dtype, picture)
        for scale, network in teachers.items()
    }
    return {
        scale: TrainingStep(network, optimizer, taught_by.get(scale), distillation, step_options)
        for scale, network in students.items()
    }


def _meta_optimizer(options: Resolved, method: DistillationMethod) -> torch.optim.Optimizer | None:
    trained = {
        "published": method.meta_parameters(),
        "plain": [],
        "meta": list(method.parameters()),
    }[options.method_training]
    if not trained:
        return None
    return torch.optim.Adam(trained, options.meta.lr, weight_decay=options.meta.weight_decay)


def _optimizer(options: Resolved, trained: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """That of the MKD paper, section 4.1, or the student's in the code of DFSR."""
    if isinstance(options, ResolvedDataFree) and options.optimizer == "sgd":
        return torch.optim.SGD(trained, options.lr, momentum=0.9, weight_decay=1e-4)
    if options.optimizer == "muon":
        return Muon(trained, options.lr)
    return torch.optim.Adam(trained, options.lr, betas=(0.9, 0.999))


def _step_options(options: Resolved, student: nn.Module) -> StepOptions:
    if isinstance(options, ResolvedDataFree):
        largest = _DFSR_GRADIENT if options.optimizer == "sgd" else math.inf
        criterion = loss_of(student, options.criterion)
        return StepOptions(options.meta, criterion=criterion, largest_gradient=largest)
    dtype: torch.dtype = getattr(torch, options.student_dtype)
    loss = make_loss(options.loss)
    if not is_reference(options.loss):  # A function of the user's was promised colours.
        loss = loss_of(student, loss)
    return StepOptions(options.meta, dtype, loss)


def choose_points(options: Resolved, student: nn.Module, teacher: nn.Module) -> Points:
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
    are_named = any(chosen.values())
    networks = {"`student_points`": student, "`teacher_points`": teacher}
    for flag, network in networks.items():
        chosen[flag] = chosen[flag] or _default_points(network, count, flag)
    fewest = min(map(len, chosen.values()))
    if not are_named and fewest < count:
        chosen = {flag: _default_points(n, fewest, flag) for flag, n in networks.items()}
    points, teacher_points = chosen.values()
    if len(points) != len(teacher_points):
        raise ValueError(
            "`student_points` and `teacher_points` must be equally many, "
            f"got {len(points)} ({', '.join(points)}) and {len(teacher_points)} "
            f"({', '.join(teacher_points)})"
        )
    return points, teacher_points


def _default_points(network: nn.Module, count: int, flag: str) -> list[str]:
    try:
        return default_points(network, count)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def _points_of_parts(student: SRNetwork, whole: SRNetwork, points: Points) -> Points | None:
    """Those of the distillation points that a student has already; none if it has none."""
    named = [(whole.name_in(student, own), other) for own, other in zip(*points, strict=True)]
    there = [(own, other) for own, other in named if own is not None]
    return ([own for own, _ in there], [other for _, other in there]) if there else None


def _carry_method(trained: nn.Module, method: nn.Module) -> None:
    """Give a method the weights of one for fewer points."""
    state = method.state_dict()
    for name, weight in trained.state_dict().items():
        if name in state and state[name].shape == weight.shape:
            state[name] = weight
    method.load_state_dict(state)


def _make_makers(
    options: ResolvedDataFree, networks: Networks, device: torch.device
) -> dict[int, ImageMaker]:
    """What makes the images, by scale.

    Raises:
        ValueError: The teacher has no points for the discriminator to see, or the memory bank is
            too small.
    """
    makers = {}
    for index, (scale, teacher) in enumerate(networks.teachers.items()):
        placed(teacher, device)
        points = _view_points(options, teacher) if options.is_contrastive else []
        with seeded(options.seed + index, device):
            makers[scale] = ImageMaker(options, scale, teacher, points, device)
    return makers


def _view_points(options: ResolvedDataFree, teacher: nn.Module) -> list[str]:
    """Sub-modules of the teacher whose features the discriminator sees."""
    try:
        chosen = select_points(teacher, options.teacher_points)
        return chosen or default_points(teacher, _POINTS)
    except ValueError as error:
        raise ValueError(
            f"`teacher_points`: {error}; or do without: `weights.contrastive` 0"
        ) from None


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
