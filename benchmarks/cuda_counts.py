"""Counts what the CUDA kernels execute and bounds their time on an H100, without a GPU.

Nothing is measured here. nvcc compiles the kernels to PTX, an interpreter runs one block in the
midst of each launch, and what it counts is divided by what a multiprocessor can do in a cycle. The
largest of these bounds is what a block takes at least; caches, latencies, registers and waiting at
barriers come on top. GPUs run other instructions than PTX: moves, most loads of parameters and some
arithmetic of addresses are gone there and are not counted in the bounds, but a division, a sum of
64 bits, or a conversion to tf32 takes several.

    python benchmarks/cuda_counts.py
    python benchmarks/cuda_counts.py --sizes 16,64,64,48,48,3 4,64,3,96,96,3 --precisions tf32
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # before the package of the tests is looked for

from tests.ops.cuda_checks import tensors  # noqa: E402
from tests.ops.cuda_operators import PRECISIONS, Shape  # noqa: E402
from tests.ops.ptx.counters import Counts  # noqa: E402
from tests.ops.ptx.operators import PtxOperators  # noqa: E402
from tests.ops.ptx.toolchain import compile_operators, find_nvcc  # noqa: E402

MULTIPROCESSORS = 132
CLOCK_GHZ = 1.755
SCHEDULERS = 4  # of a multiprocessor; each issues one instruction of a warp in a cycle
# Multiply-adds of a multiprocessor's tensor cores in a cycle, by NVIDIA's peak of dense matrices:
# 495 TFLOP/s of tf32 and 989 of bfloat16.
TENSOR_CORE_RATE = {"tf32": 1024, "half": 2048}
# What mma.sync reaches of that peak on an H100; only wgmma reaches it.
MMA_SYNC_SHARE = 0.62
MMA_PRODUCTS = {"tf32": 16 * 8 * 8, "half": 16 * 8 * 16}  # of one instruction
FLOAT64_SHARE = 0.5  # of the rate of float32, an instruction of a warp in a cycle and scheduler
SECTORS_PER_CYCLE = 4  # of the first-level cache
NOT_ISSUED = ("move", "parameter")

RESOURCES = ("issue", "memory", "tensor", "float")
COLUMNS = {
    "mma": ("mma",),
    "float": ("float32", "float64"),
    "convert": ("conversion",),
    "integer": ("integer",),
    "control": ("control",),
    "s.load": ("shared load",),
    "s.store": ("shared store",),
    "g.load": ("global load",),
    "g.store": ("global store",),
    "copy": ("copy",),
    "not issued": NOT_ISSUED,
}
"""Of the table: the classes of instructions that each adds up."""

SIZES = ["16,64,64,48,48,3", "16,64,3,48,48,3", "16,3,64,48,48,3", "16,64,64,48,48,5"]
PRODUCTS = ("forward", "input gradient", "weight gradient")


@dataclass
class Launch:
    """One launch of a kernel: its size, what one block counts, and what that takes."""

    precision: str
    product: str
    shape: Shape
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    instructions: dict[str, int]
    wavefronts: dict[str, int]
    sectors: dict[str, int]
    cycles: dict[str, float]
    """Of one block on a multiprocessor, by resource."""

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        return max(self.cycles, key=lambda name: self.cycles[name])

    @property
    def microseconds(self) -> float:
        """What the launch takes at least, its blocks spread evenly and none waiting."""
        rounds = -(-self.blocks // MULTIPROCESSORS)
        return rounds * self.cycles[self.limit] / CLOCK_GHZ / 1000


def count(operators: PtxOperators, precision: str, product: str, shape: Shape) -> Iterable[Launch]:
    """Run a block of every launch of a product."""
    launches: list[tuple[str, int, int, int, Counts]] = []

    def start(name: str, blocks: int, threads: int, shared_bytes: int) -> tuple[list[int], Counts]:
        counts = Counts()
        launches.append((name, blocks, threads, shared_bytes, counts))
        return [blocks // 2], counts

    operators.launches.on_launch = start
    x, w, g, *_ = tensors(precision, shape)
    if product == "weight gradient":
        operators.weight_gradient(precision, shape, g, x)
    else:
        flipped = product == "input gradient"
        operators.correlate(precision, shape, [(flipped, [(g if flipped else x, w)])])
    for name, blocks, threads, shared_bytes, counts in launches:
        yield Launch(
            precision,
            product,
            shape,
            short_name(name),
            blocks,
            threads,
            shared_bytes,
            dict(counts.instructions),
            dict(counts.wavefronts),
            dict(counts.sectors),
            cycles(precision, counts),
        )


def cycles(precision: str, counts: Counts) -> dict[str, float]:
    """What a block takes of a multiprocessor at least, in cycles, by resource."""
    issued = sum(n for name, n in counts.instructions.items() if name not in NOT_ISSUED)
    memory = sum(counts.instructions[name] for name in ("global load", "global store", "copy"))
    kind = "tf32" if precision.startswith("tf32") else "half"
    products = counts.instructions["mma"] * MMA_PRODUCTS[kind]
    float_instructions = (
        counts.instructions["float32"] + counts.instructions["float64"] / FLOAT64_SHARE
    )
    return {
        "issue": issued / SCHEDULERS,
        "memory": sum(counts.wavefronts.values())
        + memory
        + sum(counts.sectors.values()) / SECTORS_PER_CYCLE,
        "tensor": products / TENSOR_CORE_RATE[kind] / MMA_SYNC_SHARE,
        "float": float_instructions / SCHEDULERS,
    }


def short_name(mangled: str) -> str:
    """The class and the sizes of a kernel's mangled name."""
    name = re.search(r"\d+([A-Z][A-Za-z]+(?:Correlation|WeightGradient))I", mangled)
    if name is None:
        return "addition"
    arguments = mangled[name.end() :].split("EEE", 1)[0]
    sizes = re.findall(r"L[ib](\d+)", arguments)
    return f"{name[1]} {' '.join(sizes)}"


