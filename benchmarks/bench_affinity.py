"""The gap of spatial affinities: tile by tile against the plain form, in time and memory.

The plain form (`mkdext.ops.reference`) holds both affinities of all samples, `[B, h w, h w]`, and
their difference; the operator holds none. Each pass is timed from the feature maps on: the double
backward contains the backward, which contains the forward. Gradients are the student's. That both
forms compute the same is checked first.

    python benchmarks/bench_affinity.py --threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _harness import machine, peak_bytes, time_interleaved, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mkdext.ops import reference, spatial_affinity_gap

# B, C_s, C_t, h, w
SIZES = [
    (16, 16, 32, 48, 48),
    (16, 64, 64, 48, 48),
    (16, 64, 64, 24, 24),
    (4, 16, 64, 50, 51),
]
FORMS = {"mkdext": spatial_affinity_gap, "plain": reference.spatial_affinity_gap}
Gap = Callable[[Tensor, Tensor], Tensor]
Maps = tuple[Tensor, Tensor, Tensor]


def forward(gap: Gap, maps: Maps) -> Tensor:
    """The value alone."""
    student, teacher, _ = maps
    with torch.no_grad():
        return gap(student, teacher)


def backward(gap: Gap, maps: Maps) -> Tensor:
    """The gradient."""
    student, teacher, _ = maps
    return torch.autograd.grad(gap(student, teacher), student)[0]


def double_backward(gap: Gap, maps: Maps) -> Tensor:
    """The product of the second derivative and a direction."""
    student, teacher, direction = maps
    [gradient] = torch.autograd.grad(gap(student, teacher), student, create_graph=True)
    return torch.autograd.grad(gradient, student, direction)[0]


PASSES = {"forward": forward, "+ backward": backward, "+ double backward": double_backward}


def make_maps(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Maps:
    """Features of student and teacher, which have some structure in common, and a direction."""
    batch, student, teacher, height, width = size
    torch.manual_seed(0)
    maps = torch.randn(batch, student, height, width, dtype=dtype, device=device)
    mix = torch.randn(teacher, student, dtype=dtype, device=device)
    hints = torch.einsum("tc,bchw->bthw", mix, maps)
    return maps.requires_grad_(), hints, torch.randn_like(maps)


def check(maps: Maps, size: tuple[int, ...]) -> None:
    """Exit unless both forms agree."""
    for name, run in PASSES.items():
        ours, plain = (run(gap, maps) for gap in FORMS.values())
        error = ((ours - plain).norm() / plain.norm()).item()
        if not error < 1e-3:  # where a difference is nearly 0, rounding decides its sign
            raise SystemExit(f"{name} at {size}: the forms differ by {error:.1e} of the norm")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds counted (%(default)s)")
    parser.add_argument("--threads", type=int, help="PyTorch's default if not given")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype, device = getattr(torch, arguments.dtype), torch.device(arguments.device)
    console = Console()
    header = machine(device, dtype)
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    table = Table(
        "B, C_s, C_t, h, w", "pass", "ms", "plain", "times as fast", "MB", "plain", "times less"
    )
    rows = []
    for size in track(SIZES, "sizes", console=console, transient=True):
        maps = make_maps(size, dtype, device)
        check(maps, size)
        for name, run in PASSES.items():
            forms = {form: partial(run, gap, maps) for form, gap in FORMS.items()}
            timings = time_interleaved(forms, device, arguments.repeats)
            peaks = {form: peak_bytes(call, device) for form, call in forms.items()}
            ours, plain = timings["mkdext"], timings["plain"]
            table.add_row(
                ", ".join(map(str, size)),
                name,
                f"{1e3 * ours.median:.0f}",
                f"{1e3 * plain.median:.0f}",
                f"{ours.ratio_to(plain):.1f}",
                *_memory_columns(peaks["mkdext"], peaks["plain"]),
            )
            rows += [
                {
                    "size": size,
                    "pass": name,
                    "form": form,
                    "seconds": timings[form].seconds,
                    "peak_bytes": peaks[form],
                }
                for form in FORMS
            ]
    console.print("Medians; peak memory above the feature maps")
    console.print(table)
    if arguments.json:
        write_json(arguments.json, header, rows)


def _memory_columns(ours: int | None, plain: int | None) -> list[str]:
    if ours is None or plain is None:
        return ["-"] * 3
    return [f"{ours / 1e6:.0f}", f"{plain / 1e6:.0f}", f"{plain / max(ours, 1):.0f}"]


if __name__ == "__main__":
    main()
