"""Patches per second, start-up time and memory: a folder of PNG files against a store.

Photographs of 2040x1356 pixels are tiled from those of a given folder, in a temporary directory,
and written as PNG files and as a store. Of a folder, decoded photographs are kept in memory until
2 GiB are full: all of 24 photographs, a quarter of 800. It is measured so, and with none kept.

    python benchmarks/bench_patches.py --source FOLDER
    TMPDIR=/large python benchmarks/bench_patches.py --source FOLDER --count 800

DIV2K has 800 photographs; files and store together take 15 GB then.
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
WAYS = ("PNG files, none kept", "PNG files, 2 GiB kept", "store")


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
        Image.fromarray(levels).save(folder / f"{index + 1:04}.png", compress_level=1)


def memory() -> tuple[int, int]:
    """Bytes in memory that are this process's own, and bytes of files that it has mapped."""
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
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
    begin, worked = time.perf_counter(), time.process_time()
    prepare_store(pngs, store, scale, workers=arguments.workers)
    prepared, worked = time.perf_counter() - begin, time.process_time() - worked
    sizes = [sum(file.stat().st_size for file in place.iterdir()) for place in (pngs, store)]

    rows: dict[str, dict[str, object]] = {}
    for way in WAYS:
        # In a process of its own, where no memory of another way is used again.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows[way] = pool.apply(opening, (way, pngs, store, arguments))
    photographs = {way: opened(way, pngs, store, scale, smallest) for way in WAYS}
    runs = {way: drawing(pairs, arguments) for way, pairs in photographs.items()}
    for way, timing in time_interleaved(runs, torch.device("cpu"), arguments.repeats).items():
        speed = f"{arguments.batch / timing.median:.0f}"
        rows[way] = {
            "way": way,
            "speed": speed,
            "spread": f"{timing.spread:.0%}",
            **rows[way],
            "seconds": timing.seconds,
        }
    files = photographs[WAYS[0]]
    del runs, photographs  # what is mapped stays in memory
    openings: dict[str, Callable[[], ImagePairs]] = {
        "PNG files": lambda: files,
        "store, opened anew": lambda: opened("store", pngs, store, scale, smallest),
    }
    notes = []
    for name, open_ in openings.items():
        cold = []
        for step in range(arguments.repeats):
            for path in (*pngs.iterdir(), store / "pixels.u8"):
                forget(path)
            begin = time.perf_counter()
            drawing(open_(), arguments, step)()
            cold.append(time.perf_counter() - begin)
        speed = arguments.batch / statistics.median(cold)
        notes.append(f"{name}, nothing of it in memory, one batch (wall): {speed:.0f} patches/s")
    raw = 3 * WIDTH * HEIGHT * arguments.count
    notes.append(
        f"on disk: {sizes[0] / 1e6:.0f} MB of PNG, {sizes[1] / 1e6:.0f} MB of store, "
        f"{sizes[1] / raw:.4f} of the raw pixels; prepared in {prepared:.1f} s by "
        f"{arguments.workers} process(es), {worked:.1f} s of processor time in the first"
    )
    return list(rows.values()), notes


def forget(path: Path) -> None:
    """Drop what the system keeps in memory of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def opened(way: str, pngs: Path, store: Path, scale: int, smallest: int) -> ImagePairs:
    """The photographs, checked as a training checks them."""
    found = read_store(store, scale) if way == "store" else find_images(pngs)
    kept = {"cache_bytes": 0} if way == "PNG files, none kept" else {}
    return ImagePairs.checked(found, scale, smallest, **kept)[0]


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
