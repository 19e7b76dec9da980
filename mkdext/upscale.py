"""`python -m mkdext.upscale`: enlarge pictures with a trained network."""

from __future__ import annotations

import dataclasses
import glob
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from mkdext._command import CommandFailed, exit_status
from mkdext._files import atomic_write, check_writable
from mkdext._flags import parse_flags
from mkdext.data import BadImage, BadImageError, bad_images_message, find_images, imresize
from mkdext.inference import (
    Network,
    Picture,
    PNGWriter,
    Tiling,
    enlarge_tile,
    load_network,
    picture_size,
    plan_tiles,
    read_picture,
    resident_bytes,
)

_BICUBIC_REACH = 4
_DECODED_BYTES = 64  # of a pixel at most: its levels, floating-point colours, and copies of these
_GIGABYTE = 10**9


@dataclasses.dataclass(frozen=True)
class UpscaleCommand:
    """Enlarge pictures with a trained network and save them as PNG.

    Grey, alpha, 16 bits a channel, the colour profile if it fits, and what a PNG says of colours
    and resolution (gAMA, cHRM, sRGB, cICP, mDCV, cLLI, pHYs) are kept, a camera's orientation is
    applied. A picture that needs more memory than --memory is computed in tiles. EDSR, RDN and VDSR
    see so little around a pixel that this changes nothing. RCAN, HAN and SAN look at the whole
    picture, where tiles differ a little: by 0.2, 0.7 and 0.5 of 255 levels (root mean square;
    single pixels by 6, 5 and 3) in tiles of 128 pixels on a photograph of 256x256. More --memory
    means larger tiles, up to the whole picture. SAN's time grows with the square of the pixels of a
    tile.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, folders of pictures, or patterns such as 'holiday/*.jpg'."""
    weights: Path | None = None
    """Weights of the network; none: the built-in one, which enlarges four times."""
    model: str | None = None
    """Network that the weights must be of, or what makes a network of yours,
    package.module:factory or file.py:factory; none: whatever they are of."""
    scale: int | None = None
    """Enlargement factor; none: that of the weights."""
    out: Path = Path("upscaled")
    """Folder for the results, which have the names of the pictures and the suffix .png."""
    existing: Literal["refuse", "skip", "overwrite"] = "refuse"
    """What to do where a result is there already: nothing at all, the others, or all anew."""
    memory: float = 2.0
    """Gigabytes that the process may take, with network and libraries; with --device cuda, that the
    network may take on the device as well."""
    overlap: int | None = None
    """Low-resolution pixels that a tile is computed with beyond its edge; none: as far as the
    network sees, and 32 for one that sees the whole picture."""
    device: str = "cpu"
    """Where to compute: 'cpu', 'cuda' or 'cuda:N'."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.memory > 0:
            raise ValueError(f"--memory must be positive, got {self.memory}")
        if self.overlap is not None and self.overlap < 0:
            raise ValueError(f"--overlap must be at least 0, got {self.overlap}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Paths and flags; none: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, before any work; 1 if a result
        cannot be written, or a picture turned out to be unusable, with all others done.
    """
    console = Console()

    def run() -> None:
        command = parse_flags(UpscaleCommand, arguments, prog="python -m mkdext.upscale")
        jobs = find_jobs(command)
        failed = upscale(command, jobs, console)
        if failed:
            raise CommandFailed(bad_images_message(failed))

    interrupted = "interrupted; the same command with --existing skip goes on"
    return exit_status("mkdext.upscale", run, interrupted)


def find_jobs(command: UpscaleCommand) -> dict[Path, Path]:
    """Pictures, each with the file that it shall become; nothing is written.

    Raises:
        ValueError: An input does not exist or is no picture, two would become the same file, a
            result would take the place of an input or of a file that may not be overwritten, or
            results cannot be written.
    """
    check_writable(command.out)
    targets: dict[Path, Path] = {}
    sources: dict[Path, Path] = {}
    for source, name in _sources(command.inputs, command.out):
        target = (command.out / name).with_suffix(".png")
        if source in sources:
            continue
        if target in targets:
            raise ValueError(f"{targets[target]} and {source} would both become {target}")
        targets[target], sources[source] = source, target
    bad = []
    for source in sources:
        try:
            picture_size(source)
        except BadImageError as error:
            bad.append(BadImage(source, str(error)))
    if bad:
        raise ValueError(bad_images_message(bad))
    identities = {_identity(source): source for source in sources}
    present = [target for target in targets if target.exists()]
    for target in present:
        if _identity(target) in identities:
            source = identities[_identity(target)]
            raise ValueError(f"{target} is the picture {source} itself; give another --out")
    if present and command.existing == "refuse":
        exist = f"and {len(present) - 1} more exist" if len(present) > 1 else "exists"
        raise ValueError(
            f"{present[0]} {exist}; give another --out, --existing skip or --existing overwrite"
        )
    kept = set(present) if command.existing == "skip" else set()
    return {source: target for source, target in sources.items() if target not in kept}


