"""How the cost of per-sample convolution grows with batch, channels and map size.

Forward, backward and double backward ("all seven" products) of 3x3 kernels, from the main size (16
samples, 64 -> 64 channels, 48x48) along one axis at a time, beside grouped `F.conv2d`. The
arithmetic asks for growth that is linear in batch and pixels and quadratic in channels; the column
"ns" divides it out, so that it would be constant.

    python benchmarks/bench_scaling.py --threads 1
    python benchmarks/bench_scaling.py --figure scaling.png
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from _harness import machine, time_interleaved, write_json
from bench_dynconv import OURS, Size, candidates
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

MAIN = Size(16, 64, 64, 48)
AXES = {
    "batch": [dataclasses.replace(MAIN, batch=n) for n in (1, 2, 4, 8, 16, 32)],
    "channels": [
        dataclasses.replace(MAIN, in_channels=n, out_channels=n) for n in (8, 16, 32, 64, 128, 192)
    ],
    "height = width": [dataclasses.replace(MAIN, side=n) for n in (6, 12, 24, 48, 96, 144)],
}
FORMS = (OURS, "grouped")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="rounds per size (default 7)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the times as a PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    return parser.parse_args()


def measure(size: Size, repeats: int) -> dict[str, object]:
    """Return the milliseconds of each form and the ratio."""
    options = argparse.Namespace(dtype="float32", device=torch.device("cpu"))
    calls = candidates(size.tensors(3, options), "all seven", "auto")
    timings = time_interleaved({name: calls[name] for name in FORMS}, options.device, repeats)
    ours, theirs = (timings[name] for name in FORMS)
    work = size.batch * size.in_channels * size.out_channels * size.side**2
    return {
        **dataclasses.asdict(size),
        **{name: 1e3 * timings[name].median for name in FORMS},
        "ratio": ours.ratio_to(theirs),
        "ns": 1e9 * ours.median / work,
    }


def draw(results: dict[str, list[dict[str, object]]], path: Path) -> None:
    """Draw milliseconds along each axis."""
    figure = Figure((10, 3.4), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    for panel, (axis, rows) in zip(panels, results.items(), strict=True):
        values = [value_on(axis, row) for row in rows]
        for name in FORMS:
            panel.loglog(values, [row[name] for row in rows], "o-", label=name)
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.set_xlabel(axis)
    panels[0].set_ylabel("ms, all seven products")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def value_on(axis: str, row: dict[str, object]) -> object:
    """Return where a row lies on an axis."""
    return row[{"channels": "in_channels", "height = width": "side"}.get(axis, axis)]


def main() -> None:
    """Measure and print."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    header = machine(torch.device("cpu"))
    console = Console()
    for key, value in header.items():
        console.print(f"{key:>22}: {value}", highlight=False)
    results: dict[str, list[dict[str, object]]] = {}
    for axis, sizes in AXES.items():
        rows = [measure(size, options.repeats) for size in track(sizes, axis, console=console)]
        table = Table(axis, "mkdext ms", "grouped ms", "ratio", "ns", title=f"along {axis}")
        for row in rows:
            numbers = (f"{row[name]:.2f}" for name in (*FORMS, "ratio"))
            table.add_row(str(value_on(axis, row)), *numbers, f"{row['ns']:.3f}")
        console.print(table)
        results[axis] = rows
    if options.figure is not None:
        draw(results, options.figure)
        console.print(f"drawn to {options.figure.resolve()}")
    if options.json is not None:
        write_json(
            options.json, header, [{"axis": a, **row} for a in results for row in results[a]]
        )


if __name__ == "__main__":
    main()
