"""The networks' own convolutions: alone, in trainings and in enlarging, against stock PyTorch.

What is timed:

- conv2d: 3x3 convolutions with bias, `B, Ci -> Co, side`, forward, and backward to input, weight
  and bias; also with the pixel shuffle that follows them in an upsampler;
- step: a plain training step at x4 (forward, L1, backward, Adam) on `B` patches of `side`;
- teacher: the forward of RCAN-T, without gradients;
- enlarging: a picture of 320x180 to 1280x720, beside ONNX Runtime where it is installed;
- with more than one thread also a step on all of them and on one, and 1920x1080 pixels enlarged in
  the tiles of `python -m mkdext.upscale`. ONNX Runtime takes the same tiles, and the whole picture.

Each is timed in NCHW and in channels_last, the last two in the networks' own layout only. The peer
is the faster of the stock forms in the same run. GFLOP/s count the convolutions of the direct
algorithm.

`--errors` measures errors instead of times. Those of a convolution and of its gradients are norms
of the difference to float64 over norms of the result; those of whole networks, on the held-out
built-in photographs, are the largest difference of a pixel in levels of 255. All networks but the
built-in one have random weights.

    python benchmarks/bench_networks.py --threads 1
    python benchmarks/bench_networks.py --threads 1 --rows "conv2d 16, 64" teacher --repeats 3
    python benchmarks/bench_networks.py --threads 2 --rows threads 1080 --json results.json
    python benchmarks/bench_networks.py --errors
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from _harness import Timing, machine, on_threads, time_interleaved, write_json
from bench_dynconv import Size
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mkdext.data import builtin_photographs, imresize, read_image
from mkdext.exporting.onnx_file import exporters, run_onnx, write_onnx
from mkdext.exporting.targets import TARGETS
from mkdext.inference import Network, Tiling, enlarge_in_tiles, load_network, plan_tiles
from mkdext.models import SRNetwork, create_model
from mkdext.ops.conv2d import conv2d, stock_convolutions
from mkdext.training.schedule import Phase
from mkdext.training.step import Batch, TrainingStep

SCALE = 4
BUILTIN = "built-in"
CONVOLUTIONS = [  # and the factor of the pixel shuffle
    (Size(16, 16, 16, 48), 1),
    (Size(8, 16, 16, 24), 1),
    (Size(16, 32, 32, 48), 1),
    (Size(16, 64, 64, 48), 1),
    (Size(1, 64, 64, 256), 1),
    (Size(16, 16, 64, 48), 2),
    (Size(16, 64, 256, 48), 2),
    (Size(16, 16, 3, 192), 1),
]
STEPS = [
    ("rcan-a", 16, 48),
    ("rcan-a", 8, 24),
    ("edsr-s", 16, 48),
    ("edsr-s", 8, 24),
    ("rcan-c", 16, 48),
]
LR = 1e-4
SLOW_REPEATS = 3
UPSCALE_BYTES = 1.5e9
"""What `upscale` has left of its 2 GB beside PyTorch and a decoded picture of 1920x1080."""

Call = Callable[[], object]
Upscaler = Callable[[Tensor], Tensor]


class Form(NamedTuple):
    """Whose convolutions, in which layout."""

    is_stock: bool
    layout: torch.memory_format

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor, factor: int) -> Tensor:
        """Convolve, and shuffle pixels if the factor is more than 1."""
        if not self.is_stock:
            return conv2d(input, weight, bias, upscale_factor=factor)
        output = F.conv2d(input, weight, bias, padding=1)
        return F.pixel_shuffle(output, factor) if factor > 1 else output

    def running(self, call: Call) -> Call:
        """Return the call of something that contains networks, on these convolutions."""
        if not self.is_stock:
            return call

        def run() -> object:
            with stock_convolutions():
                return call()

        return run

    def laid(self, tensor: Tensor) -> Tensor:
        """Return a tensor in this layout."""
        return tensor.contiguous(memory_format=self.layout)


FORMS = {
    "stock NCHW": Form(True, torch.contiguous_format),
    "stock channels_last": Form(True, torch.channels_last),
    "mkdext NCHW": Form(False, torch.contiguous_format),
    "mkdext channels_last": Form(False, torch.channels_last),
}
USUAL = {name: form for name, form in FORMS.items() if form.layout is SRNetwork.layout}
"""Those in the layout of the networks."""
OURS = next(name for name, form in USUAL.items() if not form.is_stock)
RUNTIME, RUNTIME_WHOLE = "ONNX Runtime", "ONNX Runtime, whole picture"
ONE_THREAD = "mkdext, one thread"
PEERS = {
    "stock": tuple(name for name, form in FORMS.items() if form.is_stock),
    "ONNX Runtime": (RUNTIME, RUNTIME_WHOLE),
    "one thread": (ONE_THREAD,),
}


@dataclass(frozen=True)
class Row:
    """Calls that do the same, by their forms."""

    calls: dict[str, Call]
    is_slow: bool = False


def convolution(size: Size, factor: int, backward: bool) -> Row:
    """Return the forward or backward of one convolution."""
    torch.manual_seed(0)
    x = torch.randn(size.batch, size.in_channels, size.side, size.side)
    w = torch.randn(size.out_channels, size.in_channels, 3, 3)
    b = torch.randn(size.out_channels)
    calls: dict[str, Call] = {}
    for name, form in FORMS.items():
        leaves = [form.laid(x), form.laid(w), b.clone()]
        calls[name] = partial(form.convolve, *leaves, factor)
        if backward:
            y = form.convolve(*(leaf.requires_grad_() for leaf in leaves), factor)
            g = torch.randn_like(y)
            calls[name] = partial(torch.autograd.grad, y, leaves, g, retain_graph=True)
    return Row(calls)


def plain_step(name: str, batch: int, side: int, form: Form) -> Call:
    """Return a training step without distillation on fixed random patches."""
    torch.manual_seed(0)
    student = create_model(name, SCALE).to(memory_format=form.layout)
    low = form.laid(torch.rand(batch, 3, side, side))
    high = form.laid(torch.rand(batch, 3, SCALE * side, SCALE * side))
    step = TrainingStep(student, torch.optim.Adam(student.parameters(), LR))
    return form.running(partial(step, 0, Batch(low, high), Phase(LR, 1.0, 0.0)))


def steps(name: str, batch: int, side: int) -> Row:
    """Return the training step of a student in each form."""
    return Row({label: plain_step(name, batch, side, form) for label, form in FORMS.items()})


def step_on_threads(threads: int) -> Row:
    """Return one training step on one thread and on all."""
    step = plain_step("rcan-a", 16, 48, FORMS[OURS])

    def on(count: int) -> None:
        with on_threads(count):
            step()

    return Row({ONE_THREAD: partial(on, 1), f"mkdext, {threads} threads": partial(on, threads)})


def network_named(name: str) -> Network:
    """Return the built-in network, or one with random weights."""
    if name == BUILTIN:
        return load_network(None)
    torch.manual_seed(0)
    model = create_model(name, SCALE).eval().requires_grad_(False)
    return Network(name, model.to(memory_format=model.layout), SCALE, torch.device("cpu"))


def forwards(network: Network, low: Tensor) -> dict[str, Call]:
    """Return the forward of a network without gradients in each form."""

    @torch.inference_mode()
    def enlarge(model: nn.Module, low: Tensor) -> Tensor:
        return model(low)

    calls = {}
    for name, form in FORMS.items():
        model = copy.deepcopy(network.model).to(memory_format=form.layout)
        calls[name] = form.running(partial(enlarge, model, form.laid(low)))
    return calls


def teacher() -> Row:
    """Return the forward of the teacher of a training."""
    return Row(forwards(network_named("rcan-t"), torch.rand(16, 3, 48, 48)), is_slow=True)


def enlarging(name: str) -> Row:
    """Return the enlarging of a small picture."""
    network, low = network_named(name), torch.rand(1, 3, 180, 320)
    calls = forwards(network, low)
    if has_runtime():
        calls[RUNTIME] = partial(runtime(network), low)
    return Row(calls)


def enlarging_in_tiles() -> Row:
    """Return the enlarging of a large picture, as `upscale` cuts it."""
    network, low = network_named("rcan-a"), torch.rand(3, 1080, 1920)
    tiling = plan_tiles((1080, 1920), network.costs, network.overlap, SCALE, 3, UPSCALE_BYTES)

    def in_parts(upscale: Upscaler, tiling: Tiling) -> Call:
        return partial(enlarge_in_tiles, upscale, low, tiling, SCALE)

    calls = {name: form.running(in_parts(network, tiling)) for name, form in USUAL.items()}
    if has_runtime():
        upscale = runtime(network_named("rcan-a"))
        calls[RUNTIME] = in_parts(upscale, tiling)
        calls[RUNTIME_WHOLE] = in_parts(upscale, Tiling(1080, 1920, overlap=0))
    return Row(calls, is_slow=True)


def has_runtime() -> bool:
    """Whether a network can be exported, and run by ONNX Runtime."""
    return all(find_spec(package) for package in TARGETS["onnx"].packages)


def runtime(network: Network) -> Upscaler:
    """Return a network in ONNX Runtime, on as many threads as PyTorch has now.

    Its weights may be laid out anew.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        write_onnx(network, path, exporters(network.model)[0])
        return run_onnx(path)


