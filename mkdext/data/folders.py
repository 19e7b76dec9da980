"""Folders of photographs: which files in them count, and which are small versions of others."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from mkdext.data.decoding import BadImageError, read_header

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
)
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jxl", ".psd", ".exr", ".ppm", ".pgm"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
)
"""Of pictures in formats that are not read."""

_LOW_FOLDER = re.compile(r"(^|[_-])LR([_-]|x\d|bi[a-z]*|$)")
_SCALE_FOLDER = re.compile(r"[xX][2-8]")
_SCALE_SUFFIX = re.compile(r"_?[xX][2-8](m|d|w\d)?$")  # the letters are those of DIV2K's tracks
_LOW_MARK = re.compile(r"(^|[_.-])LR(?=$|[_.-])")
_HIGH_MARK = re.compile(r"(^|[_.-])HR(?=$|[_.-])")


def find_images(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted by path.

    Files count by their suffix (`IMAGE_SUFFIXES`, in small or capital letters). Names that begin
    with a dot are left out, and links to other folders are not followed.

    Raises:
        ValueError: `folder` does not exist, is no directory, cannot be read in all its parts, or
            holds no image file.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(folder / "black.png")
        >>> [path.name for path in find_images(folder)]
        ['black.png']
    """
    paths = sorted(_files(folder, IMAGE_SUFFIXES))
    if not paths:
        others = find_other_pictures(folder)
        hint = f"; convert the others to one of these, such as {others[0]}" if others else ""
        raise ValueError(
            f"image folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}){hint}"
        )
    return paths


def find_other_pictures(folder: Path) -> list[Path]:
    """Files below `folder` whose suffix is that of a picture in a format that is not read."""
    return sorted(_files(folder, OTHER_SUFFIXES))


def find_high_resolution(
    folder: Path, low: Path | None = None, low_flag: str | None = None
) -> list[Path]:
    """The photographs below a folder, which must not be mixed with small versions of them.

    Args:
        folder: As for `find_images`.
        low: Folder of the small versions; where it is `folder` itself, they are left out.
        low_flag: What messages call `low`; none: nobody can give it.

    Raises:
        ValueError: As `find_images`, or there are small versions too.
    """
    paths = find_images(folder)
    mixed_in = find_low_resolution(folder, paths)
    if not mixed_in:
        return paths
    if low is not None and os.path.samefile(low, folder):
        return sorted(set(paths) - set(mixed_in))
    name = mixed_in[0].relative_to(folder)
    has_own_folder = not any(
        path.parent == mixed_in[0].parent for path in set(paths) - set(mixed_in)
    )
    if has_own_folder:
        fix = "give the folder of the high-resolution ones"
        fix += f", and {low_flag} for the others" if low_flag else " alone"
    else:
        fix = f"give this folder by {low_flag} too, or " if low_flag else ""
        fix += f"move these into {'one' if low_flag else 'a folder'} of their own"
    raise ValueError(f"{folder} holds low-resolution photographs too, such as {name}: {fix}")


