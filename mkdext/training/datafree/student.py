"""A data-free training from its options to its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from mkdext._system.terminal import Terminal
from mkdext.metrics import to_uint8
from mkdext.models.own import evaluation_mode, unwrapped
from mkdext.synthesis import procedural_images
from mkdext.training.data_free_options import DataFreeOptions, ResolvedDataFree, usual_data_free
from mkdext.training.datafree.image_maker import CollapseError, require_different
from mkdext.training.datafree.plan import Plan, prepare
from mkdext.training.datafree.randomness import Draw, drawn, random_for
from mkdext.training.datafree.report import save_sheet, save_summary
from mkdext.training.datafree.stages import Stage
from mkdext.training.gradient_watch import silence_in_words
from mkdext.training.loop import Done, Loop
from mkdext.training.one_at_a_time import one_at_a_time
from mkdext.training.origin import command
from mkdext.training.photographs import validation_photographs
from mkdext.training.plan import count_parameters
from mkdext.training.progress import measuring, track
from mkdext.training.rehearsal import first_and_smallest, rehearse, try_on
from mkdext.training.report import conclude
from mkdext.training.run.going_on import Run, checked_run, rates_in_words
from mkdext.training.run_directory import HISTORY, RunDirectory
from mkdext.training.schedule import phase
from mkdext.training.steps import NonFiniteError, TrainingFailed
from mkdext.training.student import Summary, finished, in_words, load_step, state_of
from mkdext.training.teacher_check import require_strong_teacher
from mkdext.training.validation import Scores, Upscaler, bicubic, measure, names_of, picture

HELD_OUT = "made images"
"""Name of the images on which a student is compared with its teacher meanwhile."""

_HELD_OUT_COUNT, _HELD_OUT_SIDE = 8, 96  # high-resolution pixels
_SAMPLES = 8


class ToMeasure(NamedTuple):
    """Pictures to measure a student on."""

    scale: int
    pairs: Sequence[tuple[Tensor, Tensor]]
    """`(lr, hr)` each, uint8."""


@one_at_a_time
def train_without_data(
    options: DataFreeOptions, console: Console | None = None, resume: bool = False
) -> Summary:
    """Distil a student on images that are made, or go on with a training that was interrupted.

    No photograph is opened but those of `val_dir` and the built-in ones, to measure student and
    teacher on.
    On a CPU a resumed training ends with the same weights, bit for bit, as one never stopped.

    Args:
        options: What to do.
        console: Where progress is shown; none: the standard output.
        resume: As for `mkdext.training.train`. A student that grows keeps its number of steps, of
            which its stages are parts.

    Returns:
        What `summary.json` in the run directory holds: as `mkdext.training.train` gives it, and
        `source` and `stages`, a list of first step and parts of the student each. With several
        scales the names of sets end with the scale.

    Raises:
        ValueError: Options, files or folders are not usable, or another training is at work in this
            process; nothing was done.
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is kept.
        CollapseError: The generator makes constant images; likewise.
        TrainingStopped: Ctrl-C, SIGTERM or SIGHUP; the checkpoint of the last step is written.
    """
    terminal = Terminal.of(console)
    run = checked_run(options, resume)
    summary = finished(run, terminal)
    if summary:
        return summary
    run.require_files()
    options, directory = run.options, run.directory
    plan = prepare(options)
    sets = photographs(options, terminal) if options.val_dir else {}
    if not run.directory.state.exists():
        check_teachers(plan, sets)
    sets |= held_out(plan)
    if not run.directory.state.exists():
        stage = plan.begin_stage(0)
        scale = options.scale[0]  # that of the stage's student
        own = [measured.pairs for measured in sets.values() if measured.scale == scale]
        shown = [pair for pairs in own for pair in first_and_smallest(pairs)]
        rehearse(stage.student, state_of(stage.step), origin(options, 0), shown)
        try_on(plan.networks.teachers[scale], "teacher", shown[1::2])
    with run.opened():
        stage, done = load_checkpoint(directory, plan)
        _tell_changes(run, stage, done.step, terminal)
        directory.keep_metrics_until(done.step)
        if done.step:
            terminal.say(f"going on after step {done.step} of {options.iterations}")
        if not done.step:
            save_samples(plan, directory, stage, 0)
        loop = DataFreeLoop(plan, directory, stage, sets, done, terminal)
        seconds = loop.run()
        return _finish(plan, directory, loop.stage, seconds, terminal)


def check_teachers(plan: Plan, sets: Mapping[str, ToMeasure]) -> None:
    """Check that the teacher is worth learning from, at every scale.

    Raises:
        ValueError: It is worse than bicubic enlargement, and that is not allowed.
    """
    if plan.options.allow_weak_teacher:
        return
    for scale, teacher in plan.networks.teachers.items():
        own = {name: measured.pairs for name, measured in sets.items() if measured.scale == scale}
        require_strong_teacher(teacher, scale, own)


def photographs(options: ResolvedDataFree, console: Terminal) -> dict[str, ToMeasure]:
    """The photographs to measure on, by name."""
    sets: dict[str, ToMeasure] = {}
    for scale in options.scale:
        found = validation_photographs(options.for_scale(scale, 1), track(console))
        sets |= {_named(name, scale, options): ToMeasure(scale, p) for name, p in found.items()}
    return sets


def held_out(plan: Plan) -> dict[str, ToMeasure]:
    """Procedural images that no student is trained on, with the teacher's pictures of them."""
    options = plan.options
    sets: dict[str, ToMeasure] = {}
    for scale, teacher in plan.networks.teachers.items():
        side = _HELD_OUT_SIDE // scale
        random = random_for(0, Draw.HELD_OUT)
        images = [to_uint8(i) for i in procedural_images(_HELD_OUT_COUNT, side, side, random)]
        pairs = [(lr, picture(teacher, lr)) for lr in images]
        sets[_named(HELD_OUT, scale, options)] = ToMeasure(scale, pairs)
    return sets


