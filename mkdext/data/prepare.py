"""Making a store from folders of photographs."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from mkdext._files import write_text
from mkdext.data.images import (
    IMAGE_SUFFIXES,
    BadImage,
    BadImageError,
    bad_images_message,
    find_images,
    is_low_resolution,
    pillow_warnings_raised,
    read_image,
)
from mkdext.data.patches import make_pair, whole_cells
from mkdext.data.store import (
    INDEX,
    JOURNAL,
    PIXELS,
    Entry,
    Levels,
    check_header,
    checksum,
    header,
    map_pixels,
    read_index,
    read_store,
    stored_pair,
)

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
        lr: Folder of low-resolution versions, named as the photographs or with `x4` (the scale)
            after it, as in DIV2K; none: made by MATLAB's bicubic.
        bad_images: What to do with files that cannot be used, once all others are written.
        workers: Processes that decode; 1: this one; none: one for each processor. Several are
            started anew, so that a script that calls this needs `if __name__ == "__main__"`.
        progress: Shows how far it has come.

    Raises:
        ValueError: `source` or `lr` cannot be used, `out` holds anything but a store of the same
            photographs and scale, another process is at work there, or the store is damaged.
        OSError: The store cannot be written, for example on a full disk; the next call goes on.

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
    with _opened(out, scale) as (pixels, journal, done):
        known = {entry.name: entry for entry in done}
        _check_unchanged(out, done, sources)
        missing = [source for source in sources if source.name not in known]
        bad, written = [], 0
        jobs = [(source, scale) for source in missing]
        with contextlib.closing(_in_parallel(jobs, workers or _processors())) as results:
            for source_, result in zip(_shown(missing, progress), results, strict=True):
                if isinstance(result, BadImage):
                    bad.append(result)
                    continue
                known[source_.name] = _append(pixels, journal, source_, result)
                written += 1
        if bad and bad_images == "refuse":
            raise ValueError(
                f"{bad_images_message(bad)}\nrepair or remove them and the same command goes on, "
                "or leave them out by --bad-images skip"
            )
        if not known:
            raise ValueError(f"{source} holds no usable photograph:\n{bad_images_message(bad)}")
        pixels.flush()
        os.fsync(pixels.fileno())
        entries = [known[source.name] for source in sources if source.name in known]
        _write_index(out, scale, entries)
    return _verified(out, progress, written, bad)


class _Source(NamedTuple):
    name: str
    hr: Path
    lr: Path | None

    def files(self) -> list[list[int]]:
        """Size and time of change, by which a changed file is told."""
        paths = [self.hr] if self.lr is None else [self.hr, self.lr]
        return [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


class _Decoded(NamedTuple):
    hr: Levels
    lr: Levels
    crc32: int
    files: list[list[int]]


def _find_sources(folder: Path, scale: int, lr: Path | None) -> list[_Source]:
    paths = find_images(folder)
    names = [path.relative_to(folder) for path in paths]
    low = next(filter(is_low_resolution, names), None)
    if low is not None:
        raise ValueError(
            f"{folder} holds low-resolution photographs too, such as {low}: give the folder of the "
            "high-resolution ones, and --lr for the others"
        )
    if lr is None:
        return [
            _Source(name.as_posix(), path, None) for name, path in zip(names, paths, strict=True)
        ]
    given = {path.relative_to(lr).with_suffix(""): path for path in find_images(lr)}
    sources, missing = [], []
    for name, path in zip(names, paths, strict=True):
        stem = name.with_suffix("")
        pair = given.get(stem.with_name(f"{stem.name}x{scale}")) or given.get(stem)
        if pair is None:
            missing.append(name)
        else:
            sources.append(_Source(name.as_posix(), path, pair))
    if missing:
        stem = missing[0].with_suffix("")
        raise ValueError(
            f"{len(missing)} of {len(paths)} photographs have no low-resolution version in {lr}: "
            f"for {missing[0]} it is called {stem}x{scale} or {stem}, with any of "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return sources


def _decode(job: tuple[_Source, int]) -> _Decoded | BadImage:
    source, scale = job
    path = source.hr
    try:
        with pillow_warnings_raised():
            files = source.files()
            hr = read_image(source.hr)
            if min(hr.shape[1:]) < scale:
                return BadImage(path, f"is {hr.shape[2]}x{hr.shape[1]} pixels, less than the scale")
            if source.lr is None:
                lr, hr = make_pair(hr, scale)
            else:
                hr, path = whole_cells(hr, scale), source.lr
                lr = read_image(source.lr)
                size, needed = lr.shape[1:], (hr.shape[1] // scale, hr.shape[2] // scale)
                if tuple(size) != needed:
                    return BadImage(
                        path,
                        f"is {size[1]}x{size[0]} pixels, must be {needed[1]}x{needed[0]} for "
                        f"{source.hr} at scale {scale}",
                    )
    except BadImageError as error:
        return BadImage(path, str(error))
    except OSError as error:
        return BadImage(path, f"cannot be read ({error.strerror})")
    high, low = hr.contiguous().numpy(), lr.contiguous().numpy()
    return _Decoded(high, low, checksum(high, low), files)


def _in_parallel(
    jobs: Sequence[tuple[_Source, int]], workers: int
) -> Generator[_Decoded | BadImage]:
    """What `_decode` makes of the jobs, in order, a few of them ahead."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(_decode, jobs)
        return
    # Not forked: PyTorch's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_watch_parent) as pool:
        waiting: deque[Future[_Decoded | BadImage]] = deque()
        try:
            for job in jobs:
                with _without_ctrl_c():
                    waiting.append(pool.submit(_decode, job))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Let it wait; processes started meanwhile never get it, their parent tells them to end."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _watch_parent() -> None:
    """End with the parent, even where it is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _opened(out: Path, scale: int) -> Iterator[tuple[BinaryIO, BinaryIO, list[Entry]]]:
    """The pixels and the journal, ready to be appended to, and what they hold already."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made: {error.strerror}") from None
    if not (out / JOURNAL).exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} holds other files; give an empty or new folder")
    with (out / JOURNAL).open("a+b") as journal, (out / PIXELS).open("ab") as pixels:
        try:
            # The system lets go of the lock however the process ends.
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"--out {out} is in use by another process") from None
        done = _read_journal(out, journal, scale)
        pixels.truncate(done[-1].end(scale) if done else 0)
        pixels.seek(0, os.SEEK_END)
        yield pixels, journal, done


