"""Time and memory of one meta step, with mkdext's operators and with stock PyTorch's.

The step is that of an RCAN-A student at x4: teacher features given (64 channels, 4 points), batch
16, 48x48 low-resolution patches, 64 kernels of 3x3, one inner step, the gradient for every KRNet
parameter, then the student's own step. The stock form is the same code on grouped `F.conv2d`, the
fastest way to write a per-sample convolution in PyTorch.

    python benchmarks/bench_meta_step.py
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from _harness import machine, peak_bytes, time_interleaved, write_json
from rich.console import Console
from rich.table import Table
from torch import nn

from mkdext import _extension
from mkdext.distill import MKD, MKDOptions
from mkdext.models import create_model, default_points
from mkdext.ops import reference
from mkdext.training import TrainOptions
from mkdext.training.steps import Distillation, TrainingStep

POINTS = 4
FORMS = ("mkdext", "stock", "vanilla")


class GivenFeatures(nn.Module):
    """A teacher that costs nothing: its feature maps were made before."""

    def __init__(self, batch: int, channels: int, side: int) -> None:
        """Make random maps."""
        super().__init__()
        self.maps = nn.ParameterList(
            torch.randn(batch, channels, side, side) for _ in range(POINTS)
        )
        self.points = nn.ModuleList(nn.Identity() for _ in range(POINTS))

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """Pass each map by its point."""
        for given, point in zip(self.maps, self.points, strict=True):
            point(given)
        return lr


def make_step(form: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """One step on fixed random patches."""
    torch.manual_seed(0)
    device, batch, side = arguments.device, arguments.batch, arguments.patch
    options = TrainOptions(batch_size=batch, patch_size=side)
    student = create_model("rcan-a", scale=4).to(device).to(memory_format=torch.channels_last)
    method = MKD([16] * POINTS, [arguments.channels] * POINTS, MKDOptions(grid=arguments.grid))
    method.to(device)
    distillation = Distillation(
        GivenFeatures(batch, arguments.channels, side).to(device),
        [f"points.{index}" for index in range(POINTS)],
        default_points(student),
        method,
        torch.optim.Adam(method.parameters(), options.meta.lr),
    )
    optimizer = torch.optim.Adam(student.parameters(), options.lr)
    step = TrainingStep(options, student, optimizer, None if form == "vanilla" else distillation)
    lr = torch.rand(batch, 3, side, side, device=device)
    hr = torch.rand(batch, 3, 4 * side, 4 * side, device=device)

    def run() -> None:
        with stock_operators() if form == "stock" else contextlib.nullcontext():
            step(0, lr, hr)

    return run


@contextlib.contextmanager
def stock_operators() -> Iterator[None]:
    """KRNets on plain PyTorch."""
    with (
        mock.patch("mkdext.distill.mkd.dynamic_conv2d", reference.dynamic_conv2d),
        mock.patch("mkdext.distill.mkd.texture_kernels", reference.texture_kernels),
    ):
        yield


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="patches (%(default)s)")
    parser.add_argument("--patch", type=int, default=48, help="their side (%(default)s)")
    parser.add_argument("--channels", type=int, default=64, help="the teacher's (%(default)s)")
    parser.add_argument("--grid", type=int, default=8, help="grid x grid kernels (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds counted (%(default)s)")
    parser.add_argument("--threads", type=int, help="PyTorch's default if not given")
    parser.add_argument("--device", type=torch.device, default="cpu", help="%(default)s or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not _extension.available():
        sys.exit("the compiled operators are missing: `python -m mkdext.doctor` tells the fix")
    console = Console()
    header = machine(arguments.device)
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    steps = {form: make_step(form, arguments) for form in FORMS}
    with console.status(f"{arguments.repeats + 1} rounds of one step of each form"):
        timings = time_interleaved(steps, arguments.device, arguments.repeats)
        memory = {form: peak_bytes(run, arguments.device) for form, run in steps.items()}
    table = Table("form", "median s", "spread", "times as fast as stock", "peak memory MB")
    for form, timing in timings.items():
        megabytes = memory[form]
        table.add_row(
            form,
            f"{timing.median:.3f}",
            f"{timing.spread:.0%}",
            f"{timing.ratio_to(timings['stock']):.2f}",
            "unknown" if megabytes is None else f"{megabytes / 2**20:.0f}",
        )
    console.print(table)
    if arguments.json:
        rows = [
            {"form": form, "seconds": timing.seconds, "peak_bytes": memory[form]}
            for form, timing in timings.items()
        ]
        write_json(arguments.json, header, rows)


if __name__ == "__main__":
    main()
