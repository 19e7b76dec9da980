"""What a training leaves to look at: tables, strips of pictures, learning curves, a summary."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from mkdext._system.figures import figure_file, label
from mkdext._system.files import write_json
from mkdext._system.processes import processes
from mkdext._system.terminal import Terminal, text_table, track
from mkdext.data.strips import save_sheet, save_strip
from mkdext.metrics import exact_note, strongest_window, to_uint8
from mkdext.models.convolutions import convolutions_on
from mkdext.models.handling import count_parameters, evaluation_mode
from mkdext.training.assembly import Training
from mkdext.training.photographs import ValidationSet, validation_sets
from mkdext.training.recipes import recipe_of
from mkdext.training.run.directory import HISTORY, RunDirectory
from mkdext.training.run.going_on import Run, rates_in_words
from mkdext.training.run.live import reading_bar
from mkdext.training.run.page import AGREEMENT, DIVERSITY, GRADIENTS, LOSSES, save_page
from mkdext.training.stages import PrivilegedStage, Stage, StudentStage, schedules_of_part
from mkdext.training.validation import Scores, Upscaler, bicubic, measure, names_of, picture

Summary = dict[str, Any]
Record = Mapping[str, Any]

_SAMPLES = 8  # made images of a sheet
_TIMES = 5  # rows of made images in the summary
_SIDE = 128  # of a cutting of a photograph, in high-resolution pixels


def finished(run: Run[Any], terminal: Terminal) -> Summary | None:
    """What a training that came to its end has left; none if there is something to do."""
    directory, summary = run.directory, run.directory.read_summary()
    if summary and not run.changes:
        terminal.say(
            f"{directory.root} is finished; `resume` with more `iterations` trains on, another "
            "`out` begins again"
        )
        return summary
    if directory.summary.exists() and not summary:
        terminal.say(f"{directory.summary} is damaged; it is written again")
    return None


def tell_changes(
    run: Run[Any], stages: Sequence[StudentStage], step: int, terminal: Terminal
) -> None:
    """Tell of options that are others from a step on, and keep them in the run."""
    said = run.change(step)
    stage = next(stage for stage in stages if step < stage.schedule.end or stage is stages[-1])
    part, now = stage.part, stage.schedule
    if said and part.first < step < run.options.iterations:
        # Only a student that does not grow is trained longer.
        end = part.end + run.before.iterations - run.options.iterations
        distils = any(s.schedule.distillation for s in stages if s.part is part)
        schedules = schedules_of_part(run.before, part.first, end, distils)
        before = next(s for s in schedules if step - 1 < s.end or s is schedules[-1])
        said += rates_in_words(run.changes, before.at(step - 1), now.at(step), now.length)
    if said:
        terminal.say(said)


def conclude(
    training: Training,
    stage: Stage,
    run: RunDirectory,
    sets: Mapping[str, ValidationSet],
    steps: int,
    seconds: Mapping[str, float],
    terminal: Terminal,
) -> Summary:
    """Measure a training that came to its end, write its summary, and show what lies where.

    Args:
        training: What was trained.
        stage: The student's last one, after its last step.
        run: Where to write.
        sets: What the student was measured on meanwhile.
        steps: How many it took.
        seconds: Spent on the steps of each network.
        terminal: Where it is shown.
    """
    options = training.options
    if training.made:
        sets = validation_sets(options, reading_bar(terminal))
    validation = _measured(training, stage, sets, terminal)
    scales = options.scales
    summary: Summary = {
        "recipe": recipe_of(options),
        "method": options.method,
        "student": options.student,
        "scale": scales[0] if len(scales) == 1 else list(scales),
        "seed": options.seed,
        "iterations": steps,
        "seconds": round(seconds["student"], 3),
        "parameters": count_parameters(stage.network),
        "convolutions": convolutions_on(options.device),
        "validation": validation,
    }
    if training.made:
        parts = dict.fromkeys(stage.part for stage in training.student_stages)
        summary["source"] = training.made.options.source
        summary["stages"] = [[part.first, part.parts] for part in parts]
    if run.history:
        summary[HISTORY] = run.history
    for other in training.stages:
        if isinstance(other, PrivilegedStage):
            summary[other.network_name] = {
                "iterations": other.schedule.end,
                "seconds": round(seconds[other.network_name], 3),
                "parameters": count_parameters(other.network),
            }
    if not processes().is_first:
        return summary
    if training.made:
        _save_made_summary(run, summary, _at_work(training, stage, sets), scales[0])
    else:
        save_curves(run.picture, run.records(), validation)
    # The summary comes last: a run that has one is finished.
    save_page(training, stage, run, sets, summary, terminal)
    write_json(run.summary, summary)
    samples = "low resolution, student, teacher and truth side by side"
    if any(measured.of_teacher for measured in sets.values()):
        samples = "low resolution, student and teacher side by side"
    if training.made:
        samples = "made images: low resolution, student and teacher below each other"
    _show(run, summary, samples, training.made is not None, terminal)
    return summary


def _measured(
    training: Training, stage: Stage, sets: Mapping[str, ValidationSet], terminal: Terminal
) -> dict[str, dict[str, Scores]]:
    """Scores by set and way of enlarging."""
    validation: dict[str, dict[str, Scores]] = {name: {} for name in sets}

    def add(way: str, title: str, upscalers: Mapping[int, Upscaler], of_high: bool = False) -> None:
        for name, (scale, pairs, of_teacher) in sets.items():
            if of_teacher and way == training.teacher_name:
                continue  # It is the measure.
            seen = _HighTwice(pairs) if of_high else pairs
            told = functools.partial(
                track, description=f"measuring {title} on {name}", console=terminal
            )
            validation[name][way] = measure(upscalers[scale], seen, scale, names_of(pairs), told)

    add("bicubic", "bicubic", {scale: bicubic(scale) for scale in training.options.scales})
    with evaluation_mode(stage.network):
        add("student", "student", stage.networks)
    if training.teachers:
        way = training.teacher_name
        sees_high = training.options.privileged
        add(way, way.replace("_", " "), training.teachers, sees_high)
    return validation


class _HighTwice(Sequence[tuple[Tensor, Tensor]]):
    """Pairs for a network that sees the high-resolution picture."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        _, high = self._pairs[index]
        return high, high


