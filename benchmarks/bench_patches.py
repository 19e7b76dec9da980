"""Patches per second, start-up time and memory: a folder of PNG files against a store.

Photographs of 2040x1356 pixels are tiled from those of a given folder, in a temporary directory,
and written as PNG files and as a store. A folder keeps decoded photographs in memory until 2 GiB
are full; of 800 photographs that is a quarter. Both ends are measured: all kept, and none kept.

    python benchmarks/bench_patches.py --source FOLDER
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _harness import machine, time_interleaved, write_json
from PIL import Image
from rich.console import Console
from rich.table import Table

from mkdext.data import (
    ImagePairs,
    PatchSampler,
    find_images,
    prepare_store,
    read_image,
    read_store,
)

WIDTH, HEIGHT = 2040, 1356
WAYS = ("PNG files, none kept", "PNG files, all kept", "store")


def make_photographs(source: Path, folder: Path, count: int) -> None:
    """Write PNG files tiled from random photographs of `source`."""
    random = np.random.default_rng(0)
    paths = find_images(source)
    folder.mkdir()
    for index in range(count):
        levels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        top = 0
        while top < HEIGHT:
            left, row = 0, HEIGHT - top
            while left < WIDTH:
                tile = read_image(paths[random.integers(len(paths))]).permute(1, 2, 0).numpy()
                tile = tile[: HEIGHT - top, : WIDTH - left]
                row = min(row, len(tile))
                levels[top : top + len(tile), left : left + tile.shape[1]] = tile
                left += tile.shape[1]
            top += row
        Image.fromarray(levels).save(folder / f"{index + 1:04}.png")


def memory() -> tuple[int, int]:
    """Bytes in memory that are this process's own, and bytes of files that it has mapped."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    own, mapped = (int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
    return own, mapped


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, default=24, help="2K photographs (%(default)s)")
    parser.add_argument("--scale", type=int, default=4, help="%(default)s")
    parser.add_argument("--patch", type=int, default=48, help="side of an LR patch (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="patches (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds counted (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="to prepare the store (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    header = machine(torch.device("cpu"))
    console.print("  ".join(f"{key}: {value}" for key, value in header.items()), highlight=False)
    with tempfile.TemporaryDirectory() as name, console.status("measuring"):
        rows, notes = measure(Path(name), arguments)
    table = Table(
        "photographs from",
        "patches/s",
        "spread",
        "start-up s",
        "own MB",
        "mapped MB",
        title=f"{arguments.count} photographs, batches of {arguments.batch} patches of "
        f"{arguments.patch}x{arguments.patch} at x{arguments.scale}",
    )
    for row in rows:
        table.add_row(*map(str, list(row.values())[:6]))
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    if arguments.json:
        write_json(arguments.json, header, rows)


def measure(
    folder: Path, arguments: argparse.Namespace
) -> tuple[list[dict[str, object]], list[str]]:
    """One row for each way, and what else was seen."""
    scale, smallest = arguments.scale, arguments.patch * arguments.scale
    pngs, store = folder / "png", folder / "store"
    make_photographs(arguments.source, pngs, arguments.count)
    begin = time.perf_counter()
    prepare_store(pngs, store, scale, workers=arguments.workers)
    prepared = time.perf_counter() - begin
    sizes = [sum(file.stat().st_size for file in place.iterdir()) for place in (pngs, store)]

    rows: dict[str, dict[str, object]] = {}
    for way in WAYS:
        # In a process of its own, where no memory of another way is used again.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows[way] = pool.apply(opening, (way, pngs, store, arguments))
    runs = {way: drawing(opened(way, pngs, store, scale, smallest), arguments) for way in WAYS}
    for way, timing in time_interleaved(runs, torch.device("cpu"), arguments.repeats).items():
        speed = f"{arguments.batch / timing.median:.0f}"
        rows[way] = {
            "way": way,
            "speed": speed,
            "spread": f"{timing.spread:.0%}",
            **rows[way],
            "seconds": timing.seconds,
        }
    del runs  # what is mapped stays in memory
    cold = []
    for step in range(arguments.repeats):
        with (store / "pixels.u8").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        drawing(opened("store", pngs, store, scale, smallest), arguments, step)()
        cold.append(time.perf_counter() - begin)
    notes = [
        "store opened anew, nothing of it in memory, first batch (wall): "
        f"{arguments.batch / statistics.median(cold):.0f} patches/s",
        f"on disk: {sizes[0] / 1e6:.0f} MB of PNG, {sizes[1] / 1e6:.0f} MB of store, prepared in "
        f"{prepared:.1f} s by {arguments.workers} process(es)",
    ]
    return list(rows.values()), notes


def opened(way: str, pngs: Path, store: Path, scale: int, smallest: int) -> ImagePairs:
    """The photographs, checked as a training checks them."""
    found = read_store(store, scale) if way == "store" else find_images(pngs)
    cache_bytes = 0 if way == "PNG files, none kept" else 1 << 40
    return ImagePairs.checked(found, scale, smallest, cache_bytes=cache_bytes)[0]


def opening(way: str, pngs: Path, store: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Seconds until a first batch could be drawn, and memory after four of them."""
    before, begin = memory(), time.perf_counter()
    pairs = opened(way, pngs, store, arguments.scale, arguments.patch * arguments.scale)
    seconds = time.perf_counter() - begin
    draw = drawing(pairs, arguments)
    for _ in range(4):
        draw()
    own, mapped = (round((now - then) / 1e6) for now, then in zip(memory(), before, strict=True))
    return {"start-up": f"{seconds:.3f}", "own": own, "mapped": mapped}


def drawing(
    pairs: ImagePairs, arguments: argparse.Namespace, step: int = 0
) -> Callable[[], object]:
    """A function that draws the next batch each time, beginning with that of a step."""
    sampler = PatchSampler(pairs, arguments.scale, arguments.patch, arguments.batch, seed=0)
    steps = iter(range(step, 1 << 30))
    return lambda: sampler.batch(next(steps))


if __name__ == "__main__":
    main()
