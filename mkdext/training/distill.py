"""Distillation of networks given as objects."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from torch import nn

from mkdext._system.joining import joined
from mkdext._system.one_at_a_time import one_at_a_time
from mkdext.data import Image, ImagesInMemory, degradation_of
from mkdext.models import accelerate, adapt, load_weights, read_weights
from mkdext.models.convolutions import stock_if
from mkdext.models.handling import evaluation_mode, modes_kept
from mkdext.training.assembly import Networks
from mkdext.training.options import TrainOptions
from mkdext.training.run.going_on import checked_run
from mkdext.training.run.report import Summary, finished
from mkdext.training.setup import coloured_teacher, prepare
from mkdext.training.teacher_cache import digest_of
from mkdext.training.trainer import Callback, carry_out, divide, shown_by_first

Images = str | Path | Sequence[str | Path] | Sequence[Image]
"""Folders or stores of photographs; or uint8 images, tensors `[3, H, W]` or arrays `[H, W, 3]`."""


class Distilled(NamedTuple):
    """What a distillation has come to."""

    student: nn.Module
    """The network that was given, trained."""
    history: list[dict[str, Any]]
    """The records of `metrics.jsonl`: each has a `step` and losses, gradient norms and speed, or
    under `validation` PSNR-Y in dB and SSIM-Y."""
    summary: Summary
    """As `train` returns it."""


@one_at_a_time
def distill(
    student: nn.Module,
    teacher: nn.Module,
    images: Images,
    options: TrainOptions | None = None,
    console: Console | None = None,
    resume: bool = False,
    callback: Callback | None = None,
) -> Distilled:
    """Train a student to be like a teacher: `python -m mkdext.train` for networks given as objects.

    Both are networks of RGB or Y images in [0, 1] of any size, which they enlarge `options.scale`
    times, or sharpen after they were enlarged; which one is detected by running them once. Both are
    moved to `options.device`. The run directory `options.out` serves as with the command: the same
    call, with a student of the same initial weights, continues a training that was interrupted.

    Args:
        student: Network to train, in place; in training mode, and afterwards in the mode in which
            it came.
        teacher: Network to learn from; it is not changed.
        images: What to train on.
        options: How; `student`, `teacher`, `teacher_weights` and `train_dir` are not looked at.
            None: the defaults of `TrainOptions`.
        console: Where progress is shown; default: the standard output.
        resume: As for `train`; the student may then be of other initial weights too.
        callback: As for `train`.

    Returns:
        The trained student, and how it came to be.

    Raises:
        TypeError: A network is no module, or an image is not of uint8.
        ValueError: Options, images or networks are not usable, the method takes no teacher, or
            `options.out` holds a run of others, or another training is at work in this process;
            nothing was done.
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is kept.
        TrainingStopped: Ctrl-C, SIGTERM or SIGHUP; the checkpoint of the last step is written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mkdext.models import builtin_teacher
        >>> from mkdext.training import BUILTIN_DEMO
        >>> student = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 48, 3, padding=1),
        ...     nn.PixelShuffle(4),
        ... )
        >>> photographs = Path(tempfile.mkdtemp()) / "photographs"
        >>> photographs.mkdir()
        >>> Image.effect_noise((96, 96), 64).convert("RGB").save(photographs / "noise.png")
        >>> options = dataclasses.replace(
        ...     BUILTIN_DEMO, iterations=2, student_points=("0", "2"), val_dir=(photographs,),
        ...     out=photographs.parent / "run",
        ... )
        >>> result = distill(student, builtin_teacher(), photographs, options, Console(quiet=True))
        >>> result.student is student, [record["step"] for record in result.history]
        (True, [2, 2])
    """
    options = options or TrainOptions()
    for name, network in (("student", student), ("teacher", teacher)):
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise TypeError(f"distill: {name} must be a torch.nn.Module, got {kind}")
    if options.privileged:
        raise ValueError(
            f"distill: `method` {options.method} trains a teacher of its own and takes none; call "
            "mkdext.training.train with the options alone"
        )
    for name in ("student_weights", "student_init", "freeze"):
        if getattr(options, name) != getattr(TrainOptions, name):
            raise ValueError(
                f"distill: `{name}`: the student is taken as it is given, with its weights and "
                f"`requires_grad`; leave `{name}` out"
            )
    folders = _folders(images)
    if options.train_low_dir and not folders:
        raise ValueError(
            "distill: `train_low_dir` has versions of photographs in folders, and images are given "
            "in memory; leave it out"
        )
    options = dataclasses.replace(
        options,
        student=digest_of(student),
        teacher=digest_of(teacher),
        teacher_weights=None,
        train_dir=folders or (),
    )
    with joined():
        terminal, run = shown_by_first(console), checked_run(options, resume)
        divide(run)
        options, summary = run.options, finished(run, terminal)
        if summary:
            load_weights(student, read_weights(run.directory.student))
        else:
            run.require_files()
            pairs = None if folders else _in_memory(images, options)  # type: ignore[arg-type]
            stock = stock_if(run.convolutions() == "stock")
            with stock, evaluation_mode(teacher), modes_kept(student):
                adapted = adapt(teacher, options.scale, "distill: teacher")
                coloured, remark = coloured_teacher(adapted, options)
                networks = Networks(
                    adapt(student, options.scale, "distill: student"),
                    {options.scale: coloured},
                    [remark] if remark else [],
                )
                # Not before: what is lazy makes its convolutions when it runs first.
                with accelerate(student), accelerate(teacher):
                    summary = carry_out(prepare(options, networks), run, terminal, pairs, callback)
        return Distilled(student, run.directory.records(), summary)


def _in_memory(images: Sequence[Image], options: TrainOptions) -> ImagesInMemory:
    smallest, pads = options.smallest_photograph, options.small_images == "pad"
    made_by = degradation_of(options.degradation)
    return ImagesInMemory(images, options.scale, smallest, made_by, pads)


def _folders(images: Images) -> tuple[Path, ...] | None:
    if isinstance(images, str | os.PathLike):
        return (Path(images),)
    if len(images) and all(isinstance(image, str | os.PathLike) for image in images):
        return tuple(Path(image) for image in images)  # type: ignore[arg-type]
    return None
