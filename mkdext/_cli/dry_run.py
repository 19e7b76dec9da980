"""What a training would do, shown without doing it."""

from __future__ import annotations

import yaml
from torch import nn

from mkdext._system.terminal import Terminal, text_table
from mkdext.models import WHOLE, check_points
from mkdext.models.features import shown_name
from mkdext.models.handling import count_parameters
from mkdext.training.assembly import Training
from mkdext.training.checks import check_teachers
from mkdext.training.data_free_options import Options, Resolved
from mkdext.training.options import ResolvedTraining
from mkdext.training.photographs import find_to_train, validation_sets
from mkdext.training.run.directory import changes_in_words
from mkdext.training.run.going_on import checked_run
from mkdext.training.run.live import reading_bar
from mkdext.training.setup import prepare
from mkdext.training.stages import PrivilegedStage, PrivilegedTeacher
from mkdext.training.teacher import Teacher
from mkdext.training.teacher_cache import row_bytes, stored_shapes


def show_plan(options: Options, terminal: Terminal, resume: bool = False) -> None:
    """Print the resolved options, sizes and the memory that a step needs.

    Args:
        options: What would be trained.
        terminal: Where.
        resume: Whether it would go on with other options.

    Raises:
        ValueError: It would be refused.
    """
    run = checked_run(options, resume)
    run.require_files()
    resolved: Resolved = run.options
    convolutions = run.convolutions()
    if isinstance(resolved, ResolvedTraining):
        find_to_train(resolved)
    sets = validation_sets(resolved, reading_bar(terminal))
    training = prepare(resolved)
    terminal.say(yaml.safe_dump(run.config, sort_keys=False).rstrip())
    _show_sizes(training, terminal)
    for remark in training.networks.remarks:
        terminal.say(remark)
    _show_points(training, terminal)
    terminal.say(f"convolutions: {convolutions}")
    memory = "not known, for your own code cannot be run without numbers"
    if training.memory:
        memory = f"about {training.memory / 1e9:.2f} GB"
    terminal.say(f"memory of a step: {memory}")
    for stage in training.stages:
        if isinstance(stage, PrivilegedStage):
            terminal.say(
                "the teacher, which sees high resolution, is trained for "
                f"{stage.schedule.end} steps, then the student"
            )
    if isinstance(resolved, ResolvedTraining) and resolved.teacher_cache and training.teacher:
        terminal.say(f"teacher cache: {_kept(resolved, training.teacher)}")
    check_teachers(training, sets)
    if run.changes:
        terminal.say(f"from here on: {changes_in_words(run.changes)}")
    terminal.say(f"would write to {resolved.out}")


def _show_points(training: Training, terminal: Terminal) -> None:
    """Where feature maps are compared, with the shapes of these for one image."""
    step = training.student_stages[-1].step
    distillation, teacher = step.distillation, step.teacher
    if distillation is None or teacher is None or distillation.points == [WHOLE]:
        return
    scale = training.options.scales[0]
    side = training.options.sizes[scale]
    for whose, network, points, size in (
        ("student", step.student, distillation.points, side),
        (
            teacher.name.replace("_", " "),
            teacher.network,
            teacher.points,
            side * scale if isinstance(teacher, PrivilegedTeacher) else side,
        ),
    ):
        maps = check_points(network, points, size)
        shown = (
            f"{shown_name(network, name)} [{', '.join(map(str, shape))}]"
            for name, shape in zip(points, maps, strict=True)
        )
        terminal.say(f"points of the {whose}: {', '.join(shown)}")


def _kept(options: ResolvedTraining, teacher: Teacher) -> str:
    """What a teacher's cache will hold."""
    if options.teacher_cache_keeps == "pictures":
        return f"its pictures of all photographs in {options.teacher_cache}"
    shapes, crops = stored_shapes(teacher, options.patch_size), options.teacher_cache_crops
    each = row_bytes(shapes, teacher.dtype)
    gigabytes = f"{crops * each / 1e9:.2f} GB"
    return f"{crops} crops of {each:,} bytes, {gigabytes} in {options.teacher_cache}"


def _show_sizes(training: Training, terminal: Terminal) -> None:
    table = text_table("sizes", "", "parameters")
    student = f"student {training.options.student}"
    parts = {stage.part: stage for stage in training.student_stages}
    for part, stage in parts.items():
        stage.begin(None)
        grown = f", {part.parts} parts, from step {part.first}" if len(parts) > 1 else ""
        table.add_row(f"{student}{grown}", f"{count_parameters(stage.network):,}")
    if training.teachers:
        name = training.teacher.name.replace("_", " ") if training.teacher else "teacher"
        network = next(iter(training.teachers.values()))
        table.add_row(name, f"{count_parameters(network):,}")
    distillation = stage.step.distillation
    if distillation:
        method = f"method {training.options.method}"
        table.add_row(method, f"{count_parameters(distillation.method):,}")
    makers = training.made.makers if training.made else {}
    for scale, maker in makers.items():
        made_by: dict[str, nn.Module | None] = {
            "generator": maker.generator,
            "discriminator": maker.discriminator,
        }
        for what, made in made_by.items():
            if made:
                table.add_row(f"{what} x{scale}", f"{count_parameters(made):,}")
    terminal.show(table)
    for scale, maker in makers.items():
        if maker.discriminator:
            terminal.say(
                f"memory bank x{scale}: {maker.bank.capacity} images of {4 * maker.bank.width} "
                f"bytes, {maker.bank.nbytes:,} bytes"
            )
