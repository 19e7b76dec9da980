"""Time and memory of one meta step, with mkdext's operators and with stock PyTorch's.

The step is that of an RCAN-A student at x4: teacher features given (64 channels, 4 points), batch
16, 48x48 low-resolution patches, 64 kernels of 3x3, one inner step, the gradient for every KRNet
parameter, then the student's own step. It is timed in four forms:

- mkdext: the package;
- stock convolutions: the package's step on `F.conv2d`, for KRNets grouped, the fastest way to write
  a per-sample convolution in PyTorch; tells what the kernels bring, and what the rest does;
- stock: `stock_meta_step.py`, the equations as a user of PyTorch writes them down;
- vanilla: the student's own step without distillation.

That the first and the third compute the same gradients is checked before.

    python benchmarks/bench_meta_step.py
    python benchmarks/bench_meta_step.py --profile
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from _harness import (
    choose_clock,
    machine,
    peak_bytes,
    synchronize,
    time_interleaved,
    write_json,
)
from rich.console import Console
from rich.table import Table
from stock_meta_step import StockKRNet, StockMetaStep
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mkdext._system import extension
from mkdext.methods import MKD, MKDOptions
from mkdext.methods.mkd import krnet
from mkdext.models import create_model, default_points
from mkdext.ops import reference
from mkdext.ops.conv2d import stock_convolutions
from mkdext.training import MetaOptions, TrainOptions
from mkdext.training import step as step_module
from mkdext.training.balance import Balance
from mkdext.training.schedule import Phase
from mkdext.training.step import Batch, Distillation, StepOptions, TrainingStep

POINTS = 4
FORMS = ("mkdext", "stock convolutions", "stock", "vanilla")


def make_step(
    form: str, arguments: argparse.Namespace, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], None], list[torch.optim.Optimizer]]:
    """One step on fixed random patches, and the optimizers of student and KRNets."""
    torch.manual_seed(0)
    device, batch, side = arguments.device, arguments.batch, arguments.patch
    kind = {"device": device, "dtype": dtype}
    meta = MetaOptions(steps=arguments.inner_steps)
    options = TrainOptions(batch_size=batch, patch_size=side, meta=meta).resolved()
    student = create_model("rcan-a", scale=4).to(**kind).to(memory_format=torch.channels_last)
    method = MKD([16] * POINTS, [arguments.channels] * POINTS, MKDOptions(grid=arguments.grid))
    method.to(**kind)
    hints = [torch.randn(batch, arguments.channels, side, side, **kind) for _ in range(POINTS)]
    low = torch.rand(batch, 3, side, side, **kind)
    high = torch.rand(batch, 3, 4 * side, 4 * side, **kind)
    points = default_points(student)
    optimizer = torch.optim.Adam(student.parameters(), options.lr)
    if form == "stock":
        krnets = nn.ModuleList(
            StockKRNet(16, arguments.channels, arguments.grid).to(**kind) for _ in range(POINTS)
        )
        krnets.load_state_dict(method.krnets.state_dict())
        krnet_optimizer = torch.optim.Adam(krnets.parameters(), options.meta.lr)
        stock = StockMetaStep(
            student,
            points,
            krnets,
            optimizer,
            krnet_optimizer,
            options.meta.inner_lr,
            options.meta.kappa,
            options.kd_weight,
        )

        def run_stock() -> None:
            with stock_convolutions():
                stock(low, high, hints)

        return run_stock, [optimizer, krnet_optimizer]
    krnet_optimizer = torch.optim.Adam(method.parameters(), options.meta.lr)
    distils = form != "vanilla"
    balance = Balance(follows=False).to(**kind)
    distillation = Distillation(points, method, krnet_optimizer, balance) if distils else None
    step = TrainingStep(student, optimizer, None, distillation, StepOptions(options.meta))
    # A teacher that costs nothing: its feature maps are given.
    batch = Batch(low, high, hints)
    now = Phase(options.lr, 1.0, options.kd_weight if distils else 0.0)

    def run() -> None:
        with stock_operators() if form == "stock convolutions" else contextlib.nullcontext():
            step(1, batch, now)  # Every tenth, from 0, measures gradients besides.

    return run, [optimizer, krnet_optimizer]


def check_gradients(arguments: argparse.Namespace) -> None:
    """Require mkdext and stock to compute the same gradients, on small patches in float64."""
    values = vars(arguments) | {"batch": 2, "patch": 3 * arguments.grid}
    found = []
    for form in ("mkdext", "stock"):
        run, optimizers = make_step(form, argparse.Namespace(**values), torch.float64)
        gradients: list[torch.Tensor] = []
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(
                lambda optimizer, *_, into=gradients: into.extend(
                    p.grad.clone() for group in optimizer.param_groups for p in group["params"]
                )
            )
        run()
        found.append(gradients)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9 * float(theirs.norm()))


@contextlib.contextmanager
def stock_operators() -> Iterator[None]:
    """KRNets and student on plain PyTorch."""
    krnets = mock.patch.multiple(
        krnet,
        dynamic_conv2d=reference.dynamic_conv2d,
        texture_kernels=reference.texture_kernels,
    )
    with krnets, stock_convolutions():
        yield


class Parts:
    """Seconds that each part of a step takes, what is called inside of it not counted."""

    def __init__(self, device: torch.device) -> None:
        """Start with no part."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._clock = device, choose_clock(device)[0]
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside counts as `name`."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def counted(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        """The function, counted as `name`."""

        def call(*arguments: object, **named: object) -> object:
            with self.part(name):
                return function(*arguments, **named)

        return call

    def _charge(self) -> None:
        synchronize(self._device)
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def parts_of(run: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Seconds of the parts of mkdext's step, measured from outside."""
    parts = Parts(device)
    gradient, meta_gradient = MKD.gradient, step_module.meta_gradient

    def mkd_gradient(
        self: MKD,
        student: object,
        teacher: object,
        create_graph: bool = False,
        parameters: object = (),
    ) -> object:
        name = "KRNets, inner gradient" if create_graph else "KRNets, own step"
        return parts.counted(name, gradient)(self, student, teacher, create_graph, parameters)

    def counted_meta_gradient(inner: object, objective: object, *others: object) -> object:
        inner = parts.counted("student, inner gradient", inner)
        objective = parts.counted("student, reconstruction in the objective", objective)
        return parts.counted("meta-gradient (student and KRNets)", meta_gradient)(
            inner, objective, *others
        )

    kept = parts.counted("KRNets, in the objective, with gradient", MKD.once_differentiable)
    forward = parts.counted("student, forward", step_module.forward_with_features)
    with (
        mock.patch.object(MKD, "gradient", mkd_gradient),
        mock.patch.object(MKD, "once_differentiable", kept),
        mock.patch.object(step_module, "meta_gradient", counted_meta_gradient),
        mock.patch.object(step_module, "forward_with_features", forward),
        parts.part("student, own backward, and the rest"),
    ):
        run()
    return parts.seconds


