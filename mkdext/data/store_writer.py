"""Writing a store, one photograph after the other, so that a killed process loses none."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mkdext._system.files import write_text
from mkdext._system.locks import held
from mkdext._system.reading import MOST_BYTES, parse_json, require_file
from mkdext.data.store import (
    INDEX,
    JOURNAL,
    PIXELS,
    Entry,
    Levels,
    check_header,
    header,
    map_pixels,
    parse_entry,
    stored_pair,
)

_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class StoreWriter:
    """A store that is not finished."""

    folder: Path
    scale: int
    pixels: BinaryIO
    journal: BinaryIO
    done: list[Entry]
    """The photographs that an earlier process has written."""

    def append(
        self, name: str, high: Levels, low: Levels, crc32: int, files: list[list[int]]
    ) -> Entry:
        """Write a photograph.

        Args:
            name: By which it is known.
            high: `[3, scale*h, scale*w]`.
            low: `[3, h, w]`.
            crc32: What `checksum` gives for both.
            files: Size and state of what it was made from.
        """
        height, width = high.shape[1:]
        entry = Entry(name, height, width, self.pixels.tell(), crc32, files)
        self.pixels.write(high.data)
        self.pixels.write(low.data)
        self.pixels.flush()
        _write_line(self.journal, dataclasses.asdict(entry))
        return entry

    def finish(self, entries: Iterable[Entry]) -> None:
        """Write the index; from then on `read_store` reads the store.

        Args:
            entries: All photographs, in their order.
        """
        self.pixels.flush()
        os.fsync(self.pixels.fileno())
        photographs = [dataclasses.asdict(entry) for entry in entries]
        index = {**header(self.scale), "photographs": photographs}
        write_text(self.folder / INDEX, json.dumps(index, indent=1))
        (self.folder / JOURNAL).unlink()


@contextlib.contextmanager
def written_store(out: Path, scale: int, flag: str = "`out`") -> Iterator[StoreWriter]:
    """A store ready to be appended to, locked against other processes.

    Args:
        out: Its folder.
        scale: Of the store.
        flag: What names the folder in messages.

    Raises:
        ValueError: The folder cannot be written, holds anything else or a store of another scale,
            or another process is at work there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{flag} {out} cannot be created: {error.strerror}") from None
    others = any(path.name != _LOCK for path in out.iterdir())
    if others and not (out / JOURNAL).exists():
        raise ValueError(f"{flag} {out} holds other files; give an empty or new folder")
    for name in (JOURNAL, PIXELS):
        if os.path.lexists(out / name):
            require_file(out / name, f"{flag} {out}: {name}")
    with contextlib.ExitStack() as files:
        if not files.enter_context(held(out / _LOCK)):
            raise ValueError(f"{flag} {out} is in use by another process")
        if (out / INDEX).exists():
            (out / JOURNAL).unlink(missing_ok=True)
            raise ValueError(
                f"{flag} {out} was finished meanwhile by another process; the same command checks "
                "it"
            )
        journal = files.enter_context((out / JOURNAL).open("a+b"))
        pixels = files.enter_context((out / PIXELS).open("ab"))
        done = _read_journal(out, journal, scale, flag)
        pixels.truncate(done[-1].end(scale) if done else 0)
        pixels.seek(0, os.SEEK_END)
        yield StoreWriter(out, scale, pixels, journal, done)
    if (out / INDEX).exists():  # Whoever comes now reads it, and locks nothing.
        (out / _LOCK).unlink(missing_ok=True)


def _read_journal(out: Path, journal: BinaryIO, scale: int, flag: str) -> list[Entry]:
    """The photographs that are whole, up to the first that is not; what comes after is cut off."""
    journal.seek(0)
    first, *lines = journal.read(MOST_BYTES).splitlines(keepends=True) or [b""]
    if not first.endswith(b"\n"):
        journal.truncate(0)
        _write_line(journal, header(scale))
        return []
    begun = check_header(out, _parsed(first))
    if begun != scale:
        raise ValueError(
            f"{flag} {out} holds an unfinished store for scale {begun}, not {scale}: go on with "
            f"`scale` {begun}, or delete it"
        )
    pixels, done, size = map_pixels(out / PIXELS), [], len(first)
    for line in lines:
        try:
            entry = parse_entry(_parsed(line), scale)
        except ValueError:
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
        return parse_json(line, JOURNAL)
    except ValueError:
        return None


def _write_line(journal: BinaryIO, content: dict[str, Any]) -> None:
    journal.write(json.dumps(content).encode() + b"\n")
    journal.flush()
