"""A training from its options to its summary."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track as rich_track

from mkdext._files import write_text
from mkdext._memory import PeakMemory
from mkdext.data import ImagePairs, PatchSampler
from mkdext.models import features_at
from mkdext.models.own import evaluation_mode, unwrapped
from mkdext.training.config_files import config_of
from mkdext.training.options import TrainOptions
from mkdext.training.origin import origin
from mkdext.training.photographs import training_photographs, validation_photographs
from mkdext.training.plan import Plan, count_parameters, prepare
from mkdext.training.privileged import PrivilegedTeacher, train_privileged_teacher
from mkdext.training.progress import TrainingProgress, track
from mkdext.training.report import save_curves, save_strip, score_table
from mkdext.training.run_directory import RunDirectory
from mkdext.training.signals import StopSignals, TrainingStopped
from mkdext.training.steps import NonFiniteError, TrainingStep
from mkdext.training.teacher_cache import FixedCrops, TeacherCache
from mkdext.training.tensorboard import tensorboard
from mkdext.training.transfer import transferred
from mkdext.training.validation import Scores, Upscaler, bicubic, measure, picture

Summary = dict[str, Any]


def train(options: TrainOptions, console: Console | None = None) -> Summary:
    """Train a student, or go on with a training that was interrupted.

    On a CPU a resumed training ends with the same weights, bit for bit, as one never stopped.

    Args:
        options: What to do.
        console: Where progress is shown; none: the standard output.

    Returns:
        What `summary.json` in the run directory holds: `method`, `scale`, `seed`, `iterations`,
        `seconds`, `parameters`, and `validation`: `psnr_y` and `ssim_y` by set and by way of
        enlarging (`bicubic`, `student`, `teacher`). A teacher that the method has trained is called
        `privileged_teacher` instead, for it sees high resolution, and `privileged_teacher` holds
        its `iterations`, `seconds` and `parameters`.

    Raises:
        ValueError: Options, files or folders are not usable; nothing was done.
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is kept.
        TrainingStopped: Ctrl-C or SIGTERM; the checkpoint of the last step is written.
    """
    console = console or Console()
    options = options.resolved()
    config = config_of(options)
    run = RunDirectory(options.out)
    run.check(config)
    if run.summary.exists():
        return finished(run, console)
    plan = prepare(options)
    return run_plan(plan, run, config, None, console)


def finished(run: RunDirectory, console: Console) -> Summary:
    """What a training that came to its end has left."""
    console.print(f"{run.root} is finished; give another --out to train again", soft_wrap=True)
    summary: Summary = json.loads(run.summary.read_text())
    return summary


def run_plan(
    plan: Plan,
    run: RunDirectory,
    config: dict[str, Any],
    pairs: ImagePairs | None,
    console: Console,
) -> Summary:
    """Train as planned, or go on with it, on the photographs given.

    Args:
        plan: What `prepare` made.
        run: Where to write.
        config: What the run is known by, for a resume.
        pairs: Photographs to train on; none: those that the options name.
        console: Where progress is shown.
    """
    sets = validation_photographs(plan.options, track(console))
    if pairs is None:
        pairs, bad = training_photographs(plan.options, track(console))
        for image in bad:
            console.print(f"left out: {image}", highlight=False, markup=False, soft_wrap=True)
    if plan.step.distillation and plan.options.teacher_compile:
        console.print("compiling the teacher")
        teacher = plan.step.distillation.teacher
        with evaluation_mode(teacher.network):
            teacher.compile(*_batch_like(plan))
    sampler, cache = _crops(plan, pairs, console)
    with run.opened(config):
        teaching = 0.0
        if isinstance(plan.teacher, PrivilegedTeacher):
            teaching = train_privileged_teacher(
                plan.options, plan.teacher.network, plan.student, run, sampler, console
            )
        progress = load_checkpoint(run, plan) if run.state.exists() else Done(0, 0.0, {})
        run.keep_metrics_until(progress.step)
        if progress.step:
            console.print(f"going on after step {progress.step} of {plan.options.iterations}")
        seconds = _run_steps(plan, run, sampler, cache, sets, progress, console)
        return _finish(plan, run, sets, seconds, teaching, console)


class Done(NamedTuple):
    """How far a training has come."""

    step: int
    """Steps done."""
    seconds: float
    """Time spent on them."""
    values: dict[str, float]
    """The last value of everything that is logged."""


def load_checkpoint(run: RunDirectory, plan: Plan) -> Done:
    """Put a training back to its checkpoint."""
    state = run.checkpoint.load()
    plan.student.load_state_dict(state["student"])
    plan.step.optimizer.load_state_dict(state["optimizer"])
    if plan.step.distillation:
        plan.step.distillation.method.load_state_dict(state["method"])
        if plan.step.distillation.optimizer:
            plan.step.distillation.optimizer.load_state_dict(state["method_optimizer"])
    return Done(state["step"], state["seconds"], state["values"])


def save_checkpoint(run: RunDirectory, plan: Plan, done: Done) -> None:
    """Write all that `load_checkpoint` needs."""
    state = {
        **done._asdict(),
        "student": plan.student.state_dict(),
        "optimizer": plan.step.optimizer.state_dict(),
    }
    if plan.step.distillation:
        state["method"] = plan.step.distillation.method.state_dict()
        if plan.step.distillation.optimizer:
            state["method_optimizer"] = plan.step.distillation.optimizer.state_dict()
    run.checkpoint.save(state, unwrapped(plan.student), origin(plan.options, done.step))


def _run_steps(
    plan: Plan,
    run: RunDirectory,
    sampler: PatchSampler,
    cache: TeacherCache | None,
    sets: dict[str, ImagePairs],
    before: Done,
    console: Console,
) -> float:
    options, first = plan.options, before.step
    # A meta step is not due at every step; what is logged is the last one's.
    latest = dict(before.values)
    memory = PeakMemory(torch.device(options.device))
    memory.start()
    begin = time.monotonic() - before.seconds
    with (
        StopSignals() as stop,
        tensorboard(run.root / "tensorboard", first) as add_events,
        TrainingProgress(console, first, options.iterations, options.batch_size) as progress,
    ):

        def record(values: dict[str, Any]) -> None:
            run.add_metrics(values)
            add_events(values)

        def validate(step: int) -> None:
            with evaluation_mode(plan.student):
                scores = {name: measure(plan.student, p, options.scale) for name, p in sets.items()}
            record({"step": step, "validation": scores})
            progress.say(f"step {step}: {in_words(scores)}")
            _save_sample(plan, run, sets, step)
            # Whole photographs take more than a step does.
            memory.start()

        def validation_is_due(step: int) -> bool:
            return step % options.validate_every == 0 or step == options.iterations

        if first and validation_is_due(first) and not run.has_validation(first):
            validate(first)
        batches = transferred(
            sampler.batches(first, options.iterations), torch.device(options.device)
        )
        for step, (lr, hr) in enumerate(batches, first):
            hints = cache.maps(step, lr) if cache else None
            try:
                values = plan.step(step, lr, hr, hints)
            except NonFiniteError as error:
                raise NonFiniteError(_explained(error, step + 1, plan, run)) from None
            latest |= {name: value.item() for name, value in values.items()}
            latest["lr"] = plan.step.optimizer.param_groups[0]["lr"]
            done = step + 1
            last = done == options.iterations
            shown = ("reconstruction", "distillation", "lr")
            progress.update(done, {name: latest[name] for name in shown if name in latest})
            if done % options.log_every == 0 or last:
                speed, peak = round(progress.patches_per_second, 1), memory.bytes()
                costs = {"patches_per_second": speed, "peak_bytes": peak}
                statistics = method_statistics(plan.step, lr, hr, hints)
                record({"step": done, **latest, **costs, **statistics})
            if done % options.checkpoint_every == 0 or last or stop.received:
                save_checkpoint(run, plan, Done(done, time.monotonic() - begin, latest))
            if stop.received:
                raise TrainingStopped(stop.received, f"step {done}", run.root)
            if validation_is_due(done):
                validate(done)
    return time.monotonic() - begin


def _batch_like(plan: Plan) -> list[torch.Tensor]:
    options = plan.options
    sides = options.patch_size, options.patch_size * options.scale
    batches = [torch.zeros(options.batch_size, 3, s, s, device=options.device) for s in sides]
    return [batch.to(memory_format=torch.channels_last) for batch in batches]


def _crops(
    plan: Plan, pairs: ImagePairs, console: Console
) -> tuple[PatchSampler, TeacherCache | None]:
    """What the batches are made of, and the teacher's maps of it where they are kept."""
    options, distillation = plan.options, plan.step.distillation
    sizes = (options.scale, options.patch_size, options.batch_size, options.seed)
    if options.teacher_cache is None:
        return PatchSampler(pairs, *sizes), None
    crops = FixedCrops(pairs, *sizes, options.teacher_cache_crops)
    if distillation is None or options.privileged:
        # Nothing can be kept, but trainings that are compared must see the same patches.
        return crops, None
    device = torch.device(options.device)
    cache = TeacherCache(options.teacher_cache, distillation.teacher, crops, device)
    cache.fill(
        lambda batches: rich_track(
            batches,
            "the teacher's feature maps",
            console=console,
            disable=not console.is_terminal,
        )
    )
    return crops, cache


