"""Photographs: decoding and checking image files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mkdext.data.decoding import BadImageError, decode

Progress = Callable[[Sequence[Path]], Iterable[Path]]
"""Wraps an iteration over files, to show how far it has come."""


@dataclasses.dataclass(frozen=True)
class BadImage:
    """A file that cannot be used, and why."""

    path: Path
    reason: str
    is_small: bool = False
    """Whether it is too small and nothing else."""

    def __str__(self) -> str:
        """One line for a report."""
        return f"{self.path}: {self.reason}"


def read_image(path: Path) -> Tensor:
    """Decode a photograph.

    Grey, palette and CMYK images (the latter by their profile, if it fits) become RGB, 16-bit
    levels are rounded to 8 bits, an opaque alpha channel is dropped and a camera's orientation is
    applied. Pictures to enlarge are decoded by the same reader.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        BadImageError: The file is missing, unreadable, no image, damaged, partly transparent,
            of several pages or frames, has signed, 32-bit or floating-point pixels, or more pixels
            than `PIL.Image.MAX_IMAGE_PIXELS` (89 million), which is known before any is decoded.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (8, 6), 128).save(path)
        >>> read_image(path).shape
        torch.Size([3, 6, 8])
    """
    levels = decode(path, Image.MAX_IMAGE_PIXELS or math.inf).levels
    channels = levels.shape[2]
    if channels in (2, 4):
        if levels[..., -1].min() < np.iinfo(levels.dtype).max:
            raise BadImageError("has transparent pixels; flatten it onto a background")
        channels -= 1
    if levels.dtype == np.uint16:
        levels = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    # Plane by plane, which is several times faster than a transposed copy.
    planes = [levels[..., channel] for channel in (range(3) if channels == 3 else (0, 0, 0))]
    return torch.from_numpy(np.stack(planes))


def check_images(
    paths: Sequence[Path],
    minimum_side: int = 1,
    progress: Progress = iter,
    use: Callable[[Path, Tensor], object] | None = None,
) -> tuple[list[Path], list[BadImage]]:
    """Decode every file once, in parallel, to know before any work which ones cannot be used.

    Args:
        paths: The files.
        minimum_side: Smallest width and height, in pixels, that is large enough.
        progress: Wraps the iteration over the files, to show how far it has come.
        use: Called with each usable file and its pixels, by several threads at a time; where it
            raises a `BadImageError`, the file is not usable.

    Returns:
        The usable files and the others, each in the order given.

    Example:
        >>> good, bad = check_images([Path("missing.png")])
        >>> print(bad[0])
        missing.png: cannot be read (No such file or directory)
    """

    def against(path: Path) -> BadImage | None:
        try:
            image = read_image(path)
            height, width = image.shape[-2:]
            if reason := too_small(height, width, minimum_side):
                return BadImage(path, reason, is_small=True)
            if use is not None:
                use(path, image)
        except BadImageError as error:
            return BadImage(path, str(error))
        return None

    with ThreadPoolExecutor() as pool:
        try:
            results = pool.map(against, paths)
            found = [(path, next(results)) for path in progress(paths)]
        finally:
            pool.shutdown(cancel_futures=True)
    good = [path for path, bad in found if bad is None]
    return good, [bad for _, bad in found if bad is not None]


def too_small(height: int, width: int, minimum_side: int) -> str | None:
    """What speaks against a photograph of that size, if anything does."""
    if min(height, width) >= minimum_side:
        return None
    return f"is {width}x{height} pixels, needs at least {minimum_side} on each side"


def bad_images_message(bad: Sequence[BadImage], lines: int = 20) -> str:
    """The message to a user about files that cannot be used.

    Args:
        bad: At least one such file.
        lines: How many of them are named; the others are counted.

    Example:
        >>> print(bad_images_message([BadImage(Path("a.png"), "is empty (0 bytes)")]))
        1 image cannot be used:
          a.png: is empty (0 bytes)
    """
    named = [f"  {image}" for image in bad[:lines]]
    if len(bad) > lines:
        named.append(f"  ... and {len(bad) - lines} more")
    return "\n".join([f"{len(bad)} image{'s' * (len(bad) > 1)} cannot be used:", *named])