def print_profile(console: Console, run: Callable[[], None], device: torch.device) -> None:
    """Print the costs of mkdext's step by part and by operator."""
    for _ in range(2):
        run()
    by_part = parts_of(run, device)
    table = Table("part", "ms", "%")
    for name, seconds in sorted(by_part.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{1e3 * seconds:.0f}", f"{seconds / sum(by_part.values()):.1%}")
    console.print(table)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        run()
    kind = "device" if device.type == "cuda" else "cpu"
    costs = [
        (event.key, event.count, getattr(event, f"self_{kind}_time_total"))
        for event in profiler.key_averages()
    ]
    total = sum(cost for _, _, cost in costs)
    table = Table("operator", "calls", "ms", "%")
    for name, calls, cost in sorted(costs, key=lambda row: -row[2])[:20]:
        table.add_row(name, str(calls), f"{cost / 1e3:.0f}", f"{cost / total:.1%}")
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="patches (%(default)s)")
    parser.add_argument("--patch", type=int, default=48, help="their side (%(default)s)")
    parser.add_argument("--channels", type=int, default=64, help="the teacher's (%(default)s)")
    parser.add_argument("--grid", type=int, default=8, help="grid x grid kernels (%(default)s)")
    parser.add_argument(
        "--inner-steps", type=int, default=1, help="T; the stock form can 1 only (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="rounds counted (%(default)s)")
    parser.add_argument("--threads", type=int, help="PyTorch's default if not given")
    parser.add_argument("--device", type=torch.device, default="cpu", help="%(default)s or cuda")
    parser.add_argument("--profile", action="store_true", help="where mkdext's time goes, alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # As our operators compute; cuDNN's default is tf32.
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    if not extension.available():
        sys.exit("the compiled operators are missing: `python -m mkdext.doctor` tells the fix")
    console = Console()
    header = machine(arguments.device)
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    if arguments.profile:
        print_profile(console, make_step("mkdext", arguments)[0], arguments.device)
        return
    names = [form for form in FORMS if form != "stock" or arguments.inner_steps == 1]
    if "stock" in names:
        check_gradients(arguments)
    forms = {form: make_step(form, arguments)[0] for form in names}
    with console.status(f"{arguments.repeats + 1} rounds of one step of each form"):
        timings = time_interleaved(forms, arguments.device, arguments.repeats)
        memory = {form: peak_bytes(run, arguments.device) for form, run in forms.items()}
    peer = "stock" if "stock" in names else "stock convolutions"
    table = Table("form", "median s", "spread", f"times as fast as {peer}", "peak memory MB")
    for form, timing in timings.items():
        megabytes = memory[form]
        table.add_row(
            form,
            f"{timing.median:.3f}",
            f"{timing.spread:.0%}",
            f"{timing.ratio_to(timings[peer]):.2f}",
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