def print_tables(console: Console, launches: list[Launch]) -> None:
    """Print what was counted, and the bounds."""
    counts = Table(title="Counted in one block of each launch, not measured", box=box.SIMPLE_HEAD)
    bounds = Table(title="Cycles of a block, and the launch, at least", box=box.SIMPLE_HEAD)
    for table in (counts, bounds):
        for column in ("B,Ci,Co,H,W,k", "precision", "product", "kernel", "blocks"):
            table.add_column(column, no_wrap=True)
    for column in (*COLUMNS, "wavefronts", "sectors"):
        counts.add_column(column, justify="right", no_wrap=True)
    for column in (*RESOURCES, "limit", "at least"):
        bounds.add_column(column, justify="right", no_wrap=True)
    for each in launches:
        shape = ",".join(map(str, each.shape))
        names = (shape, each.precision, each.product, each.kernel, str(each.blocks))
        counts.add_row(
            *names,
            *(str(sum(each.instructions.get(name, 0) for name in of)) for of in COLUMNS.values()),
            *(
                " / ".join(str(kind.get(name, 0)) for name in ("load", "store", "copy"))
                for kind in (each.wavefronts, each.sectors)
            ),
        )
        cycles = (f"{each.cycles[name]:.0f}" for name in RESOURCES)
        bounds.add_row(*names, *cycles, each.limit, f"{each.microseconds:.1f} us")
    console.print(counts)
    console.print("instructions of warps; wavefronts and sectors of loads / stores / copies")
    console.print(bounds)


def shape_of(text: str) -> Shape:
    """Parse B,Ci,Co,H,W,k."""
    parts = text.split(",")
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    if len(numbers) != len(parts) or len(numbers) != 6 or min(numbers) < 1 or numbers[-1] % 2 == 0:
        raise argparse.ArgumentTypeError(
            f"B,Ci,Co,H,W,k must be six numbers of at least 1, k odd, got {text}"
        )
    return numbers


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=shape_of, metavar="B,Ci,Co,H,W,k")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every count")
    arguments = parser.parse_args()
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json {arguments.json} must lie in a folder that is there")
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("cuda_counts: nvcc must be installed; CUDA_HOME names its toolkit")
    console = Console(width=260)
    cases = [
        (precision, product, shape)
        for shape in arguments.sizes or map(shape_of, SIZES)
        for precision in arguments.precisions
        for product in PRODUCTS
    ]
    with tempfile.TemporaryDirectory() as folder:
        with console.status("compiling, about 20 s"):
            operators = PtxOperators(*compile_operators(nvcc, Path(folder)))
        launches = [
            launch
            for case in track(cases, "counting", console=console, transient=True)
            for launch in count(operators, *case)
        ]
    if arguments.json:
        arguments.json.write_text(
            json.dumps([asdict(each) for each in launches], indent=2) + "\n", encoding="utf-8"
        )
    print_tables(console, launches)


if __name__ == "__main__":
    main()