def load_checkpoint(run: RunDirectory, plan: Plan) -> tuple[Stage, Done]:
    """Begin a training, or put it back to its checkpoint.

    Raises:
        ValueError: The checkpoint is damaged or that of another run.
    """
    if not run.state.exists():
        return plan.begin_stage(0), Done(0, 0.0, {})
    state = run.checkpoint.load()
    done = Done.of(state, plan.options, plan.options.iterations)
    # Growth comes with the first step of a stage.
    index = plan.schedule.stage_at(done.step - 1)
    state.number("stage", index, index)
    stage = plan.begin_stage(index)
    load_step(state, stage.step)
    for scale, maker in plan.makers.items():
        maker.load(state.part("makers").part(scale))
    return stage, done


def _tell_changes(run: Run[ResolvedDataFree], stage: Stage, step: int, console: Terminal) -> None:
    said = run.change(step)
    taken = step - stage.first
    if said and taken > 0 and step < run.options.iterations:
        scale, now = run.options.scale[0], stage.step.options
        # Only a student of one stage is trained longer.
        length = now.iterations + run.before.iterations - run.options.iterations
        before = run.before.for_scale(scale, length)
        said += rates_in_words(
            run.changes, phase(taken - 1, before), phase(taken, now), now.iterations
        )
    if said:
        console.say(said)


def origin(options: ResolvedDataFree, steps: int, history: Sequence[Any] = ()) -> dict[str, Any]:
    """What made a student, to be kept with its weights.

    Args:
        options: Those of its last step.
        steps: How many it took.
        history: What the options were before, as `RunDirectory.history` has it.

    Example:
        >>> origin(DataFreeOptions(stages=2).resolved(), steps=500)["command"]
        'python -m mkdext.datafree --stages 2'
    """
    return {
        "command": command("datafree", options.given(), usual_data_free(options.optimizer)),
        "method": options.method,
        "teacher": str(options.teacher_weights or options.teacher or "builtin"),
        "data": [f"made images ({options.source})"],
        "steps": steps,
        **({HISTORY: [*history]} if history else {}),
    }


