"""Making a store from folders of photographs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from mkdext._system.processors import processors
from mkdext.data.decoding import BadImageError
from mkdext.data.fitting import fitted
from mkdext.data.folders import find_high_resolution, match_low_resolution
from mkdext.data.images import BadImage, bad_images_message, read_image
from mkdext.data.pairs import make_pair
from mkdext.data.store import (
    INDEX,
    PIXELS,
    Entry,
    Levels,
    checksum,
    read_index,
    read_store,
)
from mkdext.data.store_writer import written_store
from mkdext.data.workers import in_processes

Progress = Callable[[str, Sequence[str]], Iterable[str]]
"""Given a title and names, iterates over the names and shows how far it has come."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A store that is finished and was read back."""

    folder: Path
    photographs: int
    written: int
    """How many of them were written by this call."""
    left_out: list[BadImage]
    size: int
    """Bytes of pixels."""


def prepare_store(
    source: Path,
    out: Path,
    scale: int,
    lr: Path | None = None,
    crop: bool = False,
    bad_images: Literal["refuse", "skip"] = "refuse",
    workers: int | None = None,
    progress: Progress = lambda title, names: names,
) -> Prepared:
    """Decode a folder of photographs into a store, or go on where an earlier call was stopped.

    Every pixel is read back and compared with its checksum in the end. A call that finds the store
    finished only does that. One killed at any moment is gone on with by the next.

    Args:
        source: Folder of high-resolution photographs, as `find_images` takes it.
        out: The store's folder.
        scale: Downscaling factor.
        lr: Folder of low-resolution versions, named as `match_low_resolution` has it; default: made
            by MATLAB's bicubic.
        crop: Whether given versions of sizes that do not fit are cut, as `fitted` does it.
        bad_images: What to do with files that cannot be used, once all others are written.
        workers: Processes that decode; 1 for this one; default: one for each processor.
        progress: Shows how far it has come.

    Raises:
        ValueError: `source` or `lr` cannot be used, `out` holds anything but a store of the same
            photographs and scale, another process is at work there, or the store is damaged.
        OSError: The store cannot be written, for example on a full disk, or a process that decodes
            was killed; the next call goes on.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 48)).save(folder / "black.png")
        >>> prepared = prepare_store(folder, folder / "store", scale=4, workers=1)
        >>> prepared.photographs, prepared.size
        (1, 9792)
    """
    if scale < 1:
        raise ValueError(f"prepare: scale must be at least 1, got {scale}")
    if workers is not None and workers < 1:
        raise ValueError(f"prepare: workers must be at least 1, got {workers}")
    sources = _find_sources(source, scale, lr)
    if (out / INDEX).exists():
        left_out = _compare(out, scale, sources, bad_images)
        return _verified(out, progress, written=0, left_out=left_out)
    with written_store(out, scale) as store:
        known = {entry.name: entry for entry in store.done}
        _check_unchanged(out, store.done, sources)
        missing = [source for source in sources if source.name not in known]
        bad, written = [], 0
        jobs = [(source, scale, crop) for source in missing]
        with contextlib.closing(_all_decoded(jobs, workers or processors())) as results:
            for source_, result in zip(_shown(missing, progress), results, strict=True):
                if isinstance(result, BadImage):
                    bad.append(result)
                    continue
                known[source_.name] = store.append(source_.name, *result)
                written += 1
        if bad and bad_images == "refuse":
            raise ValueError(
                f"{bad_images_message(bad)}\nrepair or remove them and give the same command "
                "again, or leave them out with `bad_images` skip"
            )
        if not known:
            raise ValueError(f"{source} holds no usable photograph:\n{bad_images_message(bad)}")
        store.finish(known[source.name] for source in sources if source.name in known)
    return _verified(out, progress, written, bad)


