"""What a data-free training leaves to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mkdext._system.figures import figure_file, label
from mkdext._system.files import atomic_write
from mkdext.training.report import draw_scores
from mkdext.training.run_directory import RunDirectory

_TIMES = 5  # rows of made images in the summary
_SIDE = 128  # of a cutting of a photograph, in high-resolution pixels
_LOSSES = ("reconstruction", "distillation", "consistency", "adversarial", "contrastive")
_DIVERSITY = ("image_diversity", "image_contrast", "embedding_diversity")

Record = Mapping[str, Any]


def save_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Write batches of pictures as the rows of a PNG.

    Args:
        path: File to write.
        rows: uint8 `[B, 3, h, w]`; smaller ones are enlarged without interpolation.
    """
    size = tuple(max(row.shape[axis] for row in rows) for axis in (2, 3))
    large = [functional.interpolate(row, size=size, mode="nearest-exact") for row in rows]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in large], dim=1)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        Image.fromarray(sheet.permute(1, 2, 0).cpu().numpy()).save(file, "png")


def save_summary(
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
    for axes, names in ((losses, _LOSSES), (diversity, _DIVERSITY)):
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
    side = min(_SIDE, *last.shape[1:])
    error = (first.float() - last.float()).square().mean(dim=0)
    means = functional.avg_pool2d(error[None, None], side, stride=max(side // 4, 1))[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    top, left = (index * max(side // 4, 1) for index in (row, column))
    return {
        name: p[:, top : top + side, left : left + side].permute(1, 2, 0).numpy()
        for name, p in pictures.items()
    }
