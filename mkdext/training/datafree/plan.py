"""From options to a data-free training that is ready to run."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from mkdext._system.device import checked_device
from mkdext.models import default_points, resolve_student, resolve_teacher, select_points
from mkdext.models.own import placed, set_training_mode
from mkdext.models.trial import check_has_parameters, check_passes_gradient
from mkdext.training.data_free_options import ResolvedDataFree
from mkdext.training.datafree.image_maker import ImageMaker
from mkdext.training.datafree.scales import at_scales
from mkdext.training.datafree.stages import ByScale, Schedule, Stage, begin_stage
from mkdext.training.memory import LiveBytes, available_bytes, reckons_inner_steps
from mkdext.training.plan import (
    choose_points,
    is_own,
    on_meta,
    require_memory,
    seeded,
    try_step,
)

_VIEW_POINTS = 4  # as many as are distilled


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training ready to run: all that the options name was found and fits."""

    options: ResolvedDataFree
    networks: ByScale
    schedule: Schedule
    makers: dict[int, ImageMaker]
    """What makes the images, by scale."""
    memory: int | None
    """Bytes that a step needs, by estimate; none: not known."""

    def begin_stage(self, index: int, before: Stage | None = None) -> Stage:
        """Let the student grow."""
        device = torch.device(self.options.device)
        return begin_stage(self.options, self.networks, self.schedule, index, device, before)


def prepare(options: ResolvedDataFree) -> Plan:
    """Make the networks and check that everything fits, before any work is done.

    Raises:
        ValueError: The options do not go together, networks or weights are not usable, or the
            memory does not suffice.
    """
    device = checked_device(options.device)
    scale = options.scale[0]
    with seeded(options.seed, torch.device("cpu")):
        student = resolve_student(options.student, scale)
    set_training_mode(student)
    check_has_parameters(student)
    at_scales(student, options.scale, "`student`")
    teacher = resolve_teacher(options.teacher, options.teacher_weights, scale)
    teachers = at_scales(teacher, options.scale, "`teacher`")
    schedule = Schedule.of(options, student)
    points = None
    if options.method != "vanilla":
        points = choose_points(options.for_scale(scale, 1), student, teacher)
    if options.trains_generator:
        for whose, network in (("student", student), ("teacher", teacher)):
            if is_own(network):
                trained = "a generator (not with `source` procedural or `generator.every` 0)"
                check_passes_gradient(network, whose, trained)
    networks = ByScale(student, teachers, points)
    require_memory_for_banks(options)
    memory = estimate_memory(options, networks)
    require_memory(memory, options)
    plan = Plan(options, networks, schedule, make_makers(options, networks, device), memory)
    if is_own(student):
        try_step(plan.begin_stage(0).step)
    return plan


def require_memory_for_banks(options: ResolvedDataFree) -> None:
    """Check that the memory banks alone fit into memory, where it is known what there is.

    Raises:
        ValueError: They do not.
    """
    needed, available = options.contrastive.bank_bytes * len(options.scale), available_bytes()
    on_cpu = torch.device(options.device).type == "cpu"
    if options.is_contrastive and on_cpu and available and needed > available:
        raise ValueError(
            f"`contrastive.bank_bytes` {options.contrastive.bank_bytes} needs {needed / 1e9:.1f} "
            f"GB of memory for all scales, {available / 1e9:.1f} GB are available: lower it"
        )


def make_makers(
    options: ResolvedDataFree, networks: ByScale, device: torch.device
) -> dict[int, ImageMaker]:
    """What makes the images, by scale.

    Raises:
        ValueError: The teacher has no points for the discriminator to see, or the memory bank is
            too small.
    """
    makers = {}
    for index, (scale, teacher) in enumerate(networks.teachers.items()):
        placed(teacher, device)
        points = view_points(options, teacher) if options.is_contrastive else []
        with seeded(options.seed + index, device):
            makers[scale] = ImageMaker(options, scale, teacher, points, device)
    return makers


def view_points(options: ResolvedDataFree, teacher: nn.Module) -> list[str]:
    """Sub-modules of the teacher whose features the discriminator sees.

    Raises:
        ValueError: Some do not exist, or none are named and the network names none.
    """
    try:
        chosen = select_points(teacher, options.teacher_points)
        return chosen or default_points(teacher, _VIEW_POINTS)
    except ValueError as error:
        raise ValueError(
            f"`teacher_points`: {error}; or do without: `weights.contrastive` 0"
        ) from None


@reckons_inner_steps
def estimate_memory(options: ResolvedDataFree, networks: ByScale) -> int | None:
    """Bytes that networks, optimizers, bank and one step take up, by a dry computation.

    Of several scales the first serves: pictures are of one size.

    Returns:
        The estimate; none where a user's network cannot be computed without numbers.

    Raises:
        ValueError: The sizes asked for are impossible, or the networks do not go together.
    """
    meta, samples, scale = torch.device("meta"), 2, options.scale[0]
    # What stages and large batches allow is not refused for their being left out here.
    few = dataclasses.replace(
        options,
        batch_size=samples,
        procedural_share=0.5,
        stages=1,
        scale=(scale,),
        contrastive=dataclasses.replace(options.contrastive, bank_every="round"),
    )
    teacher = networks.teachers[scale]
    try:
        with LiveBytes() as memory:
            dry = ByScale(on_meta(networks.student), {scale: on_meta(teacher)}, networks.points)
            stage = begin_stage(few, dry, Schedule.of(few, dry.student), 0, meta)
            maker = make_makers(few, dry, meta)[scale]
            held: int = memory.live
            size = few.size(scale)
            stage.imitate(0, scale, torch.empty(samples, 3, size, size, device=meta))
            if few.trains_generator:
                maker.improve(0, stage.student)
    except Exception as error:
        if is_own(networks.student) or is_own(teacher):
            return None
        if not isinstance(error, RuntimeError):
            raise
        raise ValueError(f"the sizes asked for are impossible: {error}") from None
    work: int = memory.peak - held
    return held + work * options.batch_size // samples