def all_rows(threads: int) -> dict[str, Callable[[], Row]]:
    """Return what makes each row, by its name."""
    rows: dict[str, Callable[[], Row]] = {}
    for size, factor in CONVOLUTIONS:
        name = f"conv2d {size}{', pixel shuffle' if factor > 1 else ''}"
        rows[f"{name}, forward"] = partial(convolution, size, factor, backward=False)
        rows[f"{name}, backward"] = partial(convolution, size, factor, backward=True)
    for student, batch, side in STEPS:
        rows[f"step {student} {batch}, {side}"] = partial(steps, student, batch, side)
    rows["teacher rcan-t 16, 48"] = teacher
    for network in (BUILTIN, "rcan-a", "edsr-s"):
        rows[f"enlarging {network} 320x180"] = partial(enlarging, network)
    if threads > 1:
        rows["threads: step rcan-a 16, 48"] = partial(step_on_threads, threads)
        rows["enlarging rcan-a 1920x1080"] = enlarging_in_tiles
    return rows


def measure(name: str, row: Row, repeats: int) -> list[dict[str, object]]:
    """Time a row; return a result for each form."""
    # Only PyTorch's own convolutions are known to the counter.
    with stock_convolutions(), FlopCounterMode(display=False) as counter:
        next(iter(row.calls.values()))()
    repeats = min(repeats, SLOW_REPEATS) if row.is_slow else repeats
    timings = time_interleaved(row.calls, torch.device("cpu"), repeats)
    return [
        {
            "row": name,
            "form": form,
            "median_s": timing.median,
            "spread": timing.spread,
            "gflops": counter.get_total_flops() / timing.median / 1e9,
            "ratio_to": ratios(timing, timings),
            "seconds": timing.seconds,
        }
        for form, timing in timings.items()
    ]


