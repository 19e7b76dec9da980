"""Texture kernels against memory bandwidth, and against stock PyTorch.

Each direction of the operator reads one tensor and writes another. Beside it, in the same rounds,
a plain copy into new memory moves as many bytes, and `F.adaptive_avg_pool2d` with the reordering
that makes kernels of its result does the same (forward), or its gradient does (transpose).

    python benchmarks/bench_texture_kernels.py
    python benchmarks/bench_texture_kernels.py --device cuda
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from _harness import machine, time_interleaved, write_json
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mkdext.ops._dispatch import has_kernel

# B, C, H, grid, k: bins of 2x2, 1x1 and 4x4, a large map, and bins that do not divide the map
SIZES = [
    (16, 64, 48, 8, 3),
    (16, 64, 24, 8, 3),
    (16, 64, 48, 4, 3),
    (4, 64, 96, 8, 3),
    (16, 64, 48, 12, 3),
    (16, 64, 50, 8, 3),
]
DTYPES = (torch.float32, torch.float64)


def candidates(
    size: tuple[int, ...], dtype: torch.dtype, transpose: bool, device: torch.device
) -> tuple[dict[str, Callable[[], object]], int]:
    """The operator, a copy of as many bytes, the stock form if there is one; the bytes moved."""
    batch, channels, side, grid, kernel_size = size
    make = partial(torch.randn, dtype=dtype, device=device)
    features = make(batch, channels, side, side)
    kernels = make(batch, grid**2, channels, kernel_size, kernel_size)
    elements = features.numel() + kernels.numel()
    source = make(elements // 2)
    operators = torch.ops.mkdext
    forms: dict[str, Callable[[], object]] = {"copy": source.clone}
    divides = side % grid == 0
    if transpose:
        forms["mkdext"] = lambda: operators.texture_kernels_transpose(kernels, grid, side, side)
        if divides:
            leaf = features.requires_grad_()
            made = pool_and_reorder(leaf, grid, kernel_size)
            forms["stock"] = lambda: torch.autograd.grad(made, leaf, kernels, retain_graph=True)
    else:
        forms["mkdext"] = lambda: operators.texture_kernels(features, grid, kernel_size)
        if divides:
            forms["stock"] = lambda: pool_and_reorder(features, grid, kernel_size)
    return forms, elements * dtype.itemsize


def pool_and_reorder(features: Tensor, grid: int, kernel_size: int) -> Tensor:
    """The same in stock PyTorch where the grid divides the map."""
    batch, channels = features.shape[:2]
    pooled = F.adaptive_avg_pool2d(features, grid * kernel_size)
    patches = pooled.reshape(batch, channels, grid, kernel_size, grid, kernel_size)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(
        batch, grid**2, channels, kernel_size, kernel_size
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=31, help="rounds counted (%(default)s)")
    parser.add_argument("--threads", type=int, help="PyTorch's default if not given")
    parser.add_argument("--device", type=torch.device, default="cpu", help="%(default)s or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not has_kernel(torch.empty(0, device=arguments.device)):
        sys.exit("the compiled operators are missing: `python -m mkdext.doctor` tells the fix")
    device = arguments.device
    console = Console()
    header = machine(device)
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    table = Table(
        "B, C, H = W, grid, k", "dtype", "", "MB moved", "ms", "GB/s", "of a copy", "of stock"
    )
    rows = []
    for size in SIZES:
        for dtype in DTYPES:
            for direction in ("forward", "transpose"):
                forms, moved = candidates(size, dtype, direction == "transpose", device)
                timings = time_interleaved(forms, device, arguments.repeats)
                ours = timings["mkdext"]
                stock = f"{ours.ratio_to(timings['stock']):.2f}" if "stock" in timings else "-"
                table.add_row(
                    ", ".join(map(str, size)),
                    str(dtype).removeprefix("torch."),
                    direction,
                    f"{moved / 1e6:.1f}",
                    f"{1e3 * ours.median:.2f}",
                    f"{moved / 1e9 / ours.median:.1f}",
                    f"{ours.ratio_to(timings['copy']):.2f}",
                    stock,
                )
                rows += [
                    {
                        "size": size,
                        "dtype": str(dtype),
                        "direction": direction,
                        "form": form,
                        "bytes": moved,
                        "seconds": timing.seconds,
                    }
                    for form, timing in timings.items()
                ]
    console.print("Speed of the operator over that of a copy of as many bytes, and over stock's")
    console.print(table)
    if arguments.json:
        write_json(arguments.json, header, rows)


if __name__ == "__main__":
    main()
