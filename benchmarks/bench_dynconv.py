"""Per-sample dynamic convolution against the best that can be written with stock PyTorch.

Primitives: the forward, the input gradient, the weight gradient, and "all seven": forward, backward
and double backward through autograd, which is what one meta step asks for (seven products: 1 + 2 +
4). The peers:

    grouped      F.conv2d on x.reshape(1, B * Ci, H, W) with groups = B
    vmap         torch.vmap(F.conv2d)
    unfold+bmm   F.unfold (not for 1x1 kernels), then a batched matrix product

Their gradients are what autograd's formulas compute, asked for directly where PyTorch allows it: no
peer pays for a forward that is not timed.

On a GPU every form is also compared with what the machine allows, measured in the same run: the
longest of the operations at the rate of a large matrix product, the bytes at the rate of a copy,
and the launches. "All seven" of ours is timed as the replay of a CUDA graph as well, which frees it
from the time that Python takes; no peer's ratio uses that.

    python benchmarks/bench_dynconv.py --threads 1
    python benchmarks/bench_dynconv.py --kernel-sizes 1 3 5 7 --figure ratios.png
    python benchmarks/bench_dynconv.py --sizes 16,64,64,48 --algorithm direct --json results.json
    python benchmarks/bench_dynconv.py --device cuda --dtype bfloat16 --compile
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _harness import Timing, machine, peak_bytes, time_interleaved, write_json
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from mkdext.ops import dynamic_conv2d, dynamic_conv2d_algorithms
from mkdext.ops._dispatch import has_kernel

SIZES = ("16,64,64,48", "16,64,16,48", "16,64,144,48", "16,16,16,48", "4,64,64,96", "16,64,64,24")
PRIMITIVES = ("forward", "input grad", "weight grad", "all seven")
ALGORITHMS = ("auto", "direct", "winograd", "tf32", "tf32x3")
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
OURS = "mkdext"
REPLAY = f"{OURS}, graph replay"
LAUNCHES = {"all seven": 3}
"""The fewest, where that is more than one: each of the calls can be a single kernel."""

Form = tuple[Callable[..., Tensor], Callable[..., Tensor]]  # the convolution, one gradient
Calls = dict[str, Callable[[], object]]


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

    def tensors(self, kernel_size: int, options: argparse.Namespace) -> list[Tensor]:
        """Return random x, w and g."""
        torch.manual_seed(0)
        make = functools.partial(torch.randn, dtype=DTYPES[options.dtype], device=options.device)
        return [
            make(self.batch, self.in_channels, self.side, self.side),
            make(self.batch, self.out_channels, self.in_channels, kernel_size, kernel_size),
            make(self.batch, self.out_channels, self.side, self.side),
        ]

    def flops(self, kernel_size: int, primitive: str) -> int:
        """Return the floating-point operations of the direct algorithm."""
        one = 2 * self.batch * self.in_channels * self.out_channels * (self.side * kernel_size) ** 2
        return 7 * one if primitive == "all seven" else one

    def bytes(self, kernel_size: int, primitive: str, dtype: torch.dtype) -> int:
        """Return the fewest bytes to move: each call reads its operands and writes its results."""
        pixels = self.batch * self.side**2
        x, y = pixels * self.in_channels, pixels * self.out_channels
        w = self.batch * self.in_channels * self.out_channels * kernel_size**2
        if primitive == "all seven":  # the double backward alone reads x, w, g, ggx and ggw
            return dtype.itemsize * (6 * x + 6 * w + 4 * y)
        return dtype.itemsize * (x + w + y)

    def limit(self, kernel_size: int, primitive: str, header: Mapping[str, object]) -> float:
        """Return the seconds that the machine of a header needs at least."""
        dtype = DTYPES[str(header["dtype"])]
        rate, bandwidth, launch = (
            float(str(header[key])) for key in ("peak_gflops", "copy_gb_per_s", "launch_us")
        )
        return max(
            self.flops(kernel_size, primitive) / rate / 1e9,
            self.bytes(kernel_size, primitive, dtype) / bandwidth / 1e9,
            LAUNCHES.get(primitive, 1) * launch / 1e6,
        )


def grouped(x: Tensor, w: Tensor) -> Tensor:
    """Convolve with the samples as groups."""
    batch, channels, height, width = x.shape
    folded = x.reshape(1, batch * channels, height, width)
    kernels = w.flatten(0, 1)
    y = F.conv2d(folded, kernels, padding=w.shape[-1] // 2, groups=batch)
    return y.reshape(batch, -1, height, width)


def vmapped(x: Tensor, w: Tensor) -> Tensor:
    """Convolve sample by sample under `torch.vmap`."""
    return torch.vmap(lambda x, w: F.conv2d(x[None], w, padding=w.shape[-1] // 2)[0])(x, w)


def patches(x: Tensor, k: int) -> Tensor:
    """Return the patches of a map as columns; those of size 1 are the map."""
    return x.flatten(2) if k == 1 else F.unfold(x, k, padding=k // 2)


def unfolded(x: Tensor, w: Tensor) -> Tensor:
    """Multiply the kernels with the map's patches."""
    y = w.flatten(2) @ patches(x, w.shape[-1])
    return y.reshape(x.shape[0], -1, *x.shape[2:])


