"""Cuttings of photographs beside what enlargements make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from mkdext._files import atomic_write

SIDE = 96
"""Width and height of a cutting in high-resolution pixels."""

_INCHES = 1.6  # of a cutting on the sheet
_DPI = 120


class Window(NamedTuple):
    """A square part of a picture, in pixels."""

    top: int
    left: int
    side: int


class ContactSheet:
    """One row for each photograph, one column for the truth and for each way of enlarging."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Begin a sheet whose first column is the truth."""
        self._columns = list(columns)
        self._rows: list[tuple[str, list[tuple[Tensor, str]]]] = []

    def add(
        self,
        name: str,
        hr: Tensor,
        pictures: Mapping[str, tuple[Tensor, float]],
        window: Window | None = None,
    ) -> None:
        """Add a photograph.

        Args:
            name: Of the photograph.
            hr: The truth, uint8 `[3, H, W]`.
            pictures: uint8 `[3, H, W]` and PSNR-Y in dB, for each column after the first.
            window: What is cut out; none: where the first way differs most from the truth.
        """
        if window is None:
            first = pictures[self._columns[1]][0]
            window, _ = strongest_window((first.float() - hr.float()).square().mean(dim=0))
        top, left, side = window
        cut = (slice(None), slice(top, top + side), slice(left, left + side))
        cells = [(hr[cut].clone(), "")]
        for column in self._columns[1:]:
            picture, psnr = pictures[column]
            cells.append((picture[cut].clone(), f"{psnr:.2f} dB"))
        self._rows.append((name, cells))

    def save(self, path: Path) -> None:
        """Write the sheet as a PNG."""
        size = (_INCHES * len(self._columns), 1.15 * _INCHES * len(self._rows) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(self._rows), len(self._columns), squeeze=False)
        for axes, (name, cells) in zip(grid, self._rows, strict=True):
            for axis, (picture, text) in zip(axes, cells, strict=True):
                axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.set_xlabel(text or name, fontsize=6)
        for axis, column in zip(grid[0], self._columns, strict=True):
            axis.set_title(column, fontsize=7)
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            figure.savefig(file, format="png", dpi=_DPI)


def strongest_window(values: Tensor) -> tuple[Window, float]:
    """The square of side `SIDE`, or of what there is, with the largest mean.

    Args:
        values: `[H, W]`, float.

    Returns:
        The square, and its mean.

    Example:
        >>> import torch
        >>> strongest_window(torch.ones(192, 192).tril(-96))[0]
        Window(top=96, left=0, side=96)
    """
    side = min(SIDE, *values.shape)
    step = max(side // 4, 1)
    means = functional.avg_pool2d(values[None, None], side, stride=step)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return Window(row * step, column * step, side), float(means.max())