def _at_work(
    training: Training, stage: Stage, sets: Mapping[str, ValidationSet]
) -> dict[str, Tensor]:
    """The first photograph, and what becomes of it, uint8 `[3, H, W]` by name."""
    scale = training.options.scales[0]
    low, high = next(iter(sets.values())).pairs[0]
    with evaluation_mode(stage.network):
        return {
            "bicubic": picture(bicubic(scale), low),
            "student": picture(stage.network, low),
            "teacher": picture(training.teachers[scale], low),
            "photograph": high,
        }


def _show(
    run: RunDirectory, summary: Summary, samples: str, is_made: bool, terminal: Terminal
) -> None:
    terminal.show(score_table(summary["validation"]))
    for name, ways in summary["validation"].items():
        for way, scores in ways.items():
            if "exact" in scores:
                terminal.say(f"{name}: {exact_note(way, scores['exact'])}")
    terminal.say(
        f"{summary['iterations']} steps in {summary['seconds']:.0f} s; written to {run.root}:"
    )
    curves = "the learning curves"
    if is_made:
        curves = "made images over time, learning curves, the student at work"
    files = {
        run.page: "pictures to compare, curves and this table, for a browser",
        run.student: "the student's weights",
        run.summary: "the numbers above",
        run.picture: curves,
        run.samples: samples,
    }
    for path, what in files.items():
        terminal.say(f"  {path.relative_to(run.root)}: {what}")


def scores_in_words(scores: Mapping[str, Scores]) -> str:
    """Scores of several sets on one line."""
    return ", ".join(
        f"{name} {score['psnr_y']:.2f} dB / {score['ssim_y']:.4f}" for name, score in scores.items()
    )


