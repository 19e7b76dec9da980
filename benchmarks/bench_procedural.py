"""How fast images are made from nothing, beside patches drawn from a store of photographs.

Each way makes batches of low-resolution images; of the store only the low-resolution side of a pair
is counted, although the other is drawn with it.

    python benchmarks/bench_procedural.py --source FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from _harness import machine, time_interleaved, write_json
from rich.console import Console
from rich.table import Table

from mkdext.data import ImagePairs, PatchSampler, prepare_store, read_store
from mkdext.synthesis import PROCEDURAL_KINDS, procedural_images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--scale", type=int, default=4, help="of the store (%(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", default=[24, 48], help="%(default)s")
    parser.add_argument("--batch", type=int, default=16, help="images (%(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=15, help="rounds counted (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    header = machine(arguments.device)
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    with tempfile.TemporaryDirectory() as name, console.status("measuring"):
        store = Path(name) / "store"
        prepare_store(arguments.source, store, arguments.scale, workers=1)
        rows = [row for side in arguments.sides for row in measure(side, store, arguments)]
    table = Table("images", "side", "images/s", "MB/s", "spread", "store's time by its own")
    for row in rows:
        table.add_row(
            row["way"],
            str(row["side"]),
            f"{row['images_per_s']:.0f}",
            f"{row['mb_per_s']:.1f}",
            f"{row['spread']:.0%}",
            f"{row['ratio']:.2f}",
        )
    console.print(table)
    if arguments.json:
        write_json(arguments.json, header, rows)


def measure(side: int, store: Path, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each kind, the mixture and the store."""
    batch = arguments.batch
    generator = torch.Generator(arguments.device).manual_seed(0)
    ways: dict[str, Callable[[], object]] = {
        kind: lambda make=make: make(batch, side, side, generator)
        for kind, make in PROCEDURAL_KINDS.items()
    }
    ways["mixture"] = lambda: procedural_images(batch, side, side, generator)
    pairs = ImagePairs(read_store(store, arguments.scale), arguments.scale)
    sampler = PatchSampler(pairs, arguments.scale, side, batch, seed=0)
    steps = iter(range(1 << 30))
    ways["store"] = lambda: sampler.batch(next(steps))
    timings = time_interleaved(ways, arguments.device, arguments.repeats)
    return [
        {
            "way": way,
            "side": side,
            "images_per_s": batch / timing.median,
            "mb_per_s": batch * 3 * side * side * 4 / timing.median / 1e6,
            "spread": timing.spread,
            "ratio": timing.ratio_to(timings["store"]),
            "seconds": timing.seconds,
        }
        for way, timing in timings.items()
    ]


if __name__ == "__main__":
    main()
