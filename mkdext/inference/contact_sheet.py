"""Cuttings of photographs beside what enlargements make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from mkdext._files import atomic_write

SIDE = 96
"""Width and height of a cutting in high-resolution pixels."""

_INCHES = 1.6  # of a cutting on the sheet
_DPI = 120


class ContactSheet:
    """One row for each photograph, one column for the truth and for each way of enlarging.

    The cutting is where the first way differs most from the truth.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        """Begin a sheet whose first column is the truth."""
        self._columns = list(columns)
        self._rows: list[tuple[str, list[tuple[Tensor, str]]]] = []

    def add(self, name: str, hr: Tensor, pictures: Mapping[str, tuple[Tensor, float]]) -> None:
        """Add a photograph.

        Args:
            name: Of the photograph.
            hr: The truth, uint8 `[3, H, W]`.
            pictures: uint8 `[3, H, W]` and PSNR-Y in dB, for each column after the first.
        """
        first = pictures[self._columns[1]][0]
        top, left, side = _most_different(first, hr)
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


def _most_different(picture: Tensor, hr: Tensor) -> tuple[int, int, int]:
    """Top, left and side of the square where a picture is worst."""
    side = min(SIDE, *hr.shape[1:])
    error = (picture.float() - hr.float()).square().mean(dim=0)
    worst = int(functional.avg_pool2d(error[None, None], side, stride=max(side // 4, 1)).argmax())
    columns = (hr.shape[2] - side) // max(side // 4, 1) + 1
    step = max(side // 4, 1)
    return worst // columns * step, worst % columns * step, side
