"""Crops of photographs where the methods of a comparison differ most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mkdext._system.files import fitting
from mkdext._system.plugins import named_options
from mkdext._system.terminal import Terminal
from mkdext._system.terminal import track as shown_track
from mkdext.comparison.cells import as_folder
from mkdext.comparison.results import Result
from mkdext.inference.contact_sheet import ContactSheet
from mkdext.metrics import Window, psnr_y, strongest_window
from mkdext.models import load_weights, read_weights, resolve_student, resolve_teacher
from mkdext.models.handling import unwrapped
from mkdext.page import Gallery
from mkdext.training import TrainOptions
from mkdext.training.photographs import ValidationSet, held_out_sets, validation_sets
from mkdext.training.run.going_on import options_there
from mkdext.training.run.live import reading_bar
from mkdext.training.validation import Upscaler, bicubic, names_of, picture

_PICTURES = 10  # looked at in a set, evenly spaced, because every network enlarges each of them
_ROWS = 3  # shown of a set


class _Differing(NamedTuple):
    """A photograph as the methods enlarge it."""

    variance: float
    """Between the methods, in the window."""
    window: Window
    name: str
    low: Tensor
    high: Tensor
    pictures: dict[str, tuple[Tensor, float]]
    """uint8 `[3, H, W]` and PSNR-Y in dB of the whole, by way of enlarging."""


def save_crops(
    out: Path, results: Sequence[Result], console: Terminal, gallery: Gallery
) -> list[Path]:
    """Write a sheet of crops for each student of several methods and each set.

    A crop is the window of a photograph where the methods' pictures have the largest variance; the
    photographs of a set with the largest are shown. Networks are of the first seed that all methods
    of the student have.

    Args:
        out: The folder of the comparison.
        results: Its finished trainings.
        console: Where progress is shown.
        gallery: Where these photographs are added, in low resolution, of each way and as they are.

    Returns:
        The files.

    Raises:
        ValueError: A photograph or a network's weights cannot be used any more.
    """
    jobs = {
        student: chosen
        for student in dict.fromkeys(result.student for result in results)
        if len(chosen := _of_one_seed([r for r in results if r.student == student])) > 1
    }
    if not jobs:
        return []
    first = results[0]
    sets = _sets(first, console)
    files = []
    for student, chosen in jobs.items():
        networks = {result.method: _network(result) for result in chosen}
        for name, (_, pairs, of_teacher) in sets.items():
            found = shown_track(
                _differing(pairs, networks, first.scale),
                f"crops of {student}, {name}",
                console,
                total=min(len(pairs), _PICTURES),
            )
            most: list[_Differing] = []
            for photograph in found:
                most = sorted([*most, photograph], key=lambda p: -p.variance)[:_ROWS]
            sheet = ContactSheet(["teacher" if of_teacher else "HR", "bicubic", *networks])
            for photograph in most:
                sheet.add(photograph.name, photograph.high, photograph.pictures, photograph.window)
                ways = photograph.pictures
                gallery.add(
                    f"{student}, {name}, {photograph.name}",
                    {
                        "low resolution": photograph.low,
                        **{way: sr for way, (sr, _) in ways.items()},
                        ("teacher" if of_teacher else "photograph"): photograph.high,
                    },
                    {way: f"{psnr:.2f} dB" for way, (_, psnr) in ways.items()},
                )
            files.append(out / fitting(f"crops_{as_folder(student)}_{name}", ".png"))
            sheet.save(files[-1])
    return files


def _sets(result: Result, console: Terminal) -> Mapping[str, ValidationSet]:
    """What a training was measured on."""
    options = options_there(TrainOptions(out=result.run.root))
    assert isinstance(options, TrainOptions)
    sets = validation_sets(options, reading_bar(console))
    if sets:
        return sets
    given = named_options(options.teacher_options, "`teacher_options`")
    teacher = resolve_teacher(options.teacher, options.teacher_weights, options.scale, given)
    return held_out_sets(options, {options.scale: teacher}, reading_bar(console))


def _of_one_seed(results: Sequence[Result]) -> list[Result]:
    """The trainings of the lowest seed that all methods have; none: there is no such seed."""
    methods = {result.method for result in results}
    for seed in sorted({result.seed for result in results}):
        chosen = [result for result in results if result.seed == seed]
        if len(chosen) == len(methods):
            return chosen
    return []


def _network(result: Result) -> nn.Module:
    options = named_options(result.student_options, "`student_options`")
    network = resolve_student(result.student, result.scale, options)
    load_weights(unwrapped(network), read_weights(result.run.student))
    return network.eval()


def _differing(
    pairs: Sequence[tuple[Tensor, Tensor]], networks: Mapping[str, nn.Module], scale: int
) -> Iterator[_Differing]:
    ways: dict[str, Upscaler] = {"bicubic": bicubic(scale), **networks}
    count, names = min(len(pairs), _PICTURES), names_of(pairs) or []
    for index in (number * len(pairs) // count for number in range(count)):
        low, high = pairs[index]
        made = {way: picture(upscale, low) for way, upscale in ways.items()}
        of_methods = torch.stack([made[method] for method in networks]).float()
        window, variance = strongest_window(of_methods.var(dim=0, correction=0).mean(dim=0))
        scored = {way: (sr, psnr_y(sr, high, scale)) for way, sr in made.items()}
        yield _Differing(variance, window, names[index], low, high, scored)
