"""The plots of a comparison: learning curves, PSNR against cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from mkdext._system.figures import figure_file, label
from mkdext.comparison.cells import REFERENCE
from mkdext.comparison.published import published
from mkdext.comparison.results import Result, Row
from mkdext.comparison.sizes import Size

CURVES = "curves.png"
COST = "cost.png"


def save_curves(path: Path, results: Sequence[Result]) -> None:
    """Draw PSNR-Y over the steps: mean and range over the seeds, a row a student, a panel a set."""
    students = list(dict.fromkeys(result.student for result in results))
    sets = list(dict.fromkeys(data for result in results for data in result.curve))
    colors = _colors([result.method for result in results])
    size = (5.5 * len(sets), 4 * len(students))
    with figure_file(path, size) as figure:
        grid = figure.subplots(len(students), len(sets), squeeze=False)
        for line, student in zip(grid, students, strict=True):
            for panel, data in zip(line, sets, strict=True):
                for method, color in colors.items():
                    group = [r for r in results if (r.student, r.method) == (student, method)]
                    curves = [r.curve[data] for r in group if data in r.curve]
                    if curves:
                        _draw_curve(panel, curves, f"{label(method)} ({len(curves)})", color)
                panel.set(title=f"{label(student, 24)}, {label(data, 24)}", xlabel="student step")
                panel.set_ylabel("PSNR-Y (dB), mean and range")
                panel.grid(alpha=0.3)
                if panel.lines:
                    panel.legend(fontsize="small", title="method (seeds)")


def _draw_curve(panel: Axes, curves: Sequence[Mapping[int, float]], title: str, color: str) -> None:
    shared = set.intersection(*(set(curve) for curve in curves))
    # Where all photographs are met exactly there is no finite number.
    steps = sorted(s for s in shared if all(math.isfinite(curve[s]) for curve in curves))
    values = [[curve[step] for curve in curves] for step in steps]
    means = [statistics.fmean(of_step) for of_step in values]
    panel.plot(steps, means, color=color, marker=".", label=title)
    low, high = [min(of_step) for of_step in values], [max(of_step) for of_step in values]
    panel.fill_between(steps, low, high, color=color, alpha=0.12)


def save_cost(path: Path, table: Sequence[Row], sizes: Mapping[str, Size], scale: int) -> None:
    """Draw PSNR-Y against parameters and operations, as the MKD paper's Figures 4 and 6.

    A row of two panels for each set; the paper's own numbers, where it has any, stand in panels of
    their own to the right.
    """
    sets = list(dict.fromkeys(row.photographs for row in table))
    colors = _colors([row.method for row in table])
    paper = any(published(r.student, r.method, r.photographs, scale) for r in table)
    panels = 4 if paper else 2
    with figure_file(path, (4.5 * panels, 4 * len(sets))) as figure:
        grid = figure.subplots(len(sets), panels, squeeze=False)
        for line, data in zip(grid, sets, strict=True):
            mine = [row for row in table if row.photographs == data]
            ours = {(row.student, row.method): row.psnr_y.mean for row in mine}
            printed = {
                (row.student, row.method): number.psnr_y
                for row in mine
                if (number := published(row.student, row.method, data, scale))
                and not number.misprint
            }
            for panel, points, whose in zip(
                line, [ours, ours, printed, printed], ["", "", "paper: ", "paper: "], strict=False
            ):
                parameters = panel in (line[0], line[-2])
                _draw_cost(panel, points, sizes, colors, parameters)
                panel.set_title(f"{whose}{label(data)}")
            if line[0].lines:
                line[0].legend(fontsize="small")


def _draw_cost(
    panel: Axes,
    points: Mapping[tuple[str, str], float],
    sizes: Mapping[str, Size],
    colors: Mapping[str, str],
    parameters: bool,
) -> None:
    for method, color in colors.items():
        line = []
        for (student, other), psnr in points.items():
            size = sizes[student]
            cost = size.parameters / 1e3 if parameters else (size.macs or 0) / 1e9
            if other == method and cost and math.isfinite(psnr):
                line.append((cost, psnr))
        if line:
            panel.plot(
                *zip(*sorted(line), strict=True), color=color, marker="o", label=label(method)
            )
    what = "parameters (thousands)" if parameters else "GMACs for 512x512 pixels"
    panel.set(xlabel=what, ylabel="PSNR-Y (dB)")
    panel.ticklabel_format(useOffset=False)
    panel.grid(alpha=0.3)


def _colors(methods: Sequence[str]) -> dict[str, str]:
    """A color for each method: black for the one without a teacher."""
    names = dict.fromkeys(methods)
    others = [name for name in names if name != REFERENCE]
    return {name: "black" if name == REFERENCE else _tab20(others.index(name)) for name in names}


def _tab20(index: int) -> str:
    """Ten different colours, then a lighter one of each."""
    return to_hex(colormaps["tab20"](2 * index % 20 + index // 10 % 2))
