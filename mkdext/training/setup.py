"""From options to a training that is ready to run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from mkdext._system.device import checked_device
from mkdext._system.plugins import is_reference, named_options
from mkdext._system.processes import Processes, at_work, processes
from mkdext._system.terminal import Terminal, track
from mkdext.data import ImagePairs, LowImages, PatchSampler
from mkdext.data.patches import Patches, Sampler
from mkdext.data.zoom import Zoomed
from mkdext.models import (
    SuperResolver,
    accelerate,
    at_scales,
    begin_with,
    freeze,
    hand_down,
    read_metadata,
    resolve_student,
    resolve_teacher,
)
from mkdext.models.handling import evaluation_mode, layout, set_training_mode, unwrapped
from mkdext.models.user.colours import FoundColours, in_colours, with_found_colours
from mkdext.models.user.spandrel import is_of_spandrel
from mkdext.models.user.trial import check_has_parameters, check_passes_gradient, check_trains
from mkdext.models.weights.strict_loading import listing
from mkdext.training.assembly import Networks, Training, assemble, seeded
from mkdext.training.checks import (
    estimate_memory,
    is_users,
    require_memory,
    require_memory_for_banks,
)
from mkdext.training.data_free_options import DataFreeOptions, Resolved
from mkdext.training.mixture import MadeImages, MadePatches, Mixture, Recoloured
from mkdext.training.options import ResolvedTraining
from mkdext.training.photographs import training_photographs
from mkdext.training.run.directory import RunDirectory
from mkdext.training.run.live import reading_bar
from mkdext.training.sources import CachedCrops, Photographs, Source
from mkdext.training.teacher import Teacher
from mkdext.training.teacher_cache import FixedCrops, TeacherCache
from mkdext.training.teacher_pictures import PicturedPairs, Pool, Progress, TeacherPictures

# Those of ordinary patches and of fixed crops come first.
_STREAMS = {"zoom_in_share": 2, "zoom_out_share": 3, "made_share": 4}
"""Which random numbers patches are drawn by that are mixed in."""

_NO_TEACHER = {
    "teacher": "made of an encoder and the student's network",
    "teacher_options": "made of an encoder and the student's network",
    "teacher_weights": "made of an encoder and the student's network",
    "teacher_range": "which takes the colours of photographs",
    "teacher_points": "whose points are the student's",
}


def prepare(options: Resolved, networks: Networks | None = None) -> Training:
    """Make the networks and check that everything fits, before any work is done.

    Args:
        options: What to do.
        networks: Who learns from whom; none: those that the options name.

    Raises:
        ValueError: The options do not go together, networks or weights are not usable, or the
            memory does not suffice.
    """
    device = checked_device(options.device)
    networks = networks or make_networks(options)
    set_training_mode(networks.student)
    check_has_parameters(networks.student)
    _check_gradients(options, networks)
    require_memory_for_banks(options)
    rows = processes().rows(options.batch_size)
    # What is tried here is tried by every process for itself.
    with at_work(Processes()):
        memory = estimate_memory(options, networks, rows.stop - rows.start)
        require_memory(memory, options)
        training = dataclasses.replace(assemble(options, networks, device), memory=memory)
        _try_step(training)
    return training


def make_networks(options: Resolved) -> Networks:
    """The networks that the options name.

    Raises:
        ValueError: A name or weights are not usable.
    """
    scale = options.scales[0]
    with seeded(options.seed, torch.device("cpu")):
        of_student = named_options(options.student_options, "`student_options`")
        student = resolve_student(options.student, scale, of_student)
    remarks: list[str] = []
    # The checkpoint of a run that goes on has the weights.
    is_new = not RunDirectory(options.out).checkpoints
    if options.student_weights is not None and is_new:
        try:
            remarks += begin_with(unwrapped(student), options.student_weights)
        except ValueError as error:
            raise ValueError(f"`student_weights`: {error}") from None
    accelerate(student)
    at_scales(student, options.scales, "`student`")
    if options.method == "vanilla" and options.method_options:
        raise ValueError(
            f"`method_options` {' '.join(options.method_options)}: `method` vanilla has none; "
            "leave them out"
        )
    if options.privileged:
        _refuse_teacher_options(options)
    has_teacher = isinstance(options, DataFreeOptions) or options.method != "vanilla"
    hands_down = options.student_init == "teacher" and is_new
    teachers: Mapping[int, SuperResolver] = {}
    if not options.privileged and (has_teacher or hands_down):
        of_teacher = named_options(options.teacher_options, "`teacher_options`")
        teacher = resolve_teacher(options.teacher, options.teacher_weights, scale, of_teacher)
        teacher, remark = coloured_teacher(teacher, options)
        remarks += [remark] if remark else []
        if hands_down:
            hand_down(teacher, student)
            remarks.append("the student begins with parts and channels of its teacher")
        accelerate(teacher)
        if has_teacher:
            teachers = at_scales(teacher, options.scales, "`teacher`")
    if options.freeze:
        frozen = freeze(student, options.freeze)
        remarks.append(f"not trained: {listing(frozen)}")
    return Networks(student, teachers, remarks)


def coloured_teacher(teacher: SuperResolver, options: Resolved) -> FoundColours:
    """A teacher, taken for one of the colours that the options name, or that suit it best.

    Raises:
        ValueError: It cannot be one of these colours.
    """
    if options.teacher_range is not None:
        return FoundColours(in_colours(teacher, options.teacher_range, "`teacher_range`"), None)
    named = options.teacher
    # Those of this package and of spandrel are known; what is trained here takes the usual ones.
    if named is None or not is_reference(named) or is_of_spandrel(named):
        return FoundColours(teacher, None)
    weights = options.teacher_weights
    if weights is not None and read_metadata(weights) is not None:
        return FoundColours(teacher, None)
    return with_found_colours(teacher, "teacher")


def _refuse_teacher_options(options: Resolved) -> None:
    for name, reason in _NO_TEACHER.items():
        value = getattr(options, name)
        if value not in (None, ()):
            given = " ".join(value) if isinstance(value, tuple) else value
            raise ValueError(
                f"`{name}`: `method` {options.method} trains a teacher of its own, {reason}; leave "
                f"out `{name}` {given}"
            )
    if options.student_init == "teacher":
        raise ValueError(
            f"`student_init` teacher: `method` {options.method} trains a teacher of its own, from "
            "whose decoder the student begins; take `student_init` random"
        )


def _check_gradients(options: Resolved, networks: Networks) -> None:
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
        if is_users(network):
            check_passes_gradient(network, whose, learns)


def _try_step(training: Training) -> None:
    """Check that a student that is not as this package makes it can take a step.

    Raises:
        ValueError: It cannot.
    """
    student = training.networks.student
    frozen = not all(parameter.requires_grad for parameter in student.parameters())
    if not (is_users(student) or frozen):
        return
    stage = training.student_stages[0]
    stage.begin(None)
    points = stage.step.distillation.points if stage.step.distillation else []
    side = training.options.sizes[training.options.scales[0]]
    check_trains(stage.network, points, stage.step.takes_meta_gradient, (side, side))


def open_photographs(training: Training, pairs: ImagePairs | None, terminal: Terminal) -> Source:
    """What cuts patches of photographs, with what is kept of the teacher.

    Args:
        training: What was prepared.
        pairs: The photographs; none: those that the options name.
        terminal: Where progress is shown.

    Raises:
        ValueError: Photographs or the folder of what is kept of the teacher are not usable.
    """
    options, teacher = training.options, training.teacher
    assert isinstance(options, ResolvedTraining)
    device, like = torch.device(options.device), layout(training.networks.student)
    images: ImagePairs | LowImages | None = pairs
    if images is None:
        images, remarks = training_photographs(options, reading_bar(terminal))
        for remark in remarks:
            terminal.say(remark)
    processes().require_same({"photographs": _listed(images)})
    if teacher and options.teacher_compile:
        terminal.say("compiling the teacher")
        sides = options.patch_size, options.patch_size * options.scale
        rows = len(range(options.batch_size)[processes().rows(options.batch_size)])
        shapes = [(rows, 3, side, side) for side in sides]
        with evaluation_mode(teacher.network):
            zeros = (torch.zeros(shape, device=device) for shape in shapes)
            teacher.compile(*(batch.to(memory_format=like) for batch in zeros))
    if options.teacher_cache is not None and options.teacher_cache_keeps == "maps":
        source = _of_fixed_crops(options, images, teacher, device, like, terminal)
    else:
        source = _of_new_patches(options, images, teacher, device, like, terminal)
    if options.augment_colours:
        return Recoloured(source, options.seed, like, options.batch_size)
    return source


def _listed(images: ImagePairs | LowImages) -> str:
    """How many photographs there are, and what tells their names and order from others."""
    names = "\n".join(path.name for path in images.paths)
    return f"{len(images)} files, {hashlib.sha256(names.encode()).hexdigest()[:8]}"


def _of_fixed_crops(
    options: ResolvedTraining,
    images: ImagePairs | LowImages,
    teacher: Teacher | None,
    device: torch.device,
    like: torch.memory_format,
    terminal: Terminal,
) -> Source:
    sizes = (options.scale, options.patch_size, options.batch_size, options.seed)
    rows = processes().rows(options.batch_size)
    crops = FixedCrops(images, *sizes, options.teacher_cache_crops, rows)
    if teacher is None or options.privileged or options.teacher_cache is None:
        # Nothing can be kept, but trainings that are compared must see the same patches.
        return Photographs(crops, device, like)
    cache = TeacherCache(options.teacher_cache, teacher, crops, device)
    with processes().in_turn("the teacher's feature maps"):
        cache.fill(lambda batches: track(batches, "the teacher's feature maps", terminal))
    return CachedCrops(crops, cache, like)


def _of_new_patches(
    options: ResolvedTraining,
    images: ImagePairs | LowImages,
    teacher: Teacher | None,
    device: torch.device,
    like: torch.memory_format,
    terminal: Terminal,
) -> Source:
    scale, side, seed = options.scale, options.patch_size, options.seed
    kept: TeacherPictures | None = None
    if options.teacher_cache is not None and teacher and not options.privileged:
        folder, tell = options.teacher_cache, _telling(terminal)
        kept = TeacherPictures(folder, teacher, scale, device, tell, images.made_by)
    names = [path.name for path in images.paths]
    has_high = isinstance(images, ImagePairs)
    shown: Patches = images
    if kept and isinstance(images, ImagePairs):
        pairs = images
        pool = Pool("photographs", names, lambda index: pairs[index][0])
        shown = PicturedPairs(pairs, kept.of(pool))
    elif kept and isinstance(images, LowImages):
        shown = kept.of(Pool("pictures", names, images.__getitem__))
    first, count = 0, options.batch_size - sum(options.mixture.values())
    rows = processes().part(first, count)
    sampler: Sampler = PatchSampler(shown, scale, side, count, seed, rows=rows)
    ordinary = Photographs(sampler, device, like, has_high)
    others = []
    for name, more in options.mixture.items():
        stream, first, count = _STREAMS[name], first + count, more
        rows = processes().part(first, count)
        if name == "made_share":
            sampler = MadePatches(scale, side, count, seed, rows)
            crops = options.teacher_cache_crops
            made = [str(index) for index in range(crops)]
            pool = Pool(f"made-{crops}-of-{side}", made, MadeImages(side).image)
        else:
            assert isinstance(images, ImagePairs)  # Options refuse others.
            zoomed = Zoomed(images, "in" if name == "zoom_in_share" else "out")
            sampler = PatchSampler(zoomed, scale, side, count, seed, stream, rows)
            pool = Pool(f"zoomed-{zoomed.direction}", names, zoomed.image)
        if kept:
            sampler = PatchSampler(kept.of(pool), scale, side, count, seed, stream, rows)
        others.append(Photographs(sampler, device, like, has_high=False))
    return Mixture(ordinary, others) if others else ordinary


def _telling(terminal: Terminal) -> Progress:
    """Shows how far a computation has come, and says in a log, too, that it is one."""

    def telling(title: str, missing: Sequence[int]) -> Iterable[int]:
        terminal.say(f"computing {title}: {len(missing)}")
        return track(missing, title, terminal)

    return telling
