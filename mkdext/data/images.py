"""Folders of photographs: finding, decoding and checking image files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class BadImageError(ValueError):
    """A file that cannot be used as a photograph; the message says why."""


@dataclasses.dataclass(frozen=True)
class BadImage:
    """A file that cannot be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """One line for a report."""
        return f"{self.path}: {self.reason}"


def find_images(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted by path.

    Raises:
        ValueError: `folder` does not exist, is no directory, or holds no image file.
    """
    if not folder.is_dir():
        state = "is not a directory" if folder.exists() else "does not exist"
        raise ValueError(f"image folder {folder} {state}")
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise ValueError(f"image folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def read_image(path: Path) -> Tensor:
    """Decode a photograph.

    Grey and palette images become RGB, 16-bit grey is scaled to 8 bit, an opaque alpha channel is
    dropped and a camera's orientation tag is applied.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        BadImageError: The file is missing, no image, truncated, partly transparent, or of
            floating-point pixels.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except UnidentifiedImageError:
        raise BadImageError("not an image, whatever its name says") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"cannot be decoded ({error})") from None
    if image.mode == "F":
        raise BadImageError("has floating-point pixels; save it with 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = np.rint(np.asarray(image).astype(np.float64).clip(0, 65535) / 257).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3] != (255, 255):
            raise BadImageError("has transparent pixels; flatten it onto a background")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def check_images(
    paths: Sequence[Path],
    minimum_side: int = 1,
    progress: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> tuple[list[Path], list[BadImage]]:
    """Decode every file once, to know before any work which ones cannot be used.

    Args:
        paths: The files.
        minimum_side: Smallest width and height, in pixels, that is large enough.
        progress: Wraps the iteration over the files, to show how far it has come.

    Returns:
        The usable files and the others, each in the order given.
    """
    with ThreadPoolExecutor() as pool:
        reasons = pool.map(lambda path: _reason_against(path, minimum_side), paths)
        found = [(path, next(reasons)) for path in progress(paths)]
    good = [path for path, reason in found if reason is None]
    return good, [BadImage(path, reason) for path, reason in found if reason is not None]


def _reason_against(path: Path, minimum_side: int) -> str | None:
    try:
        height, width = read_image(path).shape[1:]
    except BadImageError as error:
        return str(error)
    if min(height, width) < minimum_side:
        return f"is {width}x{height} pixels, needs at least {minimum_side} on each side"
    return None