def ratios(timing: Timing, timings: dict[str, Timing]) -> dict[str, float]:
    """Return how many times faster a form is than the fastest of each kind of peers there are."""
    found = {}
    for kind, names in PEERS.items():
        peers = [timings[name] for name in names if name in timings]
        if peers:
            found[kind] = timing.ratio_to(min(peers, key=lambda peer: peer.median))
    return found


def print_timings(console: Console, results: list[dict[str, object]]) -> None:
    """Print a line for each form."""
    kinds = [kind for kind in PEERS if any(kind in result["ratio_to"] for result in results)]
    columns = (f"times as fast as {kind}" for kind in kinds)
    table = Table("row", "form", "ms", "spread", "GFLOP/s", *columns)
    for before, result in zip([None, *results], results, strict=False):
        is_first = before is None or before["row"] != result["row"]
        if is_first:
            table.add_section()
        ratio_to = result["ratio_to"]
        table.add_row(
            result["row"] if is_first else "",
            result["form"],
            f"{1e3 * result['median_s']:.2f}",
            f"{result['spread']:.0%}",
            f"{result['gflops']:.1f}",
            *(f"{ratio_to[kind]:.2f}" if kind in ratio_to else "" for kind in kinds),
            style="bold" if result["form"] == OURS else None,
        )
    console.print(table)


SOBEL = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])
CONTENTS = {
    "N(0, 1)": lambda x, w: (x.normal_(), w.normal_()),
    "0..255 plus 100": lambda x, w: (x.uniform_(100, 355), w.normal_()),
    "255 plus N(0, 1), Sobel": lambda x, w: (x.normal_(255), w[..., :1, :1].normal_() * SOBEL),
}
"""How maps and kernels are filled; the last, where all but the noise cancels, is the worst."""