class DataFreeLoop(Loop):
    """The steps of a student and of the generators between them (Algorithm 1)."""

    shown = ("reconstruction", "adversarial", "image_diversity", "lr")

    def __init__(
        self,
        plan: Plan,
        run: RunDirectory,
        stage: Stage,
        sets: Mapping[str, ToMeasure],
        done: Done,
        console: Terminal,
    ) -> None:
        """Take what was planned, and where the training stands."""
        super().__init__(plan.options, plan.options.iterations, run, done, console)
        self.plan = plan
        self.stage = stage
        self.sets = sets
        self.least_diversity = min(maker.least_diversity for maker in plan.makers.values())

    @property
    def lr(self) -> float:
        """Of the student."""
        rate: float = self.stage.step.optimizer.param_groups[0]["lr"]
        return rate

    def compute(self, step: int) -> dict[str, Tensor]:
        """Let the student imitate and, when it is due, a generator improve."""
        plan, options = self.plan, self.plan.options
        if plan.schedule.stage_at(step) > self.stage.index:
            self._grow()
        scale = drawn(options.scale, options.seed, Draw.SCALE, step)
        lr = plan.makers[scale].images(step)
        self._batch = scale, lr
        values = self.stage.imitate(step, scale, lr)
        watches = [step_.watch for step_ in self.stage.steps.values()]
        silence = silence_in_words(watches, step + 1 == self.iterations)
        if silence:
            self.console.say(silence)
        if options.trains_generator and (step + 1) % options.generator.every == 0:
            chosen = drawn(options.scale, options.seed, Draw.GENERATION_SCALE, step)
            values |= plan.makers[chosen].improve(step, self.stage.students[chosen])
        return values

    def _grow(self) -> None:
        plan, before = self.plan, self.stage
        for maker in plan.makers.values():
            maker.end_stage()
        self.stage = plan.begin_stage(before.index + 1, before)
        parts = plan.schedule.parts
        self.console.say(
            f"step {self.stage.first}: the student grows from {parts[before.index]} to "
            f"{parts[self.stage.index]} parts, {count_parameters(self.stage.student):,} parameters"
        )

    def check(self, values: Mapping[str, float]) -> None:
        """Look also whether a generator has collapsed."""
        super().check(values)
        require_different(values, self.least_diversity)

    def statistics(self) -> dict[str, float]:
        """The stage, and what the method tells of itself."""
        return {"stage": self.stage.index, **self.stage.statistics(*self._batch)}

    def save(self, done: Done) -> None:
        """Write all that `load_checkpoint` needs."""
        plan, stage = self.plan, self.stage
        state = {
            **self.state(done),
            **state_of(stage.step),
            "stage": stage.index,
            "makers": {scale: maker.state_dict() for scale, maker in plan.makers.items()},
        }
        made_by = origin(plan.options, done.step, self.history)
        self.run_directory.checkpoint.save(state, unwrapped(stage.student), made_by)

    def validate(self, step: int) -> dict[str, Any]:
        """Measure the student on every set, and keep a sheet of made images."""
        scores = scores_of(self.stage, self.sets)
        self.console.say(f"step {step}: {in_words(scores)}")
        save_samples(self.plan, self.run_directory, self.stage, step)
        return {"validation": scores}

    def explained(self, error: TrainingFailed, step: int) -> str:
        """Name the learning rates and weights."""
        options, run = self.plan.options, self.run_directory
        kept = f"; {run.root} keeps the last checkpoint" if run.state.exists() else ""
        if not isinstance(error, NonFiniteError | CollapseError):
            return f"step {step}: {error}{kept}"
        rate = f"`generator.lr` (now {options.generator.lr:g})"
        if isinstance(error, CollapseError):
            weight = f"`weights.contrastive` (now {options.weights.contrastive:g})"
            advice = f"Lower {rate}, raise {weight}, or take `source` procedural"
        else:
            advice = f"Lower `lr` (now {options.lr:g})"
            advice += f" or {rate}" if options.trains_generator else ""
        return f"step {step}: {error}{kept}. {advice}, and give another `out`"


def scores_of(stage: Stage, sets: Mapping[str, ToMeasure]) -> dict[str, Scores]:
    """PSNR and SSIM of a student by set."""
    with evaluation_mode(stage.student):
        return {
            name: measure(stage.students[scale], pairs, scale, names_of(pairs))
            for name, (scale, pairs) in sets.items()
        }


@torch.no_grad()
def save_samples(plan: Plan, run: RunDirectory, stage: Stage, step: int) -> None:
    """Write, for each scale, made images as the student and as the teacher enlarge them."""
    with evaluation_mode(stage.student):
        for scale, maker in plan.makers.items():
            images = maker.samples(_SAMPLES)
            pictures = [images, stage.students[scale](images), maker.teacher(images)]
            save_sheet(run.samples / f"x{scale}_{step:07d}.png", [to_uint8(p) for p in pictures])


def _named(name: str, scale: int, options: DataFreeOptions) -> str:
    return name if len(options.scale) == 1 else f"{name} x{scale}"


def _finish(
    plan: Plan, run: RunDirectory, stage: Stage, seconds: float, console: Terminal
) -> Summary:
    options = plan.options
    validation: dict[str, dict[str, Scores]] = {}
    sets = photographs(options, console)
    with evaluation_mode(stage.student):
        for name, (scale, pairs) in sets.items():
            ways: dict[str, Upscaler] = {
                "bicubic": bicubic(scale),
                "student": stage.students[scale],
                "teacher": plan.networks.teachers[scale],
            }
            validation[name] = {
                way: measure(
                    up, measuring(console, pairs, f"{way} on {name}"), scale, names_of(pairs)
                )
                for way, up in ways.items()
            }
        lr, hr = next(iter(sets.values())).pairs[0]
        scale = options.scale[0]
        shown = {
            "bicubic": picture(bicubic(scale), lr),
            "student": picture(stage.students[scale], lr),
            "teacher": picture(plan.networks.teachers[scale], lr),
            "photograph": hr,
        }
    schedule = plan.schedule
    summary: Summary = {
        "method": options.method,
        "student": options.student,
        "source": options.source,
        "scale": scale if len(options.scale) == 1 else list(options.scale),
        "seed": options.seed,
        "iterations": options.iterations,
        "stages": [[schedule.first(i), parts] for i, parts in enumerate(schedule.parts)],
        "seconds": round(seconds, 1),
        "parameters": count_parameters(stage.student),
        "validation": validation,
    }
    if run.history:
        summary[HISTORY] = run.history
    save_summary(run, summary, shown, scale)
    conclude(
        run,
        summary,
        {
            run.picture: "made images over time, learning curves, the student at work",
            run.samples: "made images: low resolution, student and teacher below each other",
        },
        console,
    )
    return summary
