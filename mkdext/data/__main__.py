"""``python -m mkdext.data``: prepare, check and list photographs to train and test on."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from rich.progress import Progress
from rich.table import Table

from mkdext._cli.flags import parse_flags
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.terminal import Terminal, progress_bar
from mkdext.data.contents import Contents, read_contents
from mkdext.data.duplicates import Duplicate, find_duplicates
from mkdext.data.folders import is_low_resolution
from mkdext.data.images import bad_images_message
from mkdext.data.known_sets import KNOWN_SETS, compare_with_known
from mkdext.data.prepare import prepare_store

_SHOWN = 20  # duplicates that are listed, at most

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class PrepareCommand:
    """Decode photographs once into a store, from which --train-dir reads patches directly.

    The store takes about as much room as the raw pixels, 3 bytes for each. The same command
    continues where it was stopped; on a finished store it reads every pixel back and compares
    checksums.
    """

    source: tyro.conf.Positional[Path]
    """Folder of high-resolution photographs, such as DIV2K_train_HR."""
    out: Path
    """Folder of the store."""
    scale: int = 4
    """Downscaling factor."""
    lr: Path | None = None
    """Folder of low-resolution versions, such as DIV2K_train_LR_bicubic/X4; default: MATLAB's
    bicubic makes them."""
    crop: bool = False
    """Cut photographs and given low-resolution versions whose sizes do not fit, such as those that
    MATLAB rounds up, at the right and the bottom to what they share."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """What to do about broken photographs, after all are named and the others are written."""
    workers: int | None = None
    """Processes that decode; default: one for each processor."""


@dataclasses.dataclass(frozen=True)
class CheckCommand:
    """Show what is in a folder of photographs or in a store, and what is wrong with it.

    Counts, sizes, formats, broken files, and duplicates, also after re-encoding, resizing,
    mirroring or turning. The exit status is 1 if a file is broken, if a photograph is also in one
    of the folders of --against, or if the folder is not the data set that it should be.
    """

    folder: tyro.conf.Positional[Path]
    """Folder or store."""
    against: tuple[Path, ...] = ()
    """Folders of test photographs, none of which should be in the first folder."""
    dataset: (
        Literal["DIV2K", "Flickr2K", "291", "Set5", "Set14", "BSD100", "Urban100", "Manga109"]
        | None
    ) = None
    """Data set that the folder should be; `list` shows them."""


@dataclasses.dataclass(frozen=True)
class ListCommand:
    """List the data sets of the field: where to get them, their folders, how papers use them."""


Command = (
    Annotated[PrepareCommand, tyro.conf.subcommand("prepare")]
    | Annotated[CheckCommand, tyro.conf.subcommand("check")]
    | Annotated[ListCommand, tyro.conf.subcommand("list")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Name of the command and flags; default: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, 1 for a check that found something
        wrong or a failure on the way, 130 for Ctrl-C.
    """
    console = CommandTerminal()

    def run() -> int:
        command: PrepareCommand | CheckCommand | ListCommand = parse_flags(
            Command,
            arguments,
            prog="python -m mkdext.data",
            description=__doc__.split(": ", 1)[1],
        )
        match command:
            case PrepareCommand():
                return prepare(command, console)
            case CheckCommand():
                return check(command, console)
            case ListCommand():
                return list_known_sets(console)

    return exit_status("mkdext.data", run, memory="lower --workers where there is one")


def prepare(command: PrepareCommand, console: Terminal) -> int:
    """Make a store and say what it is."""
    with progress_bar(console, transient=True) as bar:
        prepared = prepare_store(
            **dataclasses.asdict(command),
            progress=lambda title, names: bar.track(names, description=title),
        )
    for image in prepared.left_out:
        console.say(f"left out: {image}")
    console.say(
        f"{prepared.folder}: {prepared.photographs} photographs, {prepared.size / 1e6:,.1f} MB, "
        f"all checksums are right ({prepared.written} written now)\n"
        f"use it with --train-dir {shlex.quote(str(prepared.folder))} --scale {command.scale}",
    )
    return 0