def upscale(command: UpscaleCommand, jobs: dict[Path, Path], console: Console) -> list[BadImage]:
    """Enlarge pictures.

    Args:
        command: How.
        jobs: Files to read and to write.
        console: Where progress is shown.

    Returns:
        The pictures that could not be enlarged, with the reason.

    Raises:
        ValueError: The network cannot be used.
        OSError: A result cannot be written.
    """
    network = load_network(command.weights, command.scale, command.model, command.device)
    overlap = network.overlap if command.overlap is None else command.overlap
    failed = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for number, (source, target) in enumerate(jobs.items(), 1):
            begin = time.monotonic()
            try:
                picture = _read_within(source, command.memory * _GIGABYTE)
                tiling = _plan(picture, network, overlap, command.memory * _GIGABYTE)
            except BadImageError as error:
                failed.append(BadImage(source, str(error)))
                continue
            height, width = picture.levels.shape[:2]
            tiles = tiling.count(height, width)
            task = progress.add_task(f"{number}/{len(jobs)} {source.name}", total=tiles)
            target.parent.mkdir(parents=True, exist_ok=True)
            _enlarge(picture, network, tiling, target, partial(progress.advance, task))
            progress.remove_task(task)
            how = f", {tiles} tiles" if tiles > 1 else ""
            console.print(
                f"{source} -> {target}: {width}x{height} -> "
                f"{width * network.scale}x{height * network.scale}{how}, "
                f"{time.monotonic() - begin:.1f} s",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            if tiles > 1 and network.reach is None:
                console.print(
                    f"  {network.architecture} looks at the whole picture: in tiles the "
                    "result is a little different; with more --memory it would not be",
                    soft_wrap=True,
                )
    return failed


def _sources(inputs: Sequence[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """Pictures with their names below the output folder."""
    if not inputs:
        raise ValueError("name a picture, a folder or a pattern")
    for given in inputs:
        matches = [given]
        if not given.exists() and glob.has_magic(str(given)):
            matches = [Path(match) for match in sorted(glob.glob(str(given), recursive=True))]
            if not matches:
                raise ValueError(f"{given} matches no file")
        for path in matches:
            if path.is_dir():
                # Results of an earlier call are not pictures to enlarge.
                inside = [p for p in find_images(path) if out.resolve() not in p.resolve().parents]
                yield from ((picture, picture.relative_to(path)) for picture in inside)
            elif path.exists():
                yield path, Path(path.name)
            else:
                raise ValueError(f"{path} does not exist")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _read_within(source: Path, bound: float) -> Picture:
    width, height = picture_size(source)
    needed, free = width * height * _DECODED_BYTES, bound - resident_bytes()
    if needed > free:
        raise BadImageError(
            f"has {width}x{height} pixels, which take {needed / 1e6:,.0f} MB decoded; --memory "
            f"{bound / _GIGABYTE:g} GB leaves {max(free, 0) / 1e6:,.0f} MB for it, as the process "
            f"has {resident_bytes() / 1e6:,.0f} MB in use"
        )
    return read_picture(source)


def _plan(picture: Picture, network: Network, overlap: int, bound: float) -> Tiling:
    height, width, channels = picture.levels.shape
    free = bound - resident_bytes() - height * width * _DECODED_BYTES
    if network.device.type == "cuda":
        free = bound
    try:
        return plan_tiles(
            (height, width),
            network.costs,
            overlap,
            network.scale,
            channels * picture.bits // 8,
            free,
        )
    except ValueError as error:
        raise BadImageError(f"{error}; raise --memory {bound / _GIGABYTE:g}") from None


def _enlarge(
    picture: Picture, network: Network, tiling: Tiling, target: Path, advance: Callable[[], None]
) -> None:
    height, width, channels = picture.levels.shape
    scale = network.scale
    colours, alpha = picture.colours(), picture.alpha()
    with (
        atomic_write(target) as unfinished,
        PNGWriter(
            unfinished,
            width * scale,
            height * scale,
            channels,
            picture.bits,
            picture.icc_profile,
            picture.exif,
            picture.chunks,
        ) as file,
    ):
        for rows in tiling.rows(height):
            band = np.empty(
                ((rows.stop - rows.start) * scale, width * scale, channels), picture.levels.dtype
            )
            for columns in tiling.columns(width):
                part = enlarge_tile(network, colours, rows, columns, scale, tiling.overlap)
                opacity = None
                if alpha is not None:
                    opacity = enlarge_tile(
                        lambda image: imresize(image, scale),
                        alpha,
                        rows,
                        columns,
                        scale,
                        _BICUBIC_REACH,
                    )
                band[:, columns.start * scale : columns.stop * scale] = picture.like(part, opacity)
                advance()
            file.write(band)


if __name__ == "__main__":
    sys.exit(main())
