"""Per-sample dynamic convolution against the best that can be written with stock PyTorch.

Primitives: the forward, the input gradient, the weight gradient, and "all seven": forward, backward
and double backward through autograd, which is what one meta step asks for (seven products: 1 + 2 +
4). The peers:

    grouped      F.conv2d on x.reshape(1, B * Ci, H, W) with groups = B
    vmap         torch.vmap(F.conv2d)
    unfold+bmm   F.unfold, then a batched matrix product

Their gradients are what autograd's formulas compute, asked for directly where PyTorch allows it: no
peer pays for a forward that is not timed.

    python benchmarks/bench_dynconv.py --threads 1
    python benchmarks/bench_dynconv.py --sizes 16,64,64,48 --json results.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _harness import Timing, machine, peak_bytes, time_interleaved, write_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from mkdext.ops import dynamic_conv2d

K = 3
SIZES = ("16,64,64,48", "16,64,16,48", "16,64,144,48", "16,16,16,48", "4,64,64,96", "16,64,64,24")
PRIMITIVES = ("forward", "input grad", "weight grad", "all seven")
OURS = "mkdext"


@dataclass(frozen=True)
class Size:
    """``[batch, in_channels, side, side]`` to ``[batch, out_channels, side, side]``."""

    batch: int
    in_channels: int
    out_channels: int
    side: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``B,Ci,Co,H``."""
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or min(numbers) < 1:
            raise argparse.ArgumentTypeError(f"a size is B,Ci,Co,H, all positive; got {text!r}")
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.batch}, {self.in_channels} -> {self.out_channels}, {self.side}"

    def flops(self, primitive: str) -> int:
        """Return the floating-point operations of the direct algorithm."""
        one = 2 * self.batch * self.in_channels * self.out_channels * (self.side * K) ** 2
        return 7 * one if primitive == "all seven" else one