@torch.no_grad()
def save_samples(
    training: Training,
    networks: Mapping[int, nn.Module],
    run: RunDirectory,
    sets: Mapping[str, ValidationSet],
    step: int,
) -> None:
    """Keep what a student makes after a step: of made images, or of the first photograph.

    Args:
        training: The training.
        networks: The student by scale.
        run: Where to write.
        sets: What the student is measured on.
        step: How many steps were done.
    """
    if not processes().is_first:
        return
    if training.made:
        for scale, maker in training.made.makers.items():
            with evaluation_mode(networks[scale]):
                images = maker.samples(_SAMPLES)
                rows = [images, networks[scale](images), maker.teacher(images)]
            save_sheet(run.samples / f"x{scale}_{step:07d}.png", [to_uint8(p) for p in rows])
        return
    scale, pairs, of_teacher = next(iter(sets.values()))
    low, high = pairs[0]
    with evaluation_mode(networks[scale]):
        pictures = {"low": low, "student": picture(networks[scale], low)}
    teacher = training.teacher
    if teacher and not of_teacher:
        pictures["teacher"] = picture(teacher.network, teacher.source(low, high))
    save_strip(run.samples / f"step_{step:07d}.png", pictures | {"high": high})


def score_table(validation: Mapping[str, Mapping[str, Scores]]) -> Table:
    """PSNR-Y and SSIM-Y of every set (rows) and way of enlarging (columns)."""
    ways = list(next(iter(validation.values())))
    table = text_table("PSNR-Y (dB) / SSIM-Y", "photographs", *ways)
    for name, scores in validation.items():
        cells = [f"{scores[way]['psnr_y']:.2f} / {scores[way]['ssim_y']:.4f}" for way in ways]
        table.add_row(name, *cells)
    return table


def save_curves(
    path: Path, records: Sequence[Mapping[str, Any]], validation: Mapping[str, Any]
) -> None:
    """Draw the losses and the validation scores of a run over its steps, as a PNG.

    Below them, where features were distilled, how long the gradients of both losses are, how far
    they agree, and what share of details the teacher's maps and the knowledge have.

    Args:
        path: File to write.
        records: The run's metrics.
        validation: Final scores by set and way; all but the student's become horizontal lines.
    """
    distils = any(name in r for r in records for name in (*GRADIENTS, *AGREEMENT))
    with figure_file(path, (10, 8 if distils else 4)) as figure:
        panels = figure.subplots(2 if distils else 1, 2, squeeze=False)
        losses, scores = panels[0]
        _draw_lines(losses, records, ("privileged_reconstruction",), "privileged_step")
        _draw_lines(losses, records, ("reconstruction", "distillation", "meta_objective"))
        losses.set(title="losses", xlabel="step", yscale="log")
        for index, (name, ways) in enumerate(validation.items()):
            draw_scores(scores, records, name, ways, f"C{index}", f"student, {label(name)}")
        scores.set(title="PSNR-Y (dB)", xlabel="step")
        if distils:
            gradients, agreement = panels[1]
            _draw_lines(gradients, records, GRADIENTS)
            gradients.set(title="gradients", xlabel="step", yscale="log")
            _draw_lines(agreement, records, AGREEMENT)
            agreement.set(title="cosines of gradients, shares of details", xlabel="step")
        for axes in panels.flat:
            if axes.lines:
                axes.legend()


def _draw_lines(
    axes: Axes, records: Sequence[Record], names: Sequence[str], step: str = "step"
) -> None:
    for name in names:
        points = [(r[step], r[name]) for r in records if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))


def draw_scores(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    name: str,
    ways: Mapping[str, Mapping[str, float]],
    color: str,
    title: str,
) -> None:
    """Draw a student's PSNR-Y on a set over the steps, and lines for the others.

    What is infinite, because all photographs are met exactly, is left out.

    Args:
        axes: Where.
        records: Metrics of a run.
        name: Of the set.
        ways: Final scores by way of enlarging.
        color: Of the set.
        title: Of the student's curve.
    """
    measured = [r for r in records if name in r.get("validation", {})]
    points = [(r["step"], r["validation"][name]["psnr_y"]) for r in measured]
    points = [(step, psnr) for step, psnr in points if psnr is not None and math.isfinite(psnr)]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, marker=".", label=title)
    for way, score in ways.items():
        if way != "student" and math.isfinite(score["psnr_y"]):
            style, text = ":" if way == "bicubic" else "--", way.replace("_", " ")
            axes.axhline(
                score["psnr_y"], color=color, linestyle=style, label=f"{text}, {label(name)}"
            )


