"""The tables of a comparison, as Markdown, CSV, JSON and on the screen."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rich.table import Table
from rich.text import Text

from mkdext import __version__
from mkdext._system.files import write_csv, write_json, write_text
from mkdext._system.streams import printable
from mkdext._system.terminal import Terminal, text_table
from mkdext.comparison.cells import REFERENCE
from mkdext.comparison.crops import save_crops
from mkdext.comparison.figures import COST, CURVES, save_cost, save_curves
from mkdext.comparison.published import SOURCE, Published, published
from mkdext.comparison.results import CONFIDENCE, Difference, Result, Row, read_results, rows
from mkdext.comparison.sizes import Size, size_of
from mkdext.page import Curves, Gallery, Page, Sheet, write_page

_NOTE = (
    "PSNR-Y (dB) and SSIM-Y at the end: mean ± standard deviation over the seeds. Gains over "
    f"vanilla are paired by seed; ± spans their {CONFIDENCE:.0%} confidence interval (Student's "
    "t, not corrected for several comparisons), * marks one that excludes 0. Photographs that are "
    "met exactly have an infinite PSNR, which counts in no mean. The best is bold, the second "
    "italic. Seconds of a step include validations; memory is the most that the process used at a "
    "step."
)
_PAPER_NOTE = (
    f"The paper's numbers ({SOURCE}) come from other trainings: on DIV2K, to convergence, from a "
    "teacher of full size. ? marks those that seem misprinted, judging by the numbers around them."
)


def write_report(out: Path, console: Terminal | None) -> None:
    """Write `comparison.md`, `.csv` and `.json`, and `report.html`, of all finished trainings.

    Where none is finished, nothing is written.

    Args:
        out: The folder of the comparison.
        console: Where the table is printed, once the figures are drawn too; none: neither.

    Raises:
        ValueError: A training's files are damaged.
    """
    results = read_results(out)
    if not results:
        return
    sizes = {
        result.student: size_of(result.student, result.scale, result.student_options)
        for result in results
    }
    table = rows(results)
    _save_csv(out / "comparison.csv", results)
    _save_json(out / "comparison.json", results, table, sizes)
    write_text(out / "comparison.md", _markdown(results, table, sizes, []))
    if console is None:
        return
    for student in sizes:
        console.show(_screen_table(_student_table(student, results, table), console))
    console.print(_NOTE)
    save_curves(out / CURVES, results)
    save_cost(out / COST, table, sizes, results[0].scale)
    methods = list(dict.fromkeys(result.method for result in results))
    gallery = Gallery(methods[0], methods[-1])
    pictures = [out / CURVES, out / COST, *save_crops(out, results, console, gallery)]
    write_text(out / "comparison.md", _markdown(results, table, sizes, pictures))
    write_page(out / "report.html", _page(results, table, sizes, gallery))
    console.say(f"written to {out}:")
    for name, what in (
        ("report.html", "tables, curves and pictures to compare, for a browser"),
        ("comparison.md", "this table, beside the paper's numbers"),
        ("comparison.csv", "a line for each training and set"),
        ("comparison.json", "all of it"),
        (CURVES, "PSNR over the steps"),
        (COST, "PSNR against parameters and multiplications"),
        ("crops_*.png", "where the methods differ most"),
    ):
        console.say(f"  {name}: {what}")


class _Cell(NamedTuple):
    text: str
    rank: int = 0
    """1: best, 2: second best."""


class _TextTable(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[_Cell]]


def _student_table(student: str, results: Sequence[Result], table: Sequence[Row]) -> _TextTable:
    """A row for bicubic, the teacher and each method; columns for each set, time and memory."""
    own = [result for result in results if result.student == student]
    mine = [row for row in table if row.student == student]
    sets = list(dict.fromkeys(row.photographs for row in mine))
    header = ["method", "seeds"]
    for data in sets:
        header += [f"{data} PSNR", "gain", "SSIM"]
    header += ["s/step", "MB"]
    lines = []
    for way in ("bicubic", "teacher"):
        found = next((r.validation for r in own if way in r.validation[sets[0]]), None)
        if found:
            scores = [found[data][way] for data in sets]
            line = [way, ""]
            for score in scores:
                line += [f"{score['psnr_y']:.3f}", "", f"{score['ssim_y']:.4f}"]
            lines.append([_Cell(text) for text in (*line, "", "")])
    for method in dict.fromkeys(row.method for row in mine):
        group = [result for result in own if result.method == method]
        cells = [_Cell(method), _Cell(str(len(group)))]
        for row in (row for row in mine if row.method == method):
            rivals = [rival for rival in mine if rival.photographs == row.photographs]
            cells += [
                _Cell(
                    _with_deviation(row.psnr_y.mean, row.psnr_y.deviation, 3),
                    _rank(row, rivals, lambda r: r.psnr_y.mean),
                ),
                _Cell(_gain(row.psnr_gain)),
                _Cell(f"{row.ssim_y.mean:.4f}", _rank(row, rivals, lambda r: r.ssim_y.mean)),
            ]
        peaks = [r.peak_bytes for r in group if r.peak_bytes is not None]
        cells.append(_Cell(f"{statistics.fmean(r.seconds_per_step for r in group):.3g}"))
        cells.append(_Cell(f"{max(peaks) / 1e6:.0f}" if peaks else ""))
        lines.append(cells)
    scale, steps = own[0].scale, own[0].iterations
    return _TextTable(f"{student}, x{scale}, {steps} steps", header, lines)


def _paper_table(student: str, table: Sequence[Row], scale: int) -> _TextTable | None:
    """Ours beside the paper's, for the sets that it has."""
    numbers: dict[tuple[str, str], Published] = {}
    mine = [row for row in table if row.student == student]
    for row in mine:
        number = published(student, row.method, row.photographs, scale)
        if number:
            numbers[row.method, row.photographs] = number
    sets = list(dict.fromkeys(data for _, data in numbers))
    if not sets:
        return None
    header = ["method"]
    for data in sets:
        header += [f"{data} ours", "paper", "gain, ours", "paper"]
    lines = []
    for method in dict.fromkeys(method for method, _ in numbers):
        line = [_Cell(method)]
        for data in sets:
            (row,) = (r for r in mine if (r.method, r.photographs) == (method, data))
            number, base = numbers[method, data], published(student, REFERENCE, data, scale)
            sound = base and not base.misprint and not number.misprint and method != REFERENCE
            line += [
                _Cell(f"{row.psnr_y.mean:.2f} / {row.ssim_y.mean:.4f}"),
                _Cell(f"{number.psnr_y:.2f}{'?' * number.misprint} / {number.ssim_y:.4f}"),
                _Cell(f"{row.psnr_gain.mean:+.2f}" if row.psnr_gain else ""),
                _Cell(f"{number.psnr_y - base.psnr_y:+.2f}" if base and sound else ""),
            ]
        lines.append(line)
    return _TextTable(f"{student} beside the paper", header, lines)