def grouped(x: Tensor, w: Tensor) -> Tensor:
    """Convolve with the samples as groups."""
    batch, channels, height, width = x.shape
    folded = x.reshape(1, batch * channels, height, width)
    y = F.conv2d(folded, w.reshape(-1, channels, K, K), padding=K // 2, groups=batch)
    return y.reshape(batch, -1, height, width)


def vmapped(x: Tensor, w: Tensor) -> Tensor:
    """Convolve sample by sample under `torch.vmap`."""
    return torch.vmap(lambda x, w: F.conv2d(x[None], w, padding=K // 2)[0])(x, w)


def unfolded(x: Tensor, w: Tensor) -> Tensor:
    """Multiply the kernels with the map's patches."""
    y = w.flatten(2) @ F.unfold(x, K, padding=K // 2)
    return y.reshape(x.shape[0], -1, *x.shape[2:])


def grouped_gradient(g: Tensor, x: Tensor, w: Tensor, index: int) -> Tensor:
    """Return one gradient of `grouped` by the operator that autograd calls."""
    batch, channels, height, width = x.shape
    mask = [index == 0, index == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        g.reshape(1, -1, height, width),
        x.reshape(1, -1, height, width),
        w.reshape(-1, channels, K, K),
        None,
        [1, 1],
        [K // 2, K // 2],
        [1, 1],
        False,
        [0, 0],
        batch,
        mask,
    )
    return gradients[index].view_as((x, w)[index])


def vmapped_gradient(g: Tensor, x: Tensor, w: Tensor, index: int) -> Tensor:
    """Return one gradient of `vmapped` by the operator that autograd calls."""

    def one(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
        mask = [index == 0, index == 1, False]
        pad = [K // 2, K // 2]
        gradients = torch.ops.aten.convolution_backward(
            g[None], x[None], w, None, [1, 1], pad, [1, 1], False, [0, 0], 1, mask
        )
        return gradients[index] if index == 1 else gradients[index][0]

    return torch.vmap(one)(g, x, w)


def unfolded_gradient(g: Tensor, x: Tensor, w: Tensor, index: int) -> Tensor:
    """Return one gradient of `unfolded`, written out."""
    if index == 0:
        columns = w.flatten(2).mT @ g.flatten(2)
        return F.fold(columns, x.shape[2:], K, padding=K // 2)
    return (g.flatten(2) @ F.unfold(x, K, padding=K // 2).mT).view_as(w)


def our_gradient(g: Tensor, x: Tensor, w: Tensor, index: int) -> Tensor:
    """Return one gradient by the operator that autograd calls, or by autograd without one."""
    if hasattr(torch.ops.mkdext, "dynamic_conv2d") and g.device.type == "cpu":
        if index == 0:
            return torch.ops.mkdext.dynamic_conv2d_input_grad(g, w)
        return torch.ops.mkdext.dynamic_conv2d_weight_grad(g, x, K)
    return grouped_gradient(g, x, w, index)


FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    OURS: (dynamic_conv2d, our_gradient),
    "grouped": (grouped, grouped_gradient),
    "vmap": (vmapped, vmapped_gradient),
    "unfold+bmm": (unfolded, unfolded_gradient),
}


def all_seven(convolve: Callable[[Tensor, Tensor], Tensor], tensors: list[Tensor]) -> None:
    """Run forward, backward and double backward; every gradient is asked for."""
    x, w, g, ggx, ggw = tensors
    first = torch.autograd.grad(convolve(x, w), (x, w), g, create_graph=True)
    torch.autograd.grad(first, (x, w, g), (ggx, ggw))


def candidates(size: Size, primitive: str, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return one call per form, all on the same tensors."""
    torch.manual_seed(0)
    x = torch.randn(size.batch, size.in_channels, size.side, size.side, device=device)
    w = torch.randn(size.batch, size.out_channels, size.in_channels, K, K, device=device)
    g = torch.randn(size.batch, size.out_channels, size.side, size.side, device=device)
    if primitive == "forward":
        return {name: (lambda f=form[0]: f(x, w)) for name, form in FORMS.items()}
    if primitive in ("input grad", "weight grad"):
        index = PRIMITIVES.index(primitive) - 1
        return {name: (lambda f=form[1]: f(g, x, w, index)) for name, form in FORMS.items()}
    leaves = [t.requires_grad_() for t in (x, w, g)] + [torch.randn_like(x), torch.randn_like(w)]
    return {name: (lambda f=form[0]: all_seven(f, leaves)) for name, form in FORMS.items()}


def check(calls: dict[str, Callable[[], object]]) -> None:
    """Require that all forms compute the same."""
    results = {name: call() for name, call in calls.items()}
    expected = results["grouped"]
    if isinstance(expected, Tensor):
        for name, result in results.items():
            assert isinstance(result, Tensor)
            error = (result - expected).norm() / expected.norm()
            assert error < 1e-4, f"{name} differs from grouped by {error:.1e}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every timing to FILE")
    parser.add_argument(
        "--sizes",
        type=Size.parse,
        nargs="+",
        default=[Size.parse(text) for text in SIZES],
        metavar="B,Ci,Co,H",
        help="default: " + " ".join(SIZES),
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15, help="rounds per size (default 15)")
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return arguments


def report(
    table: Table,
    size: Size,
    primitive: str,
    timings: dict[str, Timing],
    peaks: dict[str, int | None],
) -> list[dict[str, object]]:
    """Add one line per form to the table; return the lines for the JSON file."""
    peers = {name: timing for name, timing in timings.items() if name != OURS}
    best = min(peers, key=lambda name: peers[name].median)
    rows: list[dict[str, object]] = []
    for name, timing in timings.items():
        gflops = size.flops(primitive) / timing.median / 1e9
        ratio = timing.ratio_to(timings[best])
        peak = peaks[name]
        table.add_row(
            str(size) if name == OURS else "",
            primitive if name == OURS else "",
            name,
            f"{1e3 * timing.median:.2f}",
            f"{timing.spread:.0%}",
            f"{gflops:.1f}",
            f"{ratio:.2f}",
            "" if peak is None else f"{peak / 2**20:.0f}",
            style="bold" if name == OURS else None,
            end_section=name == list(timings)[-1],
        )
        rows.append(
            {
                "batch": size.batch,
                "in_channels": size.in_channels,
                "out_channels": size.out_channels,
                "side": size.side,
                "kernel_size": K,
                "primitive": primitive,
                "form": name,
                "median_s": timing.median,
                "spread": timing.spread,
                "gflops": gflops,
                "best_peer": best,
                "ratio_to_best_peer": ratio,
                "peak_bytes": peak,
                "seconds": timing.seconds,
            }
        )
    return rows


def main() -> None:
    """Run the benchmark and print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    header = machine(arguments.device)
    console = Console(width=None if sys.stdout.isatty() else 100)
    for key, value in header.items():
        console.print(f"{key:>16}: {value}", highlight=False)
    table = Table("size", "primitive", "form", *("ms", "spread", "GFLOP/s", "ratio", "peak MiB"))
    for column in table.columns[3:]:
        column.justify = "right"
    rows: list[dict[str, object]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(arguments.sizes) * len(PRIMITIVES))
        for size in arguments.sizes:
            for primitive in PRIMITIVES:
                progress.update(task, description=f"{size}: {primitive}")
                calls = candidates(size, primitive, arguments.device)
                peaks = {name: peak_bytes(call, arguments.device) for name, call in calls.items()}
                check(calls)
                timings = time_interleaved(calls, arguments.device, arguments.repeats)
                rows += report(table, size, primitive, timings, peaks)
                progress.advance(task)
    console.print(table)
    console.print(
        "ms: median; spread: interquartile range / median; GFLOP/s: of the direct algorithm; "
        "ratio: speed against the fastest peer, median over the rounds; "
        "peak MiB: memory of a call above what stood before."
    )
    if arguments.json is not None:
        write_json(arguments.json, header, rows)
        console.print(f"written to {arguments.json.resolve()}")


if __name__ == "__main__":
    main()
