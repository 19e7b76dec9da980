"""Cuttings of photographs beside what enlargements make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mkdext._system.figures import figure_file, label
from mkdext.metrics import Window, strongest_window

MOST_ROWS = 40
"""Photographs of a sheet."""

_INCHES = 1.6  # of a cutting on the sheet
_LONGEST = 24  # letters below or above a cutting


class ContactSheet:
    """One row for each photograph, one column for the truth and for each way of enlarging."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Begin a sheet whose first column is the truth."""
        self._columns = list(columns)
        self._rows: list[list[tuple[Tensor, str] | None]] = []
        self.left_out = 0
        """Photographs that came when the sheet was full."""

    @property
    def rows(self) -> int:
        """Photographs on it."""
        return len(self._rows)

    def add(
        self,
        name: str,
        high: Tensor,
        pictures: Mapping[str, tuple[Tensor, float]],
        window: Window | None = None,
    ) -> None:
        """Add a photograph, if there is room.

        Args:
            name: Of the photograph.
            high: The truth, uint8 `[3, H, W]`.
            pictures: uint8 `[3, H, W]` and PSNR-Y in dB, for the columns after the first; those
                that are not there are left empty.
            window: What is cut out; default: where the first way differs most from the truth.
        """
        if not pictures:
            return
        if self.rows == MOST_ROWS:
            self.left_out += 1
            return
        if window is None:
            first, _ = next(iter(pictures.values()))
            window, _ = strongest_window((first.float() - high.float()).square().mean(dim=0))
        cells: list[tuple[Tensor, str] | None] = [(window.of(high).clone(), label(name, _LONGEST))]
        for column in self._columns[1:]:
            if column in pictures:
                picture, psnr = pictures[column]
                cells.append((window.of(picture).clone(), f"{psnr:.2f} dB"))
            else:
                cells.append(None)
        self._rows.append(cells)

    def save(self, path: Path) -> None:
        """Write the sheet as a PNG."""
        size = (_INCHES * len(self._columns), 1.15 * _INCHES * len(self._rows) + 0.3)
        with figure_file(path, size) as figure:
            grid = figure.subplots(len(self._rows), len(self._columns), squeeze=False)
            for axes, cells in zip(grid, self._rows, strict=True):
                for axis, cell in zip(axes, cells, strict=True):
                    axis.set(xticks=[], yticks=[])
                    if cell is not None:
                        picture, text = cell
                        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
                        axis.set_xlabel(text, fontsize=6)
            for axis, column in zip(grid[0], self._columns, strict=True):
                axis.set_title(label(column, _LONGEST), fontsize=7)
