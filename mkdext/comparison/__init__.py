"""Many trainings under one protocol: students, methods and seeds, and what came of them."""

from mkdext.comparison.cells import Cell, Comparison
from mkdext.comparison.processes import run_cells
from mkdext.comparison.report import write_report

__all__ = ["Cell", "Comparison", "run_cells", "write_report"]