def _rank(row: Row, rivals: Sequence[Row], score: Callable[[Row], float]) -> int:
    better = sum(score(rival) > score(row) for rival in rivals)
    return better + 1 if better < 2 and len(rivals) > 1 else 0


def _with_deviation(mean: float, deviation: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _gain(gain: Difference | None) -> str:
    if gain is None:
        return ""
    reach = "" if gain.interval is None else f" ± {gain.interval:.3f}"
    return f"{gain.mean:+.3f}{reach}{'*' if gain.certain else ''}"


def _screen_table(text: _TextTable, console: Terminal) -> Table:
    table = text_table(text.title, *text.header)
    styles = {0: "", 1: "bold", 2: "italic"}
    for line in text.rows:
        cells = (Text(printable(c.text, console.encoding), styles[c.rank]) for c in line)
        table.add_row(*cells)
    return table


def _markdown_table(text: _TextTable) -> str:
    styles = {0: "{}", 1: "**{}**", 2: "_{}_"}
    header = " | ".join(map(_as_markdown, text.header))
    lines = [f"### {_as_markdown(text.title)}", "", f"| {header} |"]
    lines.append("|---" + "|---:" * (len(text.header) - 1) + "|")
    for line in text.rows:
        cells = (styles[cell.rank].format(_as_markdown(cell.text)) for cell in line)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _as_markdown(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", " ".join(printable(text).split()))


def _picture(file: Path) -> str:
    return f"![{_as_markdown(file.stem)}]({quote(os.fsencode(file.name))})\n"


def _markdown(
    results: Sequence[Result],
    table: Sequence[Row],
    sizes: Mapping[str, Size],
    pictures: Sequence[Path],
) -> str:
    parts = ["# Comparison\n", _NOTE + "\n"]
    parts += [_markdown_table(_student_table(name, results, table)) for name in sizes]
    papers = [_paper_table(name, table, results[0].scale) for name in sizes]
    if any(papers):
        parts.append(_PAPER_NOTE + "\n")
        parts += [_markdown_table(paper) for paper in papers if paper]
    parts += map(_picture, pictures)
    return "\n".join(parts)


def _page(
    results: Sequence[Result], table: Sequence[Row], sizes: Mapping[str, Size], gallery: Gallery
) -> Page:
    first = results[0]
    return Page(
        title=f"Comparison of {len({r.method for r in results})} methods, x{first.scale}",
        facts={
            "students": ", ".join(f"{name} ({size.parameters:,})" for name, size in sizes.items()),
            "steps": f"{first.iterations:,}",
            "trainings": str(len(results)),
            "version": f"mkdext {__version__}",
        },
        tables=[
            Sheet(text.title, text.header, [[cell.text for cell in line] for line in text.rows])
            for text in (_student_table(name, results, table) for name in sizes)
        ],
        curves=[
            Curves(f"PSNR-Y on {data}, {name}", _means(name, data, results), unit=" dB")
            for name in sizes
            for data in first.validation
        ],
        gallery=gallery,
    )


def _means(
    student: str, data: str, results: Sequence[Result]
) -> dict[str, list[tuple[int, float]]]:
    """PSNR-Y over the steps by method, the mean of its seeds."""
    lines = {}
    for method in dict.fromkeys(r.method for r in results if r.student == student):
        own = [r for r in results if (r.student, r.method) == (student, method)]
        curves = [result.curve.get(data, {}) for result in own]
        steps = sorted(set.intersection(*map(set, curves)))
        lines[method] = [(s, statistics.fmean(curve[s] for curve in curves)) for s in steps]
    return lines


def _save_csv(path: Path, results: Sequence[Result]) -> None:
    lines = [
        {
            "student": result.student,
            "method": result.method,
            "seed": result.seed,
            "set": data,
            "psnr_y": ways["student"]["psnr_y"],
            "ssim_y": ways["student"]["ssim_y"],
            "iterations": result.iterations,
            "parameters": result.parameters,
            "seconds_per_step": result.seconds_per_step,
            "peak_bytes": result.peak_bytes,
        }
        for result in results
        for data, ways in result.validation.items()
    ]
    write_csv(path, lines)


def _save_json(
    path: Path, results: Sequence[Result], table: Sequence[Row], sizes: Mapping[str, Size]
) -> None:
    scale = results[0].scale
    report = {
        "version": __version__,
        "scale": scale,
        "confidence": CONFIDENCE,
        "students": {name: size._asdict() for name, size in sizes.items()},
        "methods": [_row_as_dict(row, scale) for row in table],
        "trainings": [
            {
                **result._asdict(),
                "run": str(result.run.root.relative_to(path.parent)),
                "val_dir": [str(folder) for folder in result.val_dir],
            }
            for result in results
        ],
    }
    write_json(path, report)


def _row_as_dict(row: Row, scale: int) -> dict[str, Any]:
    number = published(row.student, row.method, row.photographs, scale)
    values: dict[str, Any] = {}
    for name, value in row._asdict().items():
        values[name] = value._asdict() if hasattr(value, "_asdict") else value
    return values | {"paper": number and number._asdict()}
