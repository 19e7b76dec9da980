"""What a training leaves to look at: tables, strips of pictures, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from mkdext._system.figures import figure_file, label
from mkdext._system.files import atomic_write, write_json
from mkdext._system.terminal import Terminal, text_table
from mkdext.metrics import exact_note
from mkdext.training.run_directory import RunDirectory
from mkdext.training.validation import Scores

STRIP_SIDE = 160
"""Width and height of each picture of a strip, in high-resolution pixels."""


def score_table(validation: Mapping[str, Mapping[str, Scores]]) -> Table:
    """PSNR-Y and SSIM-Y of every set (rows) and way of enlarging (columns)."""
    ways = list(next(iter(validation.values())))
    table = text_table("PSNR-Y (dB) / SSIM-Y", "photographs", *ways)
    for name, scores in validation.items():
        cells = [f"{scores[way]['psnr_y']:.2f} / {scores[way]['ssim_y']:.4f}" for way in ways]
        table.add_row(name, *cells)
    return table


def save_strip(path: Path, pictures: Mapping[str, Tensor]) -> None:
    """Write the centres of several pictures of one scene side by side, as a PNG.

    Args:
        path: File to write.
        pictures: uint8 `[3, H, W]` by name, in the order from left to right; smaller ones, such as
            the low-resolution image, are enlarged without interpolation to the size of the largest.
    """
    height, width = max(tuple(p.shape[1:]) for p in pictures.values())
    side = min(STRIP_SIDE, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    columns = [
        functional.interpolate(p[None], size=(height, width), mode="nearest-exact")[0]
        for p in pictures.values()
    ]
    strip = torch.cat([c[:, top : top + side, left : left + side] for c in columns], dim=2)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        Image.fromarray(strip.permute(1, 2, 0).numpy()).save(file, "png")


def save_curves(
    path: Path, records: Sequence[Mapping[str, Any]], validation: Mapping[str, Any]
) -> None:
    """Draw the losses and the validation scores of a run over its steps, as a PNG.

    Args:
        path: File to write.
        records: The run's metrics.
        validation: Final scores by set and way; all but the student's become horizontal lines.
    """
    with figure_file(path, (10, 4)) as figure:
        losses, scores = figure.subplots(1, 2)
        for name, step in (
            ("privileged_reconstruction", "privileged_step"),
            ("reconstruction", "step"),
            ("distillation", "step"),
            ("meta_objective", "step"),
        ):
            points = [(r[step], r[name]) for r in records if name in r]
            if points:
                losses.plot(*zip(*points, strict=True), label=name.replace("_", " "))
        losses.set(title="losses", xlabel="step", yscale="log")
        if losses.lines:
            losses.legend()
        for index, (name, ways) in enumerate(validation.items()):
            draw_scores(scores, records, name, ways, f"C{index}", f"student, {label(name)}")
        scores.set(title="PSNR-Y (dB)", xlabel="step")
        if scores.lines:
            scores.legend()


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


def conclude(
    run: RunDirectory, summary: Mapping[str, Any], pictures: Mapping[Path, str], console: Terminal
) -> None:
    """Write the summary of a finished training, and show the scores and what lies where.

    Args:
        run: Where to write.
        summary: `iterations`, `seconds`, `validation` and whatever else is to be kept.
        pictures: What was drawn and is below the run directory.
        console: Where it is shown.
    """
    write_json(run.summary, summary)
    console.show(score_table(summary["validation"]))
    for name, ways in summary["validation"].items():
        for way, scores in ways.items():
            if "exact" in scores:
                console.say(f"{name}: {exact_note(way, scores['exact'])}")
    console.say(
        f"{summary['iterations']} steps in {summary['seconds']:.0f} s; written to {run.root}:"
    )
    files = {run.student: "the student's weights", run.summary: "the numbers above"}
    for path, what in (files | dict(pictures)).items():
        console.say(f"  {path.relative_to(run.root)}: {what}")