def grouped_gradient(g: Tensor, x: Tensor, w: Tensor, index: int) -> Tensor:
    """Return one gradient of `grouped` by the operator that autograd calls."""
    batch, _, height, width = x.shape
    pad = [w.shape[-1] // 2] * 2
    mask = [index == 0, index == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        g.reshape(1, -1, height, width),
        x.reshape(1, -1, height, width),
        w.flatten(0, 1),
        None,
        [1, 1],
        pad,
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
        pad = [w.shape[-1] // 2] * 2
        gradients = torch.ops.aten.convolution_backward(
            g[None], x[None], w, None, [1, 1], pad, [1, 1], False, [0, 0], 1, mask
        )
        return gradients[index] if index == 1 else gradients[index][0]

    return torch.vmap(one)(g, x, w)


def unfolded_gradient(g: Tensor, x: Tensor, w: Tensor, index: int) -> Tensor:
    """Return one gradient of `unfolded`, written out."""
    k = w.shape[-1]
    if index == 0:
        columns = w.flatten(2).mT @ g.flatten(2)
        return columns.view_as(x) if k == 1 else F.fold(columns, x.shape[2:], k, padding=k // 2)
    return (g.flatten(2) @ patches(x, k).mT).view_as(w)


def our_gradient(algorithm: str, g: Tensor, x: Tensor, w: Tensor, index: int) -> Tensor:
    """Return one gradient by the operator that autograd calls, or by autograd without one."""
    if has_kernel(g):
        if index == 0:
            return torch.ops.mkdext.dynamic_conv2d_input_grad(g, w, algorithm)
        return torch.ops.mkdext.dynamic_conv2d_weight_grad(g, x, w.shape[-1], algorithm)
    return grouped_gradient(g, x, w, index)


def forms(x: Tensor, w: Tensor, algorithm: str) -> dict[str, Form]:
    """Return the convolution and its gradients in each form."""
    if algorithm == "auto" and x.is_cuda:  # the operators take what the function resolves it to
        algorithm = dynamic_conv2d_algorithms(x, w)["forward"]
    convolve = functools.partial(dynamic_conv2d, algorithm=algorithm)
    return {
        OURS: (convolve, functools.partial(our_gradient, algorithm)),
        "grouped": (grouped, grouped_gradient),
        "vmap": (vmapped, vmapped_gradient),
        "unfold+bmm": (unfolded, unfolded_gradient),
    }


def algorithm_taken(x: Tensor, w: Tensor, primitive: str, algorithm: str) -> str:
    """Return what our form runs: one name, or all that "all seven" goes through."""
    if algorithm != "auto":
        return algorithm
    chosen = dynamic_conv2d_algorithms(x, w)
    if primitive == "all seven":
        return "+".join(sorted(set(chosen.values())))
    return chosen[primitive.replace(" ", "_")]


def all_seven(convolve: Callable[[Tensor, Tensor], Tensor], tensors: list[Tensor]) -> None:
    """Run forward, backward and double backward; every gradient is asked for."""
    x, w, g, ggx, ggw = tensors
    first = torch.autograd.grad(convolve(x, w), (x, w), g, create_graph=True)
    torch.autograd.grad(first, (x, w, g), (ggx, ggw))


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what `torch.compile` makes of a form, compiled once for all sizes."""
    return torch.compile(function, dynamic=False)


def candidates(
    tensors: list[Tensor], primitive: str, algorithm: str, also_compiled: bool = False
) -> Calls:
    """Return one call per form, all on the same tensors."""
    x, w, g = tensors
    pairs = list(forms(x, w, algorithm).items())
    if also_compiled and primitive != "all seven":  # it cannot be differentiated twice
        pairs += [
            (f"{name}, compiled", (compiled(form[0]), compiled(form[1])))
            for name, form in pairs
            if name != OURS
        ]
    if primitive == "forward":
        return {name: functools.partial(form[0], x, w) for name, form in pairs}
    if primitive in ("input grad", "weight grad"):
        index = PRIMITIVES.index(primitive) - 1
        return {name: functools.partial(form[1], g, x, w, index) for name, form in pairs}
    leaves = [t.requires_grad_() for t in (x, w, g)] + [torch.randn_like(x), torch.randn_like(w)]
    return {name: functools.partial(all_seven, form[0], leaves) for name, form in pairs}


def replayed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the replay of a call that was captured in a CUDA graph."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    return graph.replay


def check(calls: Calls, options: argparse.Namespace) -> None:
    """Require that all forms compute the same."""
    results = {name: call() for name, call in calls.items()}
    expected = results["grouped"]
    # Factors that are rounded to 8 or 11 bits, by some forms and not by others.
    exact = options.dtype in ("float32", "float64") and not options.tf32
    tolerance = 1e-4 if exact and options.algorithm != "tf32" else 2e-2
    if isinstance(expected, Tensor):
        for name, result in results.items():
            assert isinstance(result, Tensor)
            # In float32, because the norm of a large tensor overflows float16.
            error = (result - expected).float().norm() / expected.float().norm()
            assert error < tolerance, f"{name} differs from grouped by {error:.1e}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument(
        "--algorithm", choices=ALGORITHMS, default="auto", help="of our form (default: %(default)s)"
    )
    parser.add_argument(
        "--kernel-sizes", type=int, nargs="+", default=[3], metavar="K", help="odd (default: 3)"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the ratios as a PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every timing to FILE")
    parser.add_argument(
        "--sizes",
        type=Size.parse,
        nargs="+",
        default=[Size.parse(text) for text in SIZES],
        metavar="B,Ci,Co,H",
        help="default: " + " ".join(SIZES),
    )
    parser.add_argument(
        "--tf32", action="store_true", help="let PyTorch, and so every form, round to tf32 (CUDA)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="time the peers under torch.compile as well"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15, help="rounds per size (default 15)")
    arguments = parser.parse_args()
    if arguments.tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "tf32"
    else:  # cuDNN's default is tf32
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    if arguments.algorithm == "tf32" and not arguments.tf32:
        parser.error("--algorithm tf32 needs --tf32: the other forms must be allowed it too")
    for size in arguments.kernel_sizes:
        if size < 1 or size % 2 == 0:
            parser.error(f"--kernel-sizes must be odd and positive, got {size}")
        try:
            dynamic_conv2d(*Size(1, 1, 1, 1).tensors(size, arguments)[:2], arguments.algorithm)
        except ValueError as error:
            parser.error(str(error))
    return arguments


def report(
    table: Table,
    case: dict[str, object],
    flops: int,
    timings: dict[str, Timing],
    peaks: dict[str, int | None],
    limit: float | None,
) -> list[dict[str, object]]:
    """Add one line per form to the table; return the lines for the JSON file.

    The limit is in seconds.
    """
    peers = {name: timing for name, timing in timings.items() if name not in (OURS, REPLAY)}
    best = min(peers, key=lambda name: peers[name].median)
    rows: list[dict[str, object]] = []
    for name, timing in timings.items():
        gflops = flops / timing.median / 1e9
        ratio = timing.ratio_to(timings[best])
        peak = peaks.get(name)
        share = None if limit is None else limit / timing.median
        ours = name == OURS
        table.add_row(
            str(case["kernel_size"]) if ours else "",
            str(case["size"]) if ours else "",
            str(case["primitive"]) if ours else "",
            f"{name} {case['algorithm']}" if ours else name,
            f"{1e3 * timing.median:.2f}",
            f"{timing.spread:.0%}",
            f"{gflops:.1f}",
            f"{ratio:.2f}",
            *([] if share is None else [f"{share:.0%}"]),
            "" if peak is None else f"{peak / 2**20:.0f}",
            style="bold" if ours else None,
            end_section=name == list(timings)[-1],
        )
        rows.append(
            {
                **case,
                "algorithm": case["algorithm"] if name in (OURS, REPLAY) else None,
                "form": name,
                "median_s": timing.median,
                "spread": timing.spread,
                "gflops": gflops,
                "best_peer": best,
                "ratio_to_best_peer": ratio,
                "share_of_limit": share,
                "peak_bytes": peak,
                "seconds": timing.seconds,
            }
        )
    return rows


def draw(rows: list[dict[str, object]], options: argparse.Namespace) -> None:
    """Draw our ratio to the best peer: a panel per kernel size, a group of bars per size."""
    count = len(options.kernel_sizes)
    figure = Figure((1.6 + 1.4 * len(options.sizes), 0.4 + 2.4 * count), layout="constrained")
    panels = figure.subplots(count, sharex=True, squeeze=False)
    labels = [str(size) for size in options.sizes]
    width = 0.8 / len(PRIMITIVES)
    for panel, kernel_size in zip(panels[:, 0], options.kernel_sizes, strict=True):
        for n, primitive in enumerate(PRIMITIVES):
            ratios = [
                row["ratio_to_best_peer"]
                for row in rows
                if (row["form"], row["kernel_size"], row["primitive"])
                == (OURS, kernel_size, primitive)
            ]
            places = [i + (n - (len(PRIMITIVES) - 1) / 2) * width for i in range(len(labels))]
            panel.bar(places, ratios, width, label=primitive)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_title(f"{kernel_size}x{kernel_size} kernels, {options.dtype}", fontsize="medium")
        panel.set_ylabel("times as fast\nas the best peer")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    panels[-1, 0].set_xticks(range(len(labels)), labels, fontsize="small")
    panels[-1, 0].set_xlabel("batch, input channels -> output channels, height = width")
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=150)


def main() -> None:
    """Run the benchmark and print the table."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    header = machine(options.device, DTYPES[options.dtype])
    header |= {"dtype": options.dtype, "algorithm": options.algorithm}
    console = Console(width=None if sys.stdout.isatty() else 110)
    for key, value in header.items():
        console.print(f"{key:>22}: {value}", highlight=False)
    on_gpu = options.device.type == "cuda"
    names = ["k", "size", "primitive", "form", "ms", "spread", "GFLOP/s", "ratio"]
    table = Table(*names, *(["of limit"] if on_gpu else []), "peak MiB")
    for column in table.columns[4:]:
        column.justify = "right"
    rows: list[dict[str, object]] = []
    cases = list(itertools.product(options.kernel_sizes, options.sizes, PRIMITIVES))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for kernel_size, size, primitive in cases:
            progress.update(task, description=f"{kernel_size}x{kernel_size}, {size}: {primitive}")
            tensors = size.tensors(kernel_size, options)
            calls = candidates(tensors, primitive, options.algorithm, options.compile)
            peaks = {name: peak_bytes(call, options.device) for name, call in calls.items()}
            check(calls, options)
            if on_gpu and primitive == "all seven" and has_kernel(tensors[0]):
                calls[REPLAY] = replayed(calls[OURS], options.device)
            timings = time_interleaved(calls, options.device, options.repeats)
            case: dict[str, object] = {
                "size": str(size),
                **asdict(size),
                "kernel_size": kernel_size,
                "primitive": primitive,
                "algorithm": algorithm_taken(*tensors[:2], primitive, options.algorithm),
            }
            flops = size.flops(kernel_size, primitive)
            limit = size.limit(kernel_size, primitive, header) if on_gpu else None
            rows += report(table, case, flops, timings, peaks, limit)
            progress.advance(task)
    console.print(table)
    console.print(
        "ms: median; spread: interquartile range / median; GFLOP/s: of the direct algorithm; "
        "ratio: speed against the fastest peer, median over the rounds; "
        "peak MiB: memory of a call above what stood before; peak_gflops: a matrix product; "
        "copy_gb_per_s: bytes read and written by a copy of 256 MiB; of limit: of the speed that "
        "these, and launch_us for each launch, allow."
    )
    if options.figure is not None:
        draw(rows, options)
        console.print(f"drawn to {options.figure.resolve()}")
    if options.json is not None:
        write_json(options.json, header, rows)
        console.print(f"written to {options.json.resolve()}")


if __name__ == "__main__":
    main()
