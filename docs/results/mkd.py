"""Table and learning curves of several runs: `python docs/results/mkd.py RUN... --out FILE.png`.

Runs are grouped by the name of their folder up to the last dash: `vanilla-0`, `vanilla-1`, ...
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

REFERENCE = "vanilla"


def main() -> None:
    """Print a Markdown table and draw the mean curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="picture of the learning curves")
    arguments = parser.parse_args()
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for run in arguments.runs:
        name, seed = run.name.rsplit("-", 1)
        groups[name][seed] = run
    print_table(groups)
    draw_curves(groups, arguments.out)


def print_table(groups: dict[str, dict[str, Path]]) -> None:
    """PSNR-Y at the end: mean and standard deviation, and the paired difference to vanilla."""
    finals = {
        name: {seed: summary(run)["validation"] for seed, run in seeds.items()}
        for name, seeds in groups.items()
    }
    sets = list(next(iter(next(iter(finals.values())).values())))
    print(f"| training | seeds | seconds | {' | '.join(f'{s} | vs {REFERENCE}' for s in sets)} |")
    print("|---" * (3 + 2 * len(sets)) + "|")
    for name, seeds in finals.items():
        seconds = statistics.mean(summary(run)["seconds"] for run in groups[name].values())
        cells = [name, str(len(seeds)), f"{seconds:.0f}"]
        for data in sets:
            values = [v[data]["student"]["psnr_y"] for v in seeds.values()]
            ssims = [v[data]["student"]["ssim_y"] for v in seeds.values()]
            cells.append(f"{with_spread(values)} dB / {statistics.mean(ssims):.4f}")
            others = finals.get(REFERENCE, {})
            differences = [
                v[data]["student"]["psnr_y"] - others[seed][data]["student"]["psnr_y"]
                for seed, v in seeds.items()
                if seed in others and name != REFERENCE
            ]
            cells.append(with_spread(differences, sign="+") if differences else "")
        print(f"| {' | '.join(cells)} |")


def draw_curves(groups: dict[str, dict[str, Path]], out: Path) -> None:
    """Mean PSNR-Y of each group over the steps, one panel a set."""
    curves = {name: [curve(run) for run in seeds.values()] for name, seeds in groups.items()}
    sets = list(next(iter(curves.values()))[0])
    figure = Figure(figsize=(5.5 * len(sets), 4), layout="constrained")
    for panel, data in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for name, runs in curves.items():
            steps = sorted(runs[0][data])
            values = [[run[data][step] for run in runs if step in run[data]] for step in steps]
            means = [statistics.mean(v) for v in values]
            (line,) = panel.plot(steps, means, marker=".", label=f"{name} ({len(runs)} seeds)")
            low, high = [min(v) for v in values], [max(v) for v in values]
            panel.fill_between(steps, low, high, color=line.get_color(), alpha=0.15)
        panel.set(title=data, xlabel="student step", ylabel="PSNR-Y (dB), mean and range of seeds")
        panel.legend()
    figure.savefig(out, dpi=120)


def summary(run: Path) -> dict:
    """The run's summary."""
    return json.loads((run / "summary.json").read_text())


def curve(run: Path) -> dict[str, dict[int, float]]:
    """PSNR-Y by set and step."""
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for data, scores in record.get("validation", {}).items():
            points[data][record["step"]] = scores["psnr_y"]
    return points


def with_spread(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):{sign}.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
