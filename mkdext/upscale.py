"""`python -m mkdext.upscale`: enlarge pictures with a trained network."""

from __future__ import annotations

import dataclasses
import errno
import glob
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from mkdext._cli.flags import parse_flags
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.errors import WorkFailed
from mkdext._system.files import atomic_write, check_replaceable, check_writable
from mkdext._system.terminal import Terminal, progress_bar
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
from mkdext.inference.failures import noted
from mkdext.models import accelerate
from mkdext.models.convolutions import stock_if

_BICUBIC_REACH = 4
_DECODED_BYTES = 64  # of a pixel at most: its levels, floating-point colours, and copies of these
_GIGABYTE = 10**9
_NO_MORE_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclasses.dataclass(frozen=True)
class UpscaleCommand:
    """Enlarge pictures with a trained network and save them as PNG.

    Grey, alpha, 16 bits a channel, a colour profile that fits, and what a PNG says about colours
    and resolution (gAMA, cHRM, sRGB, cICP, mDCV, cLLI, pHYs) are kept; a camera's orientation is
    applied. A picture that needs more memory than --memory is computed in tiles. EDSR, RDN and VDSR
    see so little around a pixel that this changes nothing. RCAN, HAN and SAN look at the whole
    picture, so that tiles differ a little: by 0.2, 0.7 and 0.5 of 255 levels (root mean square;
    single pixels by 6, 5 and 3) in tiles of 128 pixels on a photograph of 256x256. More --memory
    means larger tiles, up to the whole picture. SAN's time grows with the square of the pixels of a
    tile.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, folders of pictures, or patterns such as 'holiday/*.jpg'."""
    weights: Path | None = None
    """Weights of the network; default: a built-in one, which enlarges four times: rcan-c, or with
    --model rcan-a one of an eighth of its parameters."""
    model: str | None = None
    """Network that the weights must be of, or your own network, as package.module:factory or
    file.py:factory; default: the network that the weights are of."""
    scale: int | None = None
    """Enlargement factor; default: the weights', or the one found by running your network."""
    out: Path = Path("upscaled")
    """Folder for the results, which have the names of the pictures and the suffix .png."""
    existing: Literal["refuse", "skip", "overwrite"] = "refuse"
    """What to do if a result exists already: stop before any work, make only the others, or make
    all again."""
    memory: float = 2.0
    """Gigabytes that the process may use, network and libraries included; with --device cuda, also
    what the network may use on the device."""
    overlap: int | None = None
    """Low-resolution pixels beyond its edge that a tile is computed with; default: as far as the
    network sees, and 32 for one that sees the whole picture."""
    device: str = "cpu"
    """Where to compute: 'cpu', 'cuda' or 'cuda:N'."""
    stock_convolutions: bool = False
    """Compute all 3x3 convolutions by PyTorch. On a CPU Winograd kernels are faster, and differ by
    rounding."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.memory > 0:
            raise ValueError(f"--memory must be positive, got {self.memory}")
        if self.overlap is not None and self.overlap < 0:
            raise ValueError(f"--overlap must be at least 0, got {self.overlap}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Paths and flags; default: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, before any work; 1 if pictures turned
        out to be unusable, with all others done, or if no more results can be written.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse_flags(UpscaleCommand, arguments, prog="python -m mkdext.upscale")
        jobs, failed = find_jobs(command)
        with stock_if(command.stock_convolutions):
            upscale(command, jobs, console, failed)
        if failed:
            raise WorkFailed(bad_images_message(failed, lines=len(failed)))

    interrupted = "interrupted; the same command with --existing skip continues"
    return exit_status("mkdext.upscale", run, interrupted)


def find_jobs(command: UpscaleCommand) -> tuple[dict[Path, Path], list[BadImage]]:
    """Pictures, each with the file that it shall become; nothing is written.

    Returns:
        The pictures to enlarge with their results, and those that cannot be.

    Raises:
        ValueError: An input does not exist, none is a picture, two would become the same file, a
            result would take the place of an input or of a file that may not be overwritten, or
            results cannot be written.
    """
    check_writable(command.out)
    sources: dict[Path, Path] = {}
    given: dict[str, Path] = {}
    ignores_case = _ignores_case(command.out)
    for source, name in _sources(command.inputs, command.out):
        target = (command.out / name).with_suffix(".png")
        other = given.setdefault(str(target).casefold() if ignores_case else str(target), source)
        if other == source or _are_same(other, source):
            sources[other] = target
        else:
            raise ValueError(f"{other} and {source} would both become {target}")
    bad: list[BadImage] = []
    for source, target in sources.items():
        try:
            picture_size(source)
            _check_name(target)
        except BadImageError as error:
            bad.append(BadImage(source, str(error)))
    if not sources:
        raise ValueError(f"there is no picture to enlarge: all of them are in --out {command.out}")
    if len(bad) == len(sources):
        raise ValueError(bad_images_message(bad, lines=len(bad)))
    for image in bad:
        del sources[image.path]
    identities = {_identity(source): source for source in sources}
    present = [target for target in sources.values() if target.exists()]
    for target in present:
        check_replaceable(target)
        if _identity(target) in identities:
            source = identities[_identity(target)]
            raise ValueError(f"{target} is the picture {source} itself; give another --out")
    if present and command.existing == "refuse":
        exist = f"and {len(present) - 1} more exist" if len(present) > 1 else "exists"
        raise ValueError(
            f"{present[0]} {exist}; give another --out, --existing skip or --existing overwrite"
        )
    kept = set(present) if command.existing == "skip" else set()
    return {source: target for source, target in sources.items() if target not in kept}, bad


def upscale(
    command: UpscaleCommand, jobs: dict[Path, Path], console: Terminal, failed: list[BadImage]
) -> None:
    """Enlarge pictures.

    Args:
        command: How.
        jobs: Files to read and to write.
        console: Where progress is shown.
        failed: Pictures that cannot be enlarged, with the reason; those found here are added.

    Raises:
        ValueError: The network cannot be used.
        WorkFailed: No more results can be written.
    """
    network = load_network(command.weights, command.scale, command.model, command.device)
    if network.remark:
        console.say(network.remark)
    accelerate(network.model)
    overlap = network.overlap if command.overlap is None else command.overlap
    advice = f"lower --memory (now {command.memory:g} GB) for smaller tiles"
    with progress_bar(console, transient=True) as progress:
        for number, (source, target) in enumerate(jobs.items(), 1):
            begin = time.monotonic()
            with noted(failed, source, advice):
                picture = _read_within(source, command.memory * _GIGABYTE)
                tiling = _plan(picture, network, overlap, command.memory * _GIGABYTE)
                height, width = picture.levels.shape[:2]
                tiles = tiling.count(height, width)
                task = progress.add_task(f"{number}/{len(jobs)} {source.name}", total=tiles)
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _enlarge(picture, network, tiling, target, partial(progress.advance, task))
                except OSError as error:
                    if error.errno in _NO_MORE_FILES or not os.access(command.out, os.W_OK):
                        raise _stopped(error, number - 1, len(jobs), failed) from None
                    raise BadImageError(f"cannot become {target}: {error.strerror}") from None
                finally:
                    progress.remove_task(task)
                how = f", {tiles} tiles" if tiles > 1 else ""
                console.say(
                    f"{source} -> {target}: {width}x{height} -> "
                    f"{width * network.scale}x{height * network.scale}{how}, "
                    f"{time.monotonic() - begin:.1f} s"
                )
                if tiles > 1 and network.reach is None:
                    console.say(
                        f"  {network.architecture} looks at the whole picture: in tiles the "
                        "result is slightly different; more --memory avoids that"
                    )


def _stopped(error: OSError, tried: int, count: int, failed: list[BadImage]) -> WorkFailed:
    message = (
        f"{error}; {tried} of {count} pictures were tried, and their results are kept: make room "
        "there, and the same command with --existing skip continues"
    )
    also = [bad_images_message(failed, lines=len(failed))] if failed else []
    return WorkFailed("\n".join([message, *also]))


def _sources(inputs: Sequence[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """Pictures with their names below the output folder."""
    if not inputs:
        raise ValueError("name a picture, a folder or a pattern")
    for given in inputs:
        if given.is_dir():
            yield from _inside(given, out)
            continue
        for path in [given] if given.exists() or given.is_symlink() else _matches(given):
            try:
                yield from _inside(path, out) if path.is_dir() else [(path, Path(path.name))]
            except ValueError:  # A folder of no pictures that has come by a pattern, to be named.
                yield path, Path(path.name)


def _inside(folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    # Results of an earlier call are not pictures to enlarge.
    results = Path(os.path.realpath(out))
    for picture in find_images(folder):
        if results not in Path(os.path.realpath(picture)).parents:
            yield picture, picture.relative_to(folder)


def _matches(given: Path) -> list[Path]:
    """The files of a pattern, whose first folders may have names that look like patterns."""
    folder, parts = Path(), list(given.parts)
    while len(parts) > 1 and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    pattern = os.path.join(*parts)
    if not glob.has_magic(pattern):
        raise ValueError(f"{given} does not exist")
    matches = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
    if not matches:
        raise ValueError(f"{given} matches no file")
    return [folder / match for match in matches]


def _check_name(target: Path) -> None:
    try:
        target.exists()
    except OSError as error:
        raise BadImageError(f"cannot become {target}: {error.strerror}") from None


def _are_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _ignores_case(folder: Path) -> bool:
    """Whether names there that differ in their case alone mean one file."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    existing = existing.resolve()
    other = existing.with_name(existing.name.swapcase()) if existing.name else existing
    return other != existing and other.exists() and other.samefile(existing)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _read_within(source: Path, bound: float) -> Picture:
    try:
        width, height = picture_size(source)
        needed, free = width * height * _DECODED_BYTES, bound - resident_bytes()
        if needed > free:
            raise BadImageError(
                f"has {width}x{height} pixels, which take {needed / 1e6:,.0f} MB decoded; --memory "
                f"{bound / _GIGABYTE:g} GB leaves {max(free, 0) / 1e6:,.0f} MB for it, as the "
                f"process has {resident_bytes() / 1e6:,.0f} MB in use"
            )
        return read_picture(source)
    except OSError as error:  # It has vanished meanwhile.
        raise BadImageError(f"cannot be read ({error.strerror})") from None


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