def _save_made_summary(
    run: RunDirectory, summary: Mapping[str, Any], pictures: Mapping[str, Tensor], scale: int
) -> None:
    """Draw made images over time, PSNR, losses and diversity over the steps, and a photograph.

    Args:
        run: The run, with metrics and samples.
        summary: What its `summary.json` will hold.
        pictures: A photograph and enlargements of it, uint8 `[3, H, W]` by name.
        scale: Whose samples are shown.
    """
    records = run.records()
    with figure_file(run.picture, (13, 9)) as figure:
        grid = figure.add_gridspec(2, 4)
        _draw_samples(figure.add_subplot(grid[0, :2]), run, scale)
        _draw_psnr(figure.add_subplot(grid[0, 2:]), records, summary)
        _draw_losses(figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1]), records)
        cells = grid[1, 2:].subgridspec(2, 2)
        for index, (name, image) in enumerate(_cut(pictures).items()):
            axes = figure.add_subplot(cells[divmod(index, 2)])
            axes.imshow(image, interpolation="nearest")
            axes.set(title=name, xticks=[], yticks=[])


def _draw_samples(axes: Axes, run: RunDirectory, scale: int) -> None:
    """The first row of some of the sheets below each other."""
    sheets = sorted(run.samples.glob(f"x{scale}_{'[0-9]' * 7}*.png"))
    chosen = [sheets[i] for i in sorted({*np.linspace(0, len(sheets) - 1, _TIMES, dtype=int)})]
    rows, names = [], []
    for path in chosen:
        with Image.open(path) as sheet:
            levels = np.asarray(sheet)
        # Below the images are those of student and teacher; a white line sets the steps apart.
        rows.append(
            np.pad(levels[: len(levels) // 3], ((0, 4), (0, 0), (0, 0)), constant_values=255)
        )
        names.append(f"step {int(path.stem.split('_')[1])}")
    side = len(rows[0])
    axes.imshow(np.concatenate(rows), interpolation="nearest")
    axes.set(title="made images over time", xticks=[])
    axes.set_yticks([side * (i + 0.5) for i in range(len(rows))], names)


def _draw_psnr(axes: Axes, records: Sequence[Record], summary: Mapping[str, Any]) -> None:
    measured = [r for r in records if "validation" in r]
    names = dict.fromkeys(name for r in measured for name in r["validation"])
    for index, name in enumerate(names):
        ways = summary["validation"].get(name, {})
        draw_scores(axes, records, name, ways, f"C{index}", label(name))
    for first, parts in summary["stages"][1:]:
        axes.axvline(first, color="0.6", linewidth=0.8)
        axes.annotate(
            f" {parts} parts", (first, 0.01), xycoords=("data", "axes fraction"), fontsize=7
        )
    axes.set(title="PSNR-Y of the student (dB); on made images, to the teacher's", xlabel="step")
    if axes.lines:
        axes.legend(fontsize=7)


def _draw_losses(losses: Axes, diversity: Axes, records: Sequence[Record]) -> None:
    for axes, names in ((losses, LOSSES), (diversity, DIVERSITY)):
        for name in names:
            points = [(r["step"], abs(r[name])) for r in records if name in r]
            if points:
                sign = "-" if name == "adversarial" else ""
                axes.plot(*zip(*points, strict=True), label=sign + name.replace("_", " "))
        axes.set(xlabel="step")
        if axes.lines:
            axes.legend(fontsize=7)
    losses.set(title="losses", yscale="log")
    diversity.set(title="diversity of made images")


def _cut(pictures: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.uint8]]:
    """The square where the first picture differs most from the last."""
    first, *_, last = pictures.values()
    window, _ = strongest_window((first.float() - last.float()).square().mean(dim=0), _SIDE)
    return {name: window.of(p).permute(1, 2, 0).numpy() for name, p in pictures.items()}
