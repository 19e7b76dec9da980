"""What is tried before the first step of a training, so that no step is lost by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mkdext._system.errors import is_out_of_memory
from mkdext._system.memory import LiveBytes, available_bytes
from mkdext._system.plugins import error_in_words, is_reference
from mkdext._system.saved_state import SavedState, serialized
from mkdext.data import BICUBIC, degradation_of
from mkdext.data.pairs import Pair
from mkdext.models import SRNetwork, SuperResolver, check_comes_back
from mkdext.models.handling import copy_with_tensors, evaluation_mode, unwrapped
from mkdext.training.assembly import Networks, Training, assemble
from mkdext.training.data_free_options import DataFreeOptions, Resolved
from mkdext.training.options import TrainOptions
from mkdext.training.photographs import ValidationSet
from mkdext.training.step import Batch
from mkdext.training.validation import picture, require_strong_teacher

_INNER_STEPS = 5  # that a dry computation takes at most
_DRY_SAMPLES = 2


def rehearse(
    training: Training, sets: Mapping[str, ValidationSet], origin: Mapping[str, Any]
) -> None:
    """Save a student and read it again, in memory, and let networks enlarge some photographs.

    They are left as they were.

    Args:
        training: All that was prepared.
        sets: What the student will be measured on.
        origin: What its weights file will tell of it.

    Raises:
        ValueError: Something of it fails.
    """
    stage = training.student_stages[0]
    if not stage.steps:
        stage.begin(None)
    student, scale = stage.network, training.options.scales[0]
    own = [measured.pairs for measured in sets.values() if measured.scale == scale]
    shown = [pair for pairs in own for pair in first_and_smallest(pairs)]
    try:
        check_comes_back(unwrapped(student), origin)
        kept = SavedState.of(
            serialized(stage.state_dict()), "its checkpoint", "look at its state dict"
        )
        kept.load_module("student", student)
    except (Exception, SystemExit) as error:  # Whatever code of others may raise.
        raise _failed(student, "student", "saved and read again", error) from error
    try_on(student, "student", shown)
    if not training.teachers:
        return
    teacher, network = training.teacher, training.teachers[scale]
    seen, whose = shown[1::2], "teacher"
    if teacher:
        seen = [(teacher.source(low, high), high) for low, high in seen]
        whose = teacher.name.replace("_", " ")
    try_on(network, whose, seen)  # Those of other scales are the same network.


def check_teachers(training: Training, sets: Mapping[str, ValidationSet]) -> None:
    """Check that the teacher, if one is given, is worth learning from at every scale.

    Raises:
        ValueError: It is worse than bicubic enlargement, and that is not allowed.
    """
    options = training.options
    if options.privileged or options.allow_weak_teacher:
        return
    name = options.degradation if isinstance(options, TrainOptions) else BICUBIC.name
    degradation = degradation_of(name)
    for scale, teacher in training.teachers.items():
        shown = {n: measured.pairs for n, measured in sets.items() if measured.scale == scale}
        require_strong_teacher(teacher, scale, shown, degradation)


def try_on(network: nn.Module, whose: str, pairs: Iterable[Pair]) -> None:
    """Let a network enlarge photographs.

    Raises:
        ValueError: It fails on one, or makes another size of it; `whose` begins the sentence.
    """
    with evaluation_mode(network):
        for low, high in pairs:
            try:
                made, needed = list(picture(network, low).shape), list(high.shape)
                if made != needed:
                    raise ValueError(f"it makes {made} of it, not {needed}")
            except (Exception, SystemExit) as error:
                what = f"measured on a photograph of {low.shape[2]}x{low.shape[1]}"
                raise _failed(network, whose, what, error) from error


def first_and_smallest(pairs: Sequence[Pair]) -> tuple[Pair, Pair]:
    """Two photographs of a set that tell most of what a network does with all of them."""
    sides = [min(pairs[index][0].shape[1:]) for index in range(len(pairs))]
    return pairs[0], pairs[sides.index(min(sides))]


def _failed(network: nn.Module, whose: str, what: str, error: BaseException) -> BaseException:
    if is_out_of_memory(error):
        return error
    name = type(unwrapped(network)).__name__
    return ValueError(f"{whose} {name} cannot be {what}: {error_in_words(error)}")


def estimate_memory(
    options: Resolved, networks: Networks, batch_size: int | None = None
) -> int | None:
    """Bytes that networks, optimizers, memory banks and one step take up, by a dry computation.

    It is done with few samples, because PyTorch's own second derivative of a per-sample
    convolution, which stands for the operators there, takes its time for every sample; and with
    five inner steps at most: from the fourth on, each step adds as much as the one before. Of
    several scales the first serves: pictures are of one size.

    Args:
        options: Those of the training.
        networks: Who learns from whom.
        batch_size: Rows of the batch that this process computes; none: all.

    Returns:
        The estimate; none where code of a user's cannot be run without numbers.

    Raises:
        ValueError: The sizes asked for are impossible, or the networks do not go together.
    """
    steps, batch_size = options.meta.steps, batch_size or options.batch_size
    if steps <= _INNER_STEPS:
        return _dry_bytes(options, networks, batch_size)
    fewer, more = (
        _dry_bytes(
            dataclasses.replace(options, meta=dataclasses.replace(options.meta, steps=count)),
            networks,
            batch_size,
        )
        for count in (_INNER_STEPS - 1, _INNER_STEPS)
    )
    if fewer is None or more is None:
        return None
    return more + (steps - _INNER_STEPS) * (more - fewer)


def _dry_bytes(options: Resolved, networks: Networks, batch_size: int) -> int | None:
    meta, scale = torch.device("meta"), options.scales[0]
    low = options.sizes[scale]
    if isinstance(options, DataFreeOptions):
        # What stages and large batches allow is not refused for their being left out here.
        options = dataclasses.replace(
            options,
            batch_size=_DRY_SAMPLES,
            procedural_share=0.5,
            stages=1,
            scale=(scale,),
            contrastive=dataclasses.replace(options.contrastive, bank_every="round"),
        )
    try:
        with LiveBytes() as memory:
            dry = Networks(
                _on_meta(networks.student),
                {s: _on_meta(t) for s, t in networks.teachers.items() if s == scale},
            )
            training = assemble(options, dry, meta)
            stages = [s for s in training.stages if s.schedule.first == 0]
            for stage in stages:
                stage.begin(None)
            held: int = memory.live
            image = torch.empty(_DRY_SAMPLES, 3, low, low, device=meta)
            picture = torch.empty(_DRY_SAMPLES, 3, low * scale, low * scale, device=meta)
            batch = Batch(image, None if training.made else picture, scale=scale)
            for stage in stages:
                stage.take(0, batch)
            if training.made and training.made.options.trains_generator:
                student = training.student_stages[0].network
                training.made.makers[scale].improve(0, student)
    except (Exception, SystemExit) as error:
        frozen = not all(p.requires_grad for p in networks.student.parameters())
        if frozen or _has_code_of_users(options, networks):
            return None  # A trial step on real numbers tells more.
        if not isinstance(error, RuntimeError):
            raise
        raise ValueError(f"the sizes asked for are impossible: {error}") from None
    work: int = memory.peak - held
    return held + work * batch_size // _DRY_SAMPLES


def _has_code_of_users(options: Resolved, networks: Networks) -> bool:
    names = [options.method, *([options.loss] if isinstance(options, TrainOptions) else [])]
    own = any(map(is_users, [networks.student, *networks.teachers.values()]))
    return own or any(map(is_reference, names))


def require_memory(needed: int | None, options: Resolved) -> None:
    """Check that a step fits into memory, where it is known what it needs and what there is.

    Raises:
        ValueError: It does not.
    """
    available = available_bytes()
    on_cpu = torch.device(options.device).type == "cpu"
    if on_cpu and needed and needed > available:
        steps = options.meta.steps
        fewer = f", `meta.steps` (now {steps})" if steps > 1 and options.method != "vanilla" else ""
        raise ValueError(
            f"a step needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are "
            f"available: lower `batch_size` or `patch_size`{fewer}, or take a smaller `student`"
        )


def require_memory_for_banks(options: Resolved) -> None:
    """Check that the memory banks alone fit into memory, where it is known what there is.

    Raises:
        ValueError: They do not.
    """
    if not (isinstance(options, DataFreeOptions) and options.is_contrastive):
        return
    needed, available = options.contrastive.bank_bytes * len(options.scale), available_bytes()
    on_cpu = torch.device(options.device).type == "cpu"
    if on_cpu and needed > available:
        raise ValueError(
            f"`contrastive.bank_bytes` {options.contrastive.bank_bytes} needs {needed / 1e9:.1f} "
            f"GB of memory for all scales, {available / 1e9:.1f} GB are available: lower it"
        )


def _on_meta(network: SuperResolver) -> SuperResolver:
    """A copy of a network whose tensors have shapes but no memory."""
    return copy_with_tensors(network, lambda tensor: tensor.to("meta"))


def is_users(network: nn.Module) -> bool:
    """Whether a network is none of this package."""
    return not isinstance(network, SRNetwork)