def _explained(error: NonFiniteError, step: int, plan: Plan, run: RunDirectory) -> str:
    options = plan.options
    kept = f"; the checkpoint in {run.root} is from before it" if run.state.exists() else ""
    rates = f"--lr (now {options.lr:g})"
    if plan.teacher and options.meta.inner_lr:
        rates += f" or --meta.inner-lr (now {options.meta.inner_lr:g})"
    return f"step {step}: {error}{kept}. Lower {rates} and give another --out"


def method_statistics(
    step: TrainingStep, lr: torch.Tensor, hr: torch.Tensor, hints: list[torch.Tensor] | None
) -> dict[str, float]:
    """What the method tells of itself on a batch; nothing where there is none."""
    distillation = step.distillation
    if distillation is None:
        return {}
    with torch.no_grad():
        features = features_at(step.student, distillation.student_points, lr)
        hints = hints or distillation.teacher(lr, hr)
    return distillation.method.statistics(features, hints[: len(features)])


def _save_sample(plan: Plan, run: RunDirectory, sets: dict[str, ImagePairs], done: int) -> None:
    lr, hr = next(iter(sets.values()))[0]
    with evaluation_mode(plan.student):
        pictures = {"lr": lr, "student": picture(plan.student, lr)}
    if plan.teacher:
        pictures["teacher"] = picture(plan.teacher.network, plan.teacher.source(lr, hr))
    save_strip(run.samples / f"step_{done:07d}.png", pictures | {"hr": hr})


