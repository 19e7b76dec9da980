"""What a runtime makes of photographs beside what PyTorch makes of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mkdext._system.alone import Failed
from mkdext.metrics import luma

Runner = Callable[[Tensor], Tensor]
"""A file in its runtime: `[1, 3, h, w]` to `[1, 3, scale*h, scale*w]`, float32. It raises `Failed`
with what the runtime says."""

_REPETITIONS, _SECONDS = 5, 2.0  # of a measurement of time, at most


def compare(
    runtime: str,
    run: Runner,
    pictures: Sequence[Tensor],
    expected: Sequence[Tensor],
    tolerance: float = math.inf,
) -> list[Tensor]:
    """Have a runtime enlarge what PyTorch has enlarged.

    Args:
        runtime: Its name.
        run: The file in it.
        pictures: `[1, 3, h, w]` in [0, 1], that of the size of the exporter's example first.
        expected: What PyTorch makes of each.
        tolerance: Levels of 255 by which a pixel may differ.

    Returns:
        What the runtime makes of each.

    Raises:
        Failed: It differs by more, has another size, or the runtime cannot use the file.
    """
    made: list[Tensor] = []
    for low, sr in zip(pictures, expected, strict=True):
        try:
            made.append(_enlarged(f"on a picture {list(low.shape)} {runtime}", run, low, sr))
            if not (found := difference(made[-1:], [sr])) <= tolerance:
                raise Failed(
                    f"on a picture {list(low.shape)} {runtime} differs from PyTorch by {found:.2g} "
                    f"levels, more than {tolerance}"
                )
        except Failed as error:
            if low is pictures[0]:
                raise
            fits = f"the file fits a picture {list(pictures[0].shape)}"
            raise Failed(f"{fits}, as the exporter was given, but {error}") from None
    return made


def difference(made: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of a pixel, in levels of 255."""
    return 255 * max((a - b).abs().max().item() for a, b in zip(made, expected, strict=True))


def psnr(made: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """PSNR in dB of all colours of all pictures, clipped; infinite for equal ones."""
    error = _error([sr.clamp(0, 1) for sr in made], [sr.clamp(0, 1) for sr in expected])
    return -10 * math.log10(error) if error else math.inf


def lost(
    made: Sequence[Tensor], expected: Sequence[Tensor], true: Sequence[Tensor], border: int
) -> float:
    """How much less PSNR-Y pictures have than those expected, in dB, against the true ones.

    Args:
        made: `[1, 3, H, W]` in [0, 1], clipped here.
        expected: Of the same sizes.
        true: The photographs.
        border: Pixels left out at each side.
    """
    inner = (..., slice(border, -border), slice(border, -border))

    def y(images: Sequence[Tensor]) -> list[Tensor]:
        return [luma(image.clamp(0, 1))[inner] for image in images]

    before, after = (_error(y(images), y(true)) for images in (expected, made))
    if not before:
        return math.inf if after else 0.0
    return 10 * math.log10(after / before) if after else -math.inf


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call that has been made once before."""
    taken: list[float] = []
    while len(taken) < _REPETITIONS and sum(taken) < _SECONDS:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _enlarged(what: str, run: Runner, low: Tensor, expected: Tensor) -> Tensor:
    try:
        sr = run(low)
    except Failed as error:
        raise Failed(f"{what} fails: {error}") from None
    if sr.shape != expected.shape:
        raise Failed(f"{what} gives {list(sr.shape)} where PyTorch gives {list(expected.shape)}")
    if not torch.isfinite(sr).all():
        raise Failed(f"{what} gives values that are not finite")
    return sr


def _error(made: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    squares = sum(
        (a.double() - b).square().sum().item() for a, b in zip(made, expected, strict=True)
    )
    return squares / sum(image.numel() for image in expected)