class _Source(NamedTuple):
    name: str
    high: Path
    low: Path | None

    def files(self) -> list[list[int]]:
        """Size and time of change, by which a changed file is told."""
        paths = [self.high] if self.low is None else [self.high, self.low]
        return [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


_Job = tuple[_Source, int, bool]
"""What to decode, the scale, and whether to cut what does not fit."""


class _Decoded(NamedTuple):
    high: Levels
    low: Levels
    crc32: int
    files: list[list[int]]


def _find_sources(folder: Path, scale: int, low_folder: Path | None) -> list[_Source]:
    paths = find_high_resolution(folder, low_folder, "`lr`")
    names = [path.relative_to(folder) for path in paths]
    low: Sequence[Path | None] = [None] * len(paths)
    if low_folder is not None:
        low = match_low_resolution(names, folder, low_folder, scale)
    return [
        _Source(name.as_posix(), path, given)
        for name, path, given in zip(names, paths, low, strict=True)
    ]


def _decode(job: _Job) -> _Decoded | BadImage:
    source, scale, crop = job
    path = source.high
    try:
        files = source.files()
        high = read_image(source.high)
        if min(high.shape[1:]) < scale:
            return BadImage(path, f"is {high.shape[2]}x{high.shape[1]} pixels, less than the scale")
        if source.low is None:
            low, high = make_pair(high, scale)
        else:
            path = source.low
            low, high = fitted(read_image(source.low), high, scale, crop)
        if source.files() != files:
            return BadImage(source.high, "changed while it was read")
    except BadImageError as error:
        return BadImage(path, str(error))
    except OSError as error:
        return BadImage(path, f"cannot be read ({error.strerror})")
    levels = high.contiguous().numpy(), low.contiguous().numpy()
    return _Decoded(*levels, checksum(*levels), files)


def _all_decoded(jobs: Sequence[_Job], workers: int) -> Generator[_Decoded | BadImage, None, None]:
    """What `_decode` makes of the jobs, in order."""
    workers = min(workers, len(jobs))
    if workers > 1:
        yield from in_processes(_decode, jobs, workers)
    else:
        yield from map(_decode, jobs)


def _verified(out: Path, progress: Progress, written: int, left_out: list[BadImage]) -> Prepared:
    pairs = read_store(out)
    names = [str(pair.path) for pair in pairs]
    for pair, _ in zip(pairs, progress("verifying", names), strict=True):
        if not pair.is_intact():
            raise ValueError(
                f"store {out} is damaged: the pixels of {pair.path.name} have changed since they "
                "were written; delete the store and prepare it again"
            )
    size = (out / PIXELS).stat().st_size
    return Prepared(out, len(pairs), written, left_out, size)


def _compare(out: Path, scale: int, sources: Sequence[_Source], bad_images: str) -> list[BadImage]:
    """Check that a finished store is of these photographs; those that it was made without."""
    stored_scale, entries = read_index(out)
    if stored_scale != scale:
        raise ValueError(
            f"`out` {out} holds a store for scale {stored_scale}, not {scale}: give another `out`"
        )
    _check_unchanged(out, entries, sources)
    stored = {entry.name for entry in entries}
    absent = [source.high for source in sources if source.name not in stored]
    if absent and bad_images == "refuse":
        raise ValueError(
            f"`out` {out} holds a store without {len(absent)} of the photographs, such as "
            f"{absent[0]}: give another `out`, or `bad_images` skip"
        )
    return [BadImage(path, "is not in the store") for path in absent]


def _check_unchanged(out: Path, entries: Sequence[Entry], sources: Sequence[_Source]) -> None:
    there = {source.name: source for source in sources}
    for entry in entries:
        source = there.get(entry.name)
        if source is None or source.files() != entry.files:
            state = "is not there" if source is None else "has changed"
            raise ValueError(
                f"`out` {out} holds a store of other photographs ({entry.name} {state}): give "
                "another `out`, or delete it"
            )


def _shown(sources: Sequence[_Source], progress: Progress) -> Iterator[_Source]:
    names = [source.name for source in sources]
    for source, _ in zip(sources, progress("preparing", names), strict=True):
        yield source
