"""Folders of photographs: finding, decoding and checking image files."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Progress = Callable[[Sequence[Path]], Iterable[Path]]
"""Wraps an iteration over files, to show how far it has come."""

# What Pillow may take a file for. It knows more formats, some of which start other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


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

    Files count by their suffix (`IMAGE_SUFFIXES`, in small or capital letters). Names that begin
    with a dot are left out, and links to other folders are not followed.

    Raises:
        ValueError: `folder` does not exist, is no directory, cannot be read in all its parts, or
            holds no image file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(folder / "black.png")
        >>> [path.name for path in find_images(folder)]
        ['black.png']
    """
    if not folder.is_dir():
        state = "is not a directory" if folder.exists() else "does not exist"
        raise ValueError(f"image folder {folder} {state}")
    try:
        paths = sorted(_image_files(folder))
    except OSError as error:
        raise ValueError(
            f"image folder {error.filename} cannot be read: {error.strerror}"
        ) from None
    if not paths:
        raise ValueError(f"image folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def read_image(path: Path) -> Tensor:
    """Decode a photograph.

    Grey, palette and CMYK images become RGB, 16-bit levels become 8-bit ones, an opaque alpha
    channel is dropped and a camera's orientation tag is applied.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        BadImageError: The file is missing, unreadable, no image, damaged, partly transparent,
            of several pages or frames, has 32-bit or floating-point pixels, or more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` (89 million), which is known before any is decoded.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (8, 6), 128).save(path)
        >>> read_image(path).shape
        torch.Size([3, 6, 8])
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            # Pillow itself only warns between once and twice the limit.
            if file.width * file.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError
            # A camera's MPO file holds the photograph first, then previews or a second view.
            frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
            if frames > 1:
                raise BadImageError(f"holds {frames} pages or frames; save one as a still image")
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            levels = np.asarray(_as_rgb(file))
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"has more than {Image.MAX_IMAGE_PIXELS} pixels; cut it into smaller photographs"
        raise BadImageError(reason) from None
    except UnidentifiedImageError:
        reason = "not an image of a known format, whatever its name says"
        raise BadImageError(reason if path.stat().st_size else "is empty (0 bytes)") from None
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror or error})") from None
    # Pillow's decoders raise whatever a damaged file makes them stumble over, and its warnings
    # are exceptions here while files are checked.
    except Exception as error:
        raise BadImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from None
    # Plane by plane, which is several times faster than a transposed copy.
    return torch.from_numpy(np.stack([levels[..., channel] for channel in range(3)]))


def check_images(
    paths: Sequence[Path],
    minimum_side: int = 1,
    progress: Progress = iter,
    use: Callable[[Path, Tensor], None] | None = None,
) -> tuple[list[Path], list[BadImage]]:
    """Decode every file once, in parallel, to know before any work which ones cannot be used.

    A file that makes Pillow warn, for example of damaged metadata, counts as bad.

    Args:
        paths: The files.
        minimum_side: Smallest width and height, in pixels, that is large enough.
        progress: Wraps the iteration over the files, to show how far it has come.
        use: Called with each usable file and its pixels, by several threads at a time.

    Returns:
        The usable files and the others, each in the order given.

    Example:
        >>> good, bad = check_images([Path("missing.png")])
        >>> print(bad[0])
        missing.png: cannot be read (No such file or directory)
    """

    def reason_against(path: Path) -> str | None:
        try:
            image = read_image(path)
        except BadImageError as error:
            return str(error)
        height, width = image.shape[-2:]
        if reason := too_small(height, width, minimum_side):
            return reason
        if use is not None:
            use(path, image)
        return None

    with pillow_warnings_raised(), ThreadPoolExecutor() as pool:
        try:
            reasons = pool.map(reason_against, paths)
            found = [(path, next(reasons)) for path in progress(paths)]
        finally:
            pool.shutdown(cancel_futures=True)
    good = [path for path, reason in found if reason is None]
    return good, [BadImage(path, reason) for path, reason in found if reason is not None]


def is_low_resolution(name: Path) -> bool:
    """Whether a path leads through a folder of low-resolution versions, such as DIV2K_LR_x8.

    Example:
        >>> is_low_resolution(Path("DIV2K_train_LR_bicubic/X4/0001x4.png"))
        True
    """
    return any(re.search(r"(^|_)LR(_|$)", part) for part in name.parts[:-1])


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


def _image_files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(root, name)
            is_image = path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            # A dangling link is kept, to be reported; a pipe or device would block its reader.
            if is_image and (path.is_symlink() or path.is_file()):
                yield path


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise BadImageError("has 32-bit or floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise BadImageError("has transparent pixels; flatten it onto a background")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def pillow_warnings_raised() -> Iterator[None]:
    """Make Pillow's warnings, such as that of damaged metadata, exceptions."""
    # One change of the filters around all threads: the filters belong to the whole process.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"PIL\.")
        yield