def in_words(scores: dict[str, Scores]) -> str:
    """Scores of several sets on one line."""
    return ", ".join(
        f"{name} {score['psnr_y']:.2f} dB / {score['ssim_y']:.4f}" for name, score in scores.items()
    )


def _finish(
    plan: Plan,
    run: RunDirectory,
    sets: dict[str, ImagePairs],
    seconds: float,
    teaching: float,
    console: Console,
) -> Summary:
    options, teacher = plan.options, plan.teacher
    ways: dict[str, Upscaler] = {"bicubic": bicubic(options.scale), "student": plan.student}
    with evaluation_mode(plan.student):
        validation: dict[str, dict[str, Scores]] = {
            name: {way: measure(upscale, pairs, options.scale) for way, upscale in ways.items()}
            for name, pairs in sets.items()
        }
    if teacher:
        for name, pairs in sets.items():
            seen = ((teacher.source(lr, hr), hr) for lr, hr in pairs)
            validation[name][teacher.name] = measure(teacher.network, seen, options.scale)
    summary: Summary = {
        "method": options.method,
        "student": options.student,
        "scale": options.scale,
        "seed": options.seed,
        "iterations": options.iterations,
        "seconds": round(seconds, 1),
        "parameters": plan.student_parameters,
        "validation": validation,
    }
    if isinstance(teacher, PrivilegedTeacher):
        summary[teacher.name] = {
            "iterations": options.privileged_iterations,
            "seconds": round(teaching, 1),
            "parameters": count_parameters(teacher.network),
        }
    save_curves(run.picture, run.metrics, validation)
    write_text(run.summary, json.dumps(summary, indent=2) + "\n")
    console.print(score_table(validation))
    console.print(
        f"{options.iterations} steps in {seconds:.0f} s; written to {run.root}:", soft_wrap=True
    )
    for path, what in (
        (run.student, "the student's weights"),
        (run.summary, "the numbers above"),
        (run.picture, "the learning curves"),
        (run.samples, "low resolution, student, teacher and truth side by side"),
    ):
        console.print(f"  {path.relative_to(run.root)}: {what}", highlight=False)
    return summary
