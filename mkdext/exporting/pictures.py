"""Photographs that exported files are compared and calibrated on."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mkdext._system.reading import require_file
from mkdext.data import BadImageError, builtin_photographs, find_images, imresize, read_image
from mkdext.exporting.onnx_file import EXAMPLE

_LARGEST = (97, 120)  # of the photograph in low resolution; no multiple of what graphs divide by
_CALIBRATED = (64, 64)  # low-resolution pixels of each photograph that ranges are taken from
_MOST_CALIBRATED = 32

Pair = tuple[Tensor, Tensor]
"""A picture `[1, 3, h, w]` in [0, 1], and the photograph that it is of, `scale` times as large."""


def photographs(path: Path | None, scale: int, size: tuple[int, int] | None) -> list[Pair]:
    """A photograph reduced by `scale`, to compare on.

    Args:
        path: Its file; none: a built-in one.
        scale: Enlargement factor.
        size: Height and width wanted, for which it is repeated; none: cuts of three sizes, that of
            the exporters' example first, and one of them a negative.

    Raises:
        ValueError: It cannot be used.
    """
    if path is not None:
        require_file(path, f"`image` {path}")
    pair = _reduced(path or builtin_photographs("validation")[-1], "image", scale, size or _LARGEST)
    if size is not None:
        return [_fitted(pair, size, scale)]
    height, width = pair[0].shape[2:]
    smaller = height - height // 8, width - width // 6
    low, high = _fitted(pair, smaller, scale)
    return [_fitted(pair, EXAMPLE, scale), (1 - low, 1 - high), pair]


def calibration(path: Path | None, scale: int, size: tuple[int, int] | None) -> list[Tensor]:
    """Pictures `[1, 3, h, w]` that the ranges of numbers in a network are taken from.

    Args:
        path: A photograph or a folder of them, of which at most 32 are taken, evenly; none: the
            built-in ones.
        scale: Enlargement factor.
        size: Height and width wanted; none: 64x64, for which small photographs are repeated.

    Raises:
        ValueError: One cannot be used.
    """
    if path is None:
        files = builtin_photographs("train")
    elif path.is_dir():
        files = find_images(path)
    else:
        require_file(path, f"`calibration` {path}")
        files = [path]
    chosen = files[:: -(-len(files) // _MOST_CALIBRATED)]
    wanted = size or _CALIBRATED
    pairs = (_reduced(file, "calibration", scale, wanted) for file in chosen)
    return [_fitted(pair, wanted, scale)[0] for pair in pairs]


def _reduced(path: Path, argument: str, scale: int, most: tuple[int, int]) -> Pair:
    """A photograph's corner of at most that size in low resolution."""
    try:
        image = read_image(path)
    except BadImageError as error:
        raise ValueError(f"`{argument}` {path}: {error}") from None
    height, width = (min(n // scale, m) for n, m in zip(image.shape[1:], most, strict=True))
    if min(height, width) < 1:
        raise ValueError(f"`{argument}` {path} must have at least {scale} pixels a side")
    high = image[None, :, : height * scale, : width * scale]
    return imresize(high, 1 / scale) / 255, high / 255


def _fitted(pair: Pair, size: tuple[int, int], scale: int) -> Pair:
    """A pair cut to a size in low resolution, and repeated where it is smaller."""
    low, high = pair
    times = (-(-n // m) for n, m in zip(size, low.shape[2:], strict=True))
    rows, columns = size
    repeated = 1, 1, *times
    return (
        low.repeat(repeated)[..., :rows, :columns],
        high.repeat(repeated)[..., : rows * scale, : columns * scale],
    )