def find_low_resolution(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Those of the photographs of a folder that are small versions of others.

    They are in a folder named so, such as `DIV2K_train_LR_bicubic`; or they have the name of a
    larger one with `x2` to `x8` after it or `LR` in it, or are in a folder `X2` to `X8`.

    Args:
        folder: The folder.
        paths: What `find_images` found there.
    """
    low = {path for path in paths if is_low_resolution(path.relative_to(folder))}
    versions: dict[str, list[tuple[Path, bool]]] = defaultdict(list)
    for path in paths:
        name, is_marked = _name_and_mark(path)
        versions[name].append((path, is_marked or path in low))
    for group in versions.values():
        marked = [path for path, is_marked in group if is_marked and path not in low]
        if not marked or len(group) < 2:
            continue
        sizes = {path: _size(path) for path, _ in group}
        low |= {path for path in marked if any(_is_larger(s, sizes[path]) for s in sizes.values())}
    return sorted(low)


def is_low_resolution(name: Path) -> bool:
    """Whether a path leads through a folder of low-resolution versions, such as DIV2K_LR_x8.

    Example:
        >>> is_low_resolution(Path("DIV2K_train_LR_bicubic/X4/0001x4.png"))
        True
    """
    return any(_LOW_FOLDER.search(part) for part in name.parts[:-1])


def match_low_resolution(names: Sequence[Path], folder: Path, low: Path, scale: int) -> list[Path]:
    """The low-resolution versions of photographs.

    That of `0001.png` is `0001.png`, `0001x4.png` or `0001_x4.png` (the scale) with any suffix,
    or `0001x4m.png` and `0001x4d.png` as in DIV2K's mild and difficult tracks, and that of
    `0001_HR.png` may be `0001_LR.png`. It lies in the same folder below `low` as the
    photograph below its own, or else anywhere if there is only one of that name.

    Args:
        names: The photographs, relative to their folder.
        folder: Their folder.
        low: Folder of the low-resolution versions, perhaps the same.
        scale: Downscaling factor.

    Raises:
        ValueError: `low` cannot be read, or a version is missing.
    """
    given = set(find_images(low)) - {folder / name for name in names}
    by_path = {path.relative_to(low).with_suffix(""): path for path in given}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in given:
        by_stem[path.stem].append(path)
    found, missing = [], []
    for name in names:
        stems = _low_stems(name.stem, scale)
        at_path = (by_path.get(name.with_name(stem)) for stem in stems)
        alone = (by_stem[stem][0] for stem in stems if len(by_stem[stem]) == 1)
        version = next(filter(None, at_path), None) or next(alone, None)
        if version is None:
            missing.append(name)
        else:
            found.append(version)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{low} has no low-resolution version of {missing[0]}{more}: none of "
            f"{', '.join(_low_stems(missing[0].stem, scale))}"
        )
    return found


def _low_stems(stem: str, scale: int) -> list[str]:
    ends = ["", *(f"{mark}x{scale}{track}" for track in ("", "m", "d") for mark in ("", "_"))]
    stems = [stem + end for end in ends]
    if _HIGH_MARK.search(stem):
        stems.append(_HIGH_MARK.sub(r"\1LR", stem))
    return stems


def _name_and_mark(path: Path) -> tuple[str, bool]:
    """What all versions of a photograph are called, and whether this seems to be a small one."""
    stem, scales = _SCALE_SUFFIX.subn("", path.stem)
    stem, marks = _LOW_MARK.subn("", stem)
    is_marked = bool(scales or marks or _SCALE_FOLDER.fullmatch(path.parent.name))
    return _HIGH_MARK.sub("", stem).lower(), is_marked


def _size(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(BadImageError):
        return read_header(path)[1:]
    return None


def _is_larger(first: tuple[int, int] | None, second: tuple[int, int] | None) -> bool:
    if first is None or second is None:
        return False
    return first[0] > second[0] and first[1] > second[1]


def _files(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Files with one of the suffixes below a folder."""
    waiting = [str(folder)]
    try:
        while waiting:
            for entry in os.scandir(waiting.pop()):
                if entry.name.startswith("."):
                    continue
                # A dangling link is kept, to be reported; a pipe or device is no photograph.
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in suffixes and _may_be_read(entry):
                    yield Path(entry.path)
    except OSError as error:
        place = Path(os.fsdecode(error.filename))
        if place != folder:
            raise ValueError(f"image folder {place} cannot be read: {error.strerror}") from None
        state = {
            FileNotFoundError: "does not exist",
            NotADirectoryError: "is not a directory",
        }.get(type(error), f"cannot be read: {error.strerror}")
        raise ValueError(f"image folder {folder} {state}") from None


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    try:
        return (entry.is_symlink() and not os.path.isdir(entry.path)) or entry.is_file()
    except OSError:  # a link to itself
        return True