def _read_journal(out: Path, journal: BinaryIO, scale: int) -> list[Entry]:
    """The photographs that are whole, up to the first that is not; what comes after is cut off."""
    journal.seek(0)
    first, *lines = journal.readlines() or [b""]
    if not first.endswith(b"\n"):
        journal.truncate(0)
        _write_line(journal, header(scale))
        return []
    begun = check_header(out, _parsed(first))
    if begun != scale:
        raise ValueError(
            f"--out {out} holds an unfinished store for scale {begun}, not {scale}: go on with "
            f"--scale {begun}, or delete it"
        )
    pixels, done, size = map_pixels(out / PIXELS), [], len(first)
    for line in lines:
        try:
            entry = Entry(**_parsed(line))
        except TypeError:
            break
        is_there = line.endswith(b"\n") and entry.end(scale) <= len(pixels)
        if not is_there or not stored_pair(out, entry, scale, pixels).is_intact():
            break
        done.append(entry)
        size += len(line)
    journal.truncate(size)
    return done


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _write_line(journal: BinaryIO, content: dict[str, Any]) -> None:
    journal.write(json.dumps(content).encode() + b"\n")
    journal.flush()


def _append(pixels: BinaryIO, journal: BinaryIO, source: _Source, decoded: _Decoded) -> Entry:
    height, width = decoded.hr.shape[1:]
    entry = Entry(source.name, height, width, pixels.tell(), decoded.crc32, decoded.files)
    pixels.write(decoded.hr.data)
    pixels.write(decoded.lr.data)
    pixels.flush()
    _write_line(journal, dataclasses.asdict(entry))
    return entry


def _write_index(out: Path, scale: int, entries: Sequence[Entry]) -> None:
    photographs = [dataclasses.asdict(entry) for entry in entries]
    index = {**header(scale), "photographs": photographs}
    write_text(out / INDEX, json.dumps(index, indent=1))
    (out / JOURNAL).unlink()


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
            f"--out {out} holds a store for scale {stored_scale}, not {scale}: give another --out"
        )
    _check_unchanged(out, entries, sources)
    stored = {entry.name for entry in entries}
    absent = [source.hr for source in sources if source.name not in stored]
    if absent and bad_images == "refuse":
        raise ValueError(
            f"--out {out} holds a store without {len(absent)} of the photographs, such as "
            f"{absent[0]}: give another --out, or --bad-images skip"
        )
    return [BadImage(path, "is not in the store") for path in absent]


def _check_unchanged(out: Path, entries: Sequence[Entry], sources: Sequence[_Source]) -> None:
    there = {source.name: source for source in sources}
    for entry in entries:
        source = there.get(entry.name)
        if source is None or source.files() != entry.files:
            state = "is not there" if source is None else "has changed"
            raise ValueError(
                f"--out {out} holds a store of other photographs ({entry.name} {state}): give "
                "another --out, or delete it"
            )


def _shown(sources: Sequence[_Source], progress: Progress) -> Iterator[_Source]:
    names = [source.name for source in sources]
    for source, _ in zip(sources, progress("preparing", names), strict=True):
        yield source


def _processors() -> int:
    # Of those that this process may use, where the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
