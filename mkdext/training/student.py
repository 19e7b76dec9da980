"""A training from its options to its summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mkdext._system.terminal import Terminal
from mkdext._system.terminal import track as shown_track
from mkdext.data import ImagePairs, PatchSampler
from mkdext.models import features_at
from mkdext.models.own import evaluation_mode, layout, unwrapped
from mkdext.training.gradient_watch import silence_in_words
from mkdext.training.loop import Done, Loop
from mkdext.training.one_at_a_time import one_at_a_time
from mkdext.training.options import ResolvedTraining, TrainOptions
from mkdext.training.origin import origin
from mkdext.training.photographs import training_photographs, validation_photographs
from mkdext.training.plan import Plan, count_parameters, prepare
from mkdext.training.privileged import PrivilegedTeacher, train_privileged_teacher
from mkdext.training.progress import measuring, track
from mkdext.training.rehearsal import first_and_smallest, rehearse, try_on
from mkdext.training.report import conclude, save_curves, save_strip
from mkdext.training.run.going_on import Run, checked_run, rates_in_words
from mkdext.training.run_directory import HISTORY, RunDirectory
from mkdext.training.saved_state import SavedState
from mkdext.training.schedule import phase
from mkdext.training.steps import NonFiniteError, TrainingFailed, TrainingStep
from mkdext.training.teacher_cache import FixedCrops, TeacherCache
from mkdext.training.teacher_check import require_strong_teacher
from mkdext.training.transfer import transferred
from mkdext.training.validation import Scores, Upscaler, bicubic, measure, names_of, picture

Summary = dict[str, Any]


@one_at_a_time
def train(options: TrainOptions, console: Console | None = None, resume: bool = False) -> Summary:
    """Train a student, or go on with a training that was interrupted.

    On a CPU a resumed training ends with the same weights, bit for bit, as one never stopped.

    Args:
        options: What to do.
        console: Where progress is shown; none: the standard output.
        resume: Go on with the run in `options.out`, also a finished one, with options some of which
            may be others from here on, such as `iterations` or `lr`. What that means for the
            learning rate: `mkdext.training.run.going_on`.

    Returns:
        What `summary.json` in the run directory holds: `method`, `scale`, `seed`, `iterations`,
        `seconds`, `parameters`, and `validation`: `psnr_y` and `ssim_y` by set and by way of
        enlarging (`bicubic`, `student`, `teacher`). A teacher that the method has trained is called
        `privileged_teacher` instead, for it sees high resolution, and `privileged_teacher` holds
        its `iterations`, `seconds` and `parameters`.

    Raises:
        ValueError: Options, files or folders are not usable, or another training is at work in this
            process; nothing was done.
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is kept.
        TrainingStopped: Ctrl-C, SIGTERM or SIGHUP; the checkpoint of the last step is written.
    """
    terminal = Terminal.of(console)
    run = checked_run(options, resume)
    summary = finished(run, terminal)
    if summary:
        return summary
    run.require_files()
    return run_plan(prepare(run.options), run, None, terminal)


def check_teacher(plan: Plan, sets: Mapping[str, ImagePairs]) -> None:
    """Check that the teacher, if there is one that is given, is worth learning from.

    Raises:
        ValueError: It is worse than bicubic enlargement, and that is not allowed.
    """
    options, teacher = plan.options, plan.teacher
    if teacher is not None and not (options.privileged or options.allow_weak_teacher):
        require_strong_teacher(teacher.network, options.scale, sets)


def finished(run: Run[Any], console: Terminal) -> Summary | None:
    """What a training that came to its end has left; none if there is something to do."""
    directory, summary = run.directory, run.directory.read_summary()
    if summary and not run.changes:
        console.say(
            f"{directory.root} is finished; `resume` with more `iterations` trains on, another "
            "`out` begins again"
        )
        return summary
    if directory.summary.exists() and not summary:
        console.say(f"{directory.summary} is damaged; it is written again")
    return None


def run_plan(
    plan: Plan, run: Run[ResolvedTraining], pairs: ImagePairs | None, console: Terminal
) -> Summary:
    """Train as planned, or go on with it, on the photographs given.

    Args:
        plan: What `prepare` made.
        run: Where to write, and what is different from now on.
        pairs: Photographs to train on; none: those that the options name.
        console: Where progress is shown.
    """
    sets = validation_photographs(plan.options, track(console))
    if not run.directory.state.exists():
        check_teacher(plan, sets)
        shown = [pair for pairs_ in sets.values() for pair in first_and_smallest(pairs_)]
        rehearse(plan.student, state_of(plan.step), origin(plan.options, 0), shown)
        if plan.teacher:
            seen = [(plan.teacher.source(lr, hr), hr) for lr, hr in shown[1::2]]
            try_on(plan.teacher.network, plan.teacher.name.replace("_", " "), seen)
    if pairs is None:
        pairs, bad = training_photographs(plan.options, track(console))
        for image in bad:
            console.say(f"left out: {image}")
    if plan.step.distillation and plan.options.teacher_compile:
        console.say("compiling the teacher")
        teacher = plan.step.distillation.teacher
        with evaluation_mode(teacher.network):
            teacher.compile(*_batch_like(plan))
    sampler, cache = _crops(plan, pairs, console)
    directory = run.directory
    with run.opened():
        progress = load_checkpoint(directory, plan)
        _tell_changes(run, progress.step, console)
        directory.keep_metrics_until(progress.step)
        teaching = 0.0
        if isinstance(plan.teacher, PrivilegedTeacher):
            teaching = train_privileged_teacher(
                plan.options, plan.teacher.network, plan.student, directory, sampler, console
            )
            load_checkpoint(directory, plan)
        if progress.step:
            console.say(f"going on after step {progress.step} of {plan.options.iterations}")
        seconds = StudentLoop(plan, directory, sampler, cache, sets, progress, console).run()
        return _finish(plan, directory, sets, seconds, teaching, console)


def load_checkpoint(run: RunDirectory, plan: Plan) -> Done:
    """Put a training back to its checkpoint; without one it is at its beginning.

    Raises:
        ValueError: The checkpoint is damaged or that of another run.
    """
    if not run.state.exists():
        return Done(0, 0.0, {})
    state = run.checkpoint.load()
    done = Done.of(state, plan.options, plan.options.iterations)
    load_step(state, plan.step)
    return done


def load_step(state: SavedState, step: TrainingStep) -> None:
    """Give a student, its method and their optimizers what `state_of` kept of them."""
    state.load_module("student", step.student)
    state.load_optimizer("optimizer", step.optimizer)
    if step.distillation:
        state.load_module("method", step.distillation.method)
        if step.distillation.optimizer:
            state.load_optimizer("method_optimizer", step.distillation.optimizer)


def state_of(step: TrainingStep) -> dict[str, Any]:
    """What `load_step` needs."""
    state = {"student": step.student.state_dict(), "optimizer": step.optimizer.state_dict()}
    if step.distillation:
        state["method"] = step.distillation.method.state_dict()
        if step.distillation.optimizer:
            state["method_optimizer"] = step.distillation.optimizer.state_dict()
    return state


def _tell_changes(run: Run[ResolvedTraining], step: int, console: Terminal) -> None:
    said = run.change(step)
    if said and 0 < step < run.options.iterations:
        before, now = phase(step - 1, run.before), phase(step, run.options)
        said += rates_in_words(run.changes, before, now, run.options.iterations)
    if said:
        console.say(said)


class StudentLoop(Loop):
    """The steps of a student."""

    shown = ("reconstruction", "distillation", "lr")

    def __init__(
        self,
        plan: Plan,
        run: RunDirectory,
        sampler: PatchSampler,
        cache: TeacherCache | None,
        sets: Mapping[str, ImagePairs],
        done: Done,
        console: Terminal,
    ) -> None:
        """Take what was planned, what it is trained on and measured on."""
        super().__init__(plan.options, plan.options.iterations, run, done, console)
        self.plan = plan
        self.cache = cache
        self.sets = sets
        batches: Iterator[tuple[Tensor, ...]] = sampler.batches(done.step, self.iterations)
        if cache:
            # Looked up before they are sent, where a GPU is not waited for.
            numbered = enumerate(batches, done.step)
            batches = ((lr, hr, cache.rows(step, lr)) for step, (lr, hr) in numbered)
        self.batches = transferred(batches, torch.device(plan.options.device), layout(plan.student))

    @property
    def lr(self) -> float:
        """Of the student."""
        rate: float = self.plan.step.optimizer.param_groups[0]["lr"]
        return rate

    def compute(self, step: int) -> dict[str, Tensor]:
        """Take a step on the next batch."""
        low, high, *rows = next(self.batches)
        self._batch = low, high
        self._hints = self.cache.maps(*rows) if self.cache else None
        values = self.plan.step(step, low, high, self._hints)
        silence = silence_in_words([self.plan.step.watch], step + 1 == self.iterations)
        if silence:
            self.console.say(silence)
        return values

    def statistics(self) -> dict[str, float]:
        """What the method tells of itself."""
        low, high = self._batch
        return method_statistics(self.plan.step, low, high, self._hints)

    def save(self, done: Done) -> None:
        """Write all that `load_checkpoint` needs."""
        state = {**self.state(done), **state_of(self.plan.step)}
        made_by = origin(self.plan.options, done.step, self.history)
        self.run_directory.checkpoint.save(state, unwrapped(self.plan.student), made_by)

    def validate(self, step: int) -> dict[str, Any]:
        """Measure the student on every set, and keep a sample."""
        student, scale = self.plan.student, self.plan.options.scale
        with evaluation_mode(student):
            scores = {
                name: measure(student, pairs, scale, names_of(pairs))
                for name, pairs in self.sets.items()
            }
        self.console.say(f"step {step}: {in_words(scores)}")
        self._save_sample(step)
        return {"validation": scores}

    def _save_sample(self, step: int) -> None:
        plan = self.plan
        lr, hr = next(iter(self.sets.values()))[0]
        with evaluation_mode(plan.student):
            pictures = {"lr": lr, "student": picture(plan.student, lr)}
        if plan.teacher:
            pictures["teacher"] = picture(plan.teacher.network, plan.teacher.source(lr, hr))
        path = self.run_directory.samples / f"step_{step:07d}.png"
        save_strip(path, pictures | {"hr": hr})

    def explained(self, error: TrainingFailed, step: int) -> str:
        """Name the learning rates."""
        options, run = self.plan.options, self.run_directory
        kept = f"; {run.root} keeps the last checkpoint" if run.state.exists() else ""
        if not isinstance(error, NonFiniteError):
            return f"step {step}: {error}{kept}"
        rates = f"`lr` (now {options.lr:g})"
        if self.plan.teacher and options.meta.inner_lr:
            rates += f" or `meta.inner_lr` (now {options.meta.inner_lr:g})"
        return f"step {step}: {error}{kept}. Lower {rates} and give another `out`"


def _batch_like(plan: Plan) -> list[torch.Tensor]:
    options = plan.options
    sides = options.patch_size, options.patch_size * options.scale
    batches = [torch.zeros(options.batch_size, 3, s, s, device=options.device) for s in sides]
    return [batch.to(memory_format=layout(plan.student)) for batch in batches]


def _crops(
    plan: Plan, pairs: ImagePairs, console: Terminal
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
    cache.fill(lambda batches: shown_track(batches, "the teacher's feature maps", console))
    return crops, cache


def method_statistics(
    step: TrainingStep, lr: torch.Tensor, hr: torch.Tensor, hints: list[torch.Tensor] | None
) -> dict[str, float]:
    """What the method tells of itself on a batch; nothing where there is none."""
    distillation = step.distillation
    if distillation is None:
        return {}
    with torch.no_grad(), evaluation_mode(step.student):
        features = features_at(step.student, distillation.student_points, lr)
        hints = hints or distillation.teacher(lr, hr)
    return distillation.method.statistics(features, hints[: len(features)])


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
    console: Terminal,
) -> Summary:
    options, teacher = plan.options, plan.teacher
    ways: dict[str, Upscaler] = {"bicubic": bicubic(options.scale), "student": plan.student}
    with evaluation_mode(plan.student):
        validation: dict[str, dict[str, Scores]] = {
            name: {
                way: measure(
                    up,
                    measuring(console, pairs, f"{way} on {name}"),
                    options.scale,
                    names_of(pairs),
                )
                for way, up in ways.items()
            }
            for name, pairs in sets.items()
        }
    if teacher:
        for name, pairs in sets.items():
            shown = measuring(console, pairs, f"{teacher.name.replace('_', ' ')} on {name}")
            seen = ((teacher.source(lr, hr), hr) for lr, hr in shown)
            validation[name][teacher.name] = measure(
                teacher.network, seen, options.scale, names_of(pairs)
            )
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
    if run.history:
        summary[HISTORY] = run.history
    if isinstance(teacher, PrivilegedTeacher):
        summary[teacher.name] = {
            "iterations": options.privileged_iterations,
            "seconds": round(teaching, 1),
            "parameters": count_parameters(teacher.network),
        }
    save_curves(run.picture, run.records(), validation)
    conclude(
        run,
        summary,
        {
            run.picture: "the learning curves",
            run.samples: "low resolution, student, teacher and truth side by side",
        },
        console,
    )
    return summary