def check(command: CheckCommand, console: Terminal) -> int:
    """Show what is in a folder, and compare it with others."""
    with progress_bar(console, transient=True) as bar:

        def read(folder: Path) -> Contents:
            return read_contents(folder, _tracked(bar, f"reading {folder}"))

        contents = read(command.folder)
        others = [read(folder) for folder in command.against]
    is_wrong = False
    for each in (contents, *others):
        _show_contents(each, console)
        is_wrong |= bool(each.bad)
    if command.dataset is not None:
        known = next(known for known in KNOWN_SETS if known.name == command.dataset)
        table = Table("folder", "expected", "found", "problems", title=known.name)
        for column in table.columns:
            column.overflow = "fold"
        for report in compare_with_known(contents, known):
            problems = "; ".join(report.problems)
            table.add_row(report.folder, str(report.expected), str(report.found), problems)
            is_wrong |= bool(problems)
        console.show(table)
    marks = [
        [
            mark
            for mark in each.fingerprints
            if not is_low_resolution(mark.path.relative_to(each.folder))
        ]
        for each in (contents, *others)
    ]
    _show_duplicates(f"twice in {command.folder}", find_duplicates(marks[0]), console)
    for folder, other in zip(command.against, marks[1:], strict=True):
        duplicates = find_duplicates(marks[0], other)
        _show_duplicates(f"in {command.folder} and in {folder}", duplicates, console)
        is_wrong |= bool(duplicates)
    return int(is_wrong)


def list_known_sets(console: Terminal) -> int:
    """Print the table of data sets."""
    for known in KNOWN_SETS:
        table = Table(box=None, show_header=False, title=known.name, title_justify="left")
        table.add_column(no_wrap=True, min_width=8)
        table.add_column(overflow="fold")
        table.add_row("for", f"{known.use}; {known.count} photographs")
        for part in known.parts:
            if part.scale is None:
                table.add_row("folder", f"{' or '.join(part.folders)}: {part.count}")
        if low := [part for part in known.parts if part.scale is not None]:
            table.add_row("given LR", ", ".join(part.folders[0] for part in low))
        table.add_row("from", known.source)
        table.add_row("papers", known.protocol)
        console.print(table)
        console.print()
    return 0


def _show_contents(contents: Contents, console: Terminal) -> None:
    count = len(contents.sizes)
    console.say(f"{contents.folder}: {count} usable photographs")
    if count:
        kinds = ", ".join(f"{number} {kind}" for kind, number in contents.kinds.most_common())
        console.say(f"  formats: {kinds}")
        by_area = sorted(contents.sizes, key=lambda size: size[0] * size[1])
        smallest, median, largest = (
            "x".join(map(str, by_area[index])) for index in (0, count // 2, -1)
        )
        pixels = sum(width * height for width, height in by_area) / 1e6
        console.say(
            f"  sizes: {smallest} to {largest}, median {median}, {pixels:,.1f} million pixels",
        )
    if contents.bad:
        console.say(bad_images_message(contents.bad))
    if low := contents.low_resolution:
        console.say(
            f"{len(low)} low-resolution versions among them, such as {low[0]}: training and "
            "measuring refuse this folder; give that of the high-resolution ones"
        )
    if others := contents.other_formats:
        console.say(
            f"{len(others)} files in formats that mkdext does not read, such as {others[0]}: "
            "convert them to PNG or JPEG, or they are ignored"
        )


def _show_duplicates(where: str, duplicates: Sequence[Duplicate], console: Terminal) -> None:
    exact = sum(duplicate.is_exact for duplicate in duplicates)
    console.say(f"{where}: {exact} exact duplicates, {len(duplicates) - exact} near-duplicates")
    for duplicate in duplicates[:_SHOWN]:
        how = "exact" if duplicate.is_exact else f"similarity {duplicate.similarity:.2f}"
        console.say(f"  {duplicate.first} = {duplicate.second} ({how})")
    if len(duplicates) > _SHOWN:
        console.say(f"  ... and {len(duplicates) - _SHOWN} more")


def _tracked(bar: Progress, title: str) -> Callable[[Sequence[Item]], Iterable[Item]]:
    return lambda items: bar.track(items, description=title)


if __name__ == "__main__":
    sys.exit(main())
