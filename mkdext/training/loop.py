"""A training from its options to its summary."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mkdext.data import ImagePairs, PatchSampler
from mkdext.models import features_at
from mkdext.training.config_files import config_of
from mkdext.training.options import TrainOptions
from mkdext.training.photographs import training_photographs, validation_photographs
from mkdext.training.plan import Plan, prepare
from mkdext.training.progress import TrainingProgress, track
from mkdext.training.report import save_curves, save_strip, score_table
from mkdext.training.run_directory import RunDirectory, write_text
from mkdext.training.signals import StopSignals
from mkdext.training.steps import NonFiniteError
from mkdext.training.tensorboard import tensorboard
from mkdext.training.validation import Scores, Upscaler, bicubic, measure, picture

Summary = dict[str, Any]


class TrainingStopped(Exception):
    """The training was asked to stop; its checkpoint is written."""

    def __init__(self, signal_number: int, step: int, out: Path) -> None:
        """Tell what stopped it and where."""
        super().__init__(f"stopped after step {step}; the same command goes on from {out}")
        self.signal_number = signal_number


def train(options: TrainOptions, console: Console | None = None) -> Summary:
    """Train a student, or go on with a training that was interrupted.

    On a CPU a resumed training ends with the same weights, bit for bit, as one never stopped.

    Args:
        options: What to do.
        console: Where progress is shown; none: the standard output.

    Returns:
        What `summary.json` in the run directory holds: `method`, `scale`, `seed`, `iterations`,
        `seconds`, `parameters`, and `validation`: `psnr_y` and `ssim_y` by set and by way of
        enlarging (`bicubic`, `student`, `teacher`).

    Raises:
        ValueError: Options, files or folders are not usable; nothing was done.
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is kept.
        TrainingStopped: Ctrl-C or SIGTERM; the checkpoint of the last step is written.
    """
    console = console or Console()
    plan = prepare(options)
    sets = validation_photographs(options, track(console))
    pairs, bad = training_photographs(options, track(console))
    for image in bad:
        console.print(f"left out: {image}", highlight=False, markup=False, soft_wrap=True)
    run = RunDirectory(options.out)
    resumed = run.open(config_of(options))
    if run.summary.exists():
        console.print(f"{run.root} is finished; give another --out to train again", soft_wrap=True)
        summary: Summary = json.loads(run.summary.read_text())
        return summary
    first, seconds = load_checkpoint(run, plan) if resumed else (0, 0.0)
    if first:
        console.print(f"going on after step {first} of {options.iterations}")
    seconds += _run_steps(plan, run, pairs, sets, first, seconds, console)
    return _finish(plan, run, sets, seconds, console)


def load_checkpoint(run: RunDirectory, plan: Plan) -> tuple[int, float]:
    """Put a training back to its checkpoint.

    Returns:
        Steps done and seconds spent on them.
    """
    state = run.load_state()
    plan.student.load_state_dict(state["student"])
    plan.step.optimizer.load_state_dict(state["optimizer"])
    if plan.step.distillation:
        plan.step.distillation.method.load_state_dict(state["method"])
        plan.step.distillation.optimizer.load_state_dict(state["method_optimizer"])
    run.keep_metrics_until(state["step"])
    return state["step"], state["seconds"]


def save_checkpoint(run: RunDirectory, plan: Plan, step: int, seconds: float) -> None:
    """Write all that `load_checkpoint` needs."""
    state = {
        "step": step,
        "seconds": seconds,
        "student": plan.student.state_dict(),
        "optimizer": plan.step.optimizer.state_dict(),
    }
    if plan.step.distillation:
        state["method"] = plan.step.distillation.method.state_dict()
        state["method_optimizer"] = plan.step.distillation.optimizer.state_dict()
    run.save_state(state, plan.student.state_dict())


def _run_steps(
    plan: Plan,
    run: RunDirectory,
    pairs: ImagePairs,
    sets: dict[str, ImagePairs],
    first: int,
    seconds: float,
    console: Console,
) -> float:
    options = plan.options
    sampler = PatchSampler(
        pairs, options.scale, options.patch_size, options.batch_size, options.seed
    )
    begin = time.monotonic()
    with (
        StopSignals() as stop,
        tensorboard(run.root / "tensorboard") as add_events,
        TrainingProgress(console, first, options.iterations, options.batch_size) as progress,
    ):

        def record(values: dict[str, Any]) -> None:
            run.add_metrics(values)
            add_events(values)

        for step, (lr, hr) in enumerate(sampler.batches(first, options.iterations), first):
            lr, hr = (
                side.to(options.device, memory_format=torch.channels_last) for side in (lr, hr)
            )
            try:
                values = {name: value.item() for name, value in plan.step(step, lr, hr).items()}
            except NonFiniteError as error:
                raise NonFiniteError(_explained(error, step + 1, plan, run)) from None
            done = step + 1
            last = done == options.iterations
            rate = plan.step.optimizer.param_groups[0]["lr"]
            shown = {n: values[n] for n in ("reconstruction", "distillation") if n in values}
            progress.update(done, shown | {"lr": rate})
            if done % options.log_every == 0 or last:
                speed = round(progress.patches_per_second, 1)
                values |= {"lr": rate, "patches_per_second": speed}
                record({"step": done, **values, **_method_statistics(plan, lr)})
            if done % options.validate_every == 0 or last:
                scores = {name: measure(plan.student, p, options.scale) for name, p in sets.items()}
                record({"step": done, "validation": scores})
                progress.say(f"step {done}: {_in_words(scores)}")
                _save_sample(plan, run, sets, done)
            if done % options.checkpoint_every == 0 or last or stop.received:
                save_checkpoint(run, plan, done, seconds + time.monotonic() - begin)
            if stop.received and not last:
                raise TrainingStopped(stop.received, done, run.root)
    return time.monotonic() - begin


def _explained(error: NonFiniteError, step: int, plan: Plan, run: RunDirectory) -> str:
    options = plan.options
    kept = f"; the checkpoint in {run.root} is from before it" if run.state.exists() else ""
    rates = f"--lr (now {options.lr:g})"
    if plan.teacher:
        rates += f" or --meta.inner-lr (now {options.meta.inner_lr:g})"
    return f"step {step}: {error}{kept}. Lower {rates}"


def _method_statistics(plan: Plan, lr: torch.Tensor) -> dict[str, float]:
    distillation = plan.step.distillation
    if distillation is None:
        return {}
    with torch.no_grad():
        features = features_at(plan.student, distillation.student_points, lr)
        hints = plan.step.teacher_features(distillation, lr)
    return distillation.method.statistics(features, hints)


def _save_sample(plan: Plan, run: RunDirectory, sets: dict[str, ImagePairs], done: int) -> None:
    lr, hr = next(iter(sets.values()))[0]
    pictures = {"lr": lr, "student": picture(plan.student, lr)}
    if plan.teacher:
        pictures["teacher"] = picture(plan.teacher, lr)
    save_strip(run.samples / f"step_{done:07d}.png", pictures | {"hr": hr})


def _in_words(scores: dict[str, Scores]) -> str:
    return ", ".join(
        f"{name} {score['psnr_y']:.2f} dB / {score['ssim_y']:.4f}" for name, score in scores.items()
    )


def _finish(
    plan: Plan, run: RunDirectory, sets: dict[str, ImagePairs], seconds: float, console: Console
) -> Summary:
    options = plan.options
    ways: dict[str, Upscaler] = {"bicubic": bicubic(options.scale), "student": plan.student}
    if plan.teacher:
        ways["teacher"] = plan.teacher
    validation: dict[str, dict[str, Scores]] = {
        name: {way: measure(upscale, pairs, options.scale) for way, upscale in ways.items()}
        for name, pairs in sets.items()
    }
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
