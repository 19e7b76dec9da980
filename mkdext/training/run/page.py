"""The page that a training leaves: pictures, tables and curves in one HTML file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mkdext import __version__
from mkdext._system.terminal import Terminal, track
from mkdext.metrics import psnr_y, strongest_window
from mkdext.models.handling import count_parameters, evaluation_mode
from mkdext.page import Curves, Gallery, Page, Sheet, write_page
from mkdext.page.gallery import SIDE
from mkdext.training.assembly import Training
from mkdext.training.options_file import origin
from mkdext.training.photographs import ValidationSet
from mkdext.training.recipes import recipe_of
from mkdext.training.run.directory import RunDirectory
from mkdext.training.stages import Stage
from mkdext.training.validation import Upscaler, bicubic, names_of, picture

LOSSES = ("reconstruction", "distillation", "consistency", "adversarial", "contrastive")
DIVERSITY = ("image_diversity", "image_contrast", "embedding_diversity")
GRADIENTS = ("gradient_ratio", "meta_gradient", "meta_distillation_gradient")
AGREEMENT = ("gradient_cosine", "meta_cosine", "detail_maps", "detail_knowledge")
"""Names of what is logged and drawn together."""

_MOST = 12  # scenes that are looked at, over all sets
_REFRESH = 20  # seconds

Record = Mapping[str, Any]


def save_page(
    training: Training,
    stage: Stage,
    run: RunDirectory,
    sets: Mapping[str, ValidationSet],
    summary: Mapping[str, Any],
    terminal: Terminal,
) -> None:
    """Write `report.html` of a training that came to its end.

    Args:
        training: What was trained.
        stage: The student's last one.
        run: Where to write.
        sets: What the student was measured on.
        summary: What `summary.json` holds.
        terminal: Where progress is shown.
    """
    each = max(_MOST // max(len(sets), 1), 1)
    chosen = [
        (name, data, index)
        for name, data in sets.items()
        for index in _evenly(len(data.pairs), each)
    ]
    gallery = _gallery(training, stage, track(chosen, "pictures of the report", terminal))
    done = {
        "steps": f"{summary['iterations']:,}",
        "seconds": f"{summary['seconds']:.0f}",
    }
    page = _page(training, stage, done, run.records(), summary["validation"])
    write_page(run.page, dataclasses.replace(page, gallery=gallery))


def save_page_of_now(
    training: Training, stage: Stage, run: RunDirectory, sets: Mapping[str, ValidationSet]
) -> None:
    """Write `report.html` after a validation of a training that goes on, with one photograph.

    A browser that shows it looks for the next one by itself.

    Args:
        training: What is trained.
        stage: The student's present one.
        run: Where to write.
        sets: What the student is measured on.
    """
    records = run.records()
    scores = next(r for r in reversed(records) if "validation" in r)
    steps = f"{scores['step']:,} of {training.options.iterations:,}"
    validation = {name: {"student": score} for name, score in scores["validation"].items()}
    name, data = next(iter(sets.items()))
    gallery = _gallery(training, stage, [(name, data, 0)])
    page = _page(training, stage, {"steps": steps}, records, validation)
    write_page(run.page, dataclasses.replace(page, gallery=gallery, refresh=_REFRESH))


def _page(
    training: Training,
    stage: Stage,
    done: Mapping[str, str],
    records: Sequence[Record],
    validation: Mapping[str, Mapping[str, Any]],
) -> Page:
    """What the page of a training holds, but for pictures."""
    options = training.options
    scales = " ".join(f"x{scale}" for scale in options.scales)
    facts = {
        "recipe": recipe_of(options) or "none",
        "method": options.method,
        "student": options.student,
        "parameters": f"{count_parameters(stage.network):,}",
        **done,
        "batch": f"{options.batch_size} of {options.patch_size}x{options.patch_size}",
        "seed": str(options.seed),
        "versions": f"mkdext {__version__}, torch {torch.__version__}",
    }
    return Page(
        title=f"{options.student} {scales}, {options.method}",
        facts=facts,
        command=origin(options, options.iterations)["command"],
        tables=[_scores(validation)],
        curves=_curves(records, validation),
    )


def _gallery(
    training: Training, stage: Stage, chosen: Iterable[tuple[str, ValidationSet, int]]
) -> Gallery:
    gallery = Gallery("bicubic", "student")
    with evaluation_mode(stage.network):
        for name, data, index in chosen:
            ways: dict[str, Upscaler] = {"student": stage.networks[data.scale]}
            teaches = not (training.options.privileged or data.of_teacher)
            if data.scale in training.teachers and teaches:
                ways["teacher"] = training.teachers[data.scale]
            _add(gallery, name, data, index, ways)
    return gallery


def _evenly(count: int, most: int) -> Iterator[int]:
    shown = min(count, most)
    return (number * count // shown for number in range(shown))


def _add(
    gallery: Gallery, set_name: str, data: ValidationSet, index: int, ways: Mapping[str, Upscaler]
) -> None:
    """Add a photograph, of a large one the square where bicubic misses it most."""
    (low, high), scale = data.pairs[index], data.scale
    if max(high.shape[1:]) > SIDE:
        missed = picture(bicubic(scale), low).float() - high.float()
        window, _ = strongest_window(missed.square().mean(dim=0), SIDE)
        left, top, side = (length // scale for length in window)
        low = low[:, top : top + side, left : left + side]
        rows, columns = (slice(n * scale, (n + side) * scale) for n in (top, left))
        high = high[:, rows, columns]
    made = {way: picture(enlarge, low) for way, enlarge in ways.items()}
    pictures: dict[str, Tensor] = {"low resolution": low, "bicubic": picture(bicubic(scale), low)}
    pictures |= {**made, ("teacher" if data.of_teacher else "photograph"): high}
    notes = {n: f"{psnr_y(pictures[n], high, scale):.2f} dB" for n in ("bicubic", *made)}
    names = names_of(data.pairs)
    name = names[index] if names else f"picture {index}"
    gallery.add(f"{set_name}, {name}", pictures, notes)


def _scores(validation: Mapping[str, Mapping[str, Any]]) -> Sheet:
    ways = list(dict.fromkeys(way for scores in validation.values() for way in scores))
    header = ["photographs", *(f"{way}, {unit}" for way in ways for unit in ("PSNR-Y", "SSIM-Y"))]
    rows = [
        [
            name,
            *(
                text
                for way in ways
                for text in (
                    (_decibels(scores[way]["psnr_y"]), f"{scores[way]['ssim_y']:.4f}")
                    if way in scores
                    else ("", "")
                )
            ),
        ]
        for name, scores in validation.items()
    ]
    return Sheet("PSNR-Y and SSIM-Y at the end", header, rows)


def _decibels(psnr: float | None) -> str:
    """A score; that of photographs that are all met exactly is not finite, and none in JSON."""
    return f"{math.inf if psnr is None else psnr:.2f} dB"


def _curves(records: Sequence[Record], validation: Mapping[str, Mapping[str, Any]]) -> list[Curves]:
    curves = []
    for name, ways in validation.items():
        student = [
            (r["step"], r["validation"][name]["psnr_y"])
            for r in records
            if name in r.get("validation", {}) and r["validation"][name]["psnr_y"] is not None
        ]
        marks = {way: scores["psnr_y"] for way, scores in ways.items() if way != "student"}
        curves.append(Curves(f"PSNR-Y on {name}", {"student": student}, marks, " dB"))
    for title, names, logarithmic in (
        ("Losses", (*LOSSES, "meta_objective"), True),
        ("Gradients", GRADIENTS, True),
        ("Cosines of gradients, shares of details", AGREEMENT, False),
        ("Diversity of made images", DIVERSITY, False),
    ):
        lines = {
            # The adversarial loss is negative.
            name.replace("_", " "): [
                (r["step"], abs(r[name]) if logarithmic else r[name]) for r in records if name in r
            ]
            for name in names
        }
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            curves.append(Curves(title, lines, logarithmic=logarithmic))
    return curves