def convolution_errors() -> Iterator[dict[str, object]]:
    """Measure a convolution and its gradients."""
    for content, fill in CONTENTS.items():
        for channels in (16, 64):
            torch.manual_seed(0)
            x = torch.empty(16, channels, 48, 48)
            x, w = fill(x, torch.empty(channels, channels, 3, 3))
            tensors = [x, w, torch.randn(channels), torch.randn_like(x)]
            exact = products(FORMS["stock NCHW"], [tensor.double() for tensor in tensors])
            found = {name: products(form, tensors) for name, form in FORMS.items()}
            for index, product in enumerate(("forward", "input grad", "weight grad")):
                yield {
                    "filled with": content,
                    "channels": str(channels),
                    "product": product,
                    **{
                        name: float((of[index] - exact[index]).norm() / exact[index].norm())
                        for name, of in found.items()
                    },
                }


def products(form: Form, tensors: list[Tensor]) -> list[Tensor]:
    """Return the forward and the gradients of input and weight.

    Maps come without their border, whose sums lack a part of the kernel, so that nothing cancels.
    """
    x, w, b, g = tensors
    leaves = [form.laid(x).requires_grad_(), form.laid(w).requires_grad_()]
    y = form.convolve(*leaves, b, 1)
    of_input, of_weight = torch.autograd.grad(y, leaves, form.laid(g))
    return [y.detach()[..., 1:-1, 1:-1], of_input[..., 1:-1, 1:-1], of_weight]


def network_errors() -> Iterator[dict[str, object]]:
    """Measure whole networks on photographs."""
    for name in (BUILTIN, "rcan-a", "rcan-t", "edsr-s", "vdsr"):
        network = network_named(name)
        exact = copy.deepcopy(network.model).double()
        for path in builtin_photographs("validation"):
            image = read_image(path)
            height, width = (side // SCALE * SCALE for side in image.shape[1:])
            low = imresize(image[None, :, :height, :width], 1 / SCALE) / 255
            with torch.inference_mode():
                expected = exact(low.double())
            found = {label: form.running(partial(network, low))() for label, form in USUAL.items()}
            yield {
                "network": name,
                "photograph": path.name,
                **{label: 255 * float((sr - expected).abs().max()) for label, sr in found.items()},
            }


def print_errors(console: Console, results: list[dict[str, object]], unit: str) -> None:
    """Print a line for each result."""
    table = Table(*results[0], title=f"error against float64, {unit}")
    for result in results:
        cells = (f"{v:.1e}" if isinstance(v, float) else v for v in result.values())
        table.add_row(*cells)
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--repeats",
        type=int,
        default=15,
        help=f"rounds per row, {SLOW_REPEATS} at most where a round takes long (%(default)s)",
    )
    parser.add_argument(
        "--rows", nargs="+", default=[""], metavar="TEXT", help="those whose names contain one"
    )
    parser.add_argument("--errors", action="store_true", help="measure errors instead of times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    options = parser.parse_args()
    if options.threads < 1 or options.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    rows = all_rows(options.threads)
    options.rows = {
        name: make for name, make in rows.items() if any(text in name for text in options.rows)
    }
    if not options.rows:
        parser.error(f"--rows must be in the name of a row: {'; '.join(rows)}")
    return options


def main() -> None:
    """Measure and print."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    console = Console()
    header = machine(torch.device("cpu"))
    for key, value in header.items():
        console.print(f"{key:>22}: {value}", highlight=False)
    results: list[dict[str, object]] = []
    if options.errors:
        for errors, unit in (
            (convolution_errors(), "norm over norm"),
            (network_errors(), "largest difference in levels of 255"),
        ):
            found = list(track(errors, unit, console=console))
            print_errors(console, found, unit)
            results += found
    else:
        if not has_runtime():
            console.print(f"no ONNX Runtime: pip install {' '.join(TARGETS['onnx'].packages)}")
        for name, make in track(options.rows.items(), "rows", console=console):
            results += measure(name, make(), options.repeats)
        print_timings(console, results)
    if options.json is not None:
        write_json(options.json, header, results)


if __name__ == "__main__":
    main()
