"""Rounding errors of Winograd convolution for tiles and interpolation points, before any kernel.

F(m x m, 3 x 3) in float32 on N(0, 1) data, 64 input channels, against float64: the norm of the
error over the norm of the result. `--search` tries the points 0, +-p, +-q (and +-r) of a list and
prints the best.

    python benchmarks/winograd_error.py
    python benchmarks/winograd_error.py --search
"""

from __future__ import annotations

import argparse
import itertools
from fractions import Fraction

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

CHANNELS, OUTPUTS, TILES = 64, 16, 64
KNOWN = {
    4: [(Fraction(1), Fraction(2)), (Fraction(2, 3), Fraction(3, 2))],
    6: [(Fraction(1, 2), Fraction(1), Fraction(2))],
}
CANDIDATES = [
    Fraction(text)
    for text in ("2/5", "1/2", "3/5", "2/3", "3/4", "4/5", "1", "5/4", "4/3", "3/2", "5/3", "2")
]


def matrices(pairs: tuple[Fraction, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, G and B of the points 0, +-pairs and infinity, in float64."""
    points = [Fraction(0)] + [sign * p for p in pairs for sign in (1, -1)]
    size = len(points) + 1
    outputs = size - 2
    a, g, b = (torch.zeros(size, columns, dtype=torch.float64) for columns in (outputs, 3, size))
    for i, p in enumerate(points):
        others = points[:i] + points[i + 1 :]
        scale = Fraction(1)
        for other in others:
            scale *= p - other
        a[i] = torch.tensor([float(p**j) for j in range(outputs)])
        g[i] = torch.tensor([float(p**j / scale) for j in range(3)])
        b[i, :-1] = coefficients(others)
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = coefficients(points)
    return a, g, b


def coefficients(roots: list[Fraction]) -> Tensor:
    """Return the polynomial with these roots, constant first."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        polynomial = [s - root * p for s, p in zip(shifted, [*polynomial, 0], strict=True)]
    return torch.tensor([float(c) for c in polynomial], dtype=torch.float64)


def error(pairs: tuple[Fraction, ...]) -> float:
    """Return the relative error of float32 with these points."""
    torch.manual_seed(0)
    a, g, b = matrices(pairs)
    size, outputs = a.shape
    tiles = torch.randn(CHANNELS, TILES, size, size)
    weight = torch.randn(OUTPUTS, CHANNELS, 3, 3)
    a32, g32, b32 = a.float(), g.float(), b.float()
    product = torch.einsum("ocij,ctij->otij", g32 @ weight @ g32.T, b32 @ tiles @ b32.T)
    result = a32.T @ product @ a32
    patches = tiles.double().unfold(2, outputs, 1).unfold(3, outputs, 1)  # [C, T, 3, 3, m, m]
    expected = torch.einsum("octu,cptuij->opij", weight.double(), patches)
    return float((result - expected).norm() / expected.norm())


def main() -> None:
    """Print the errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true", help="try all points of the list")
    options = parser.parse_args()
    console = Console()
    table = Table("tile", "multiplications", "points 0, infinity and +-", "error")
    for outputs, known in KNOWN.items():
        sets = known
        if options.search:
            every = list(itertools.combinations(CANDIDATES, outputs // 2))
            sets = sorted(track(every, f"{outputs}x{outputs}", console=console), key=error)[:3]
        for pairs in sets:
            each = (outputs + 2) ** 2 / outputs**2
            names = ", ".join(str(p) for p in pairs)
            size = f"{outputs}x{outputs}"
            table.add_row(size, f"{each:.2f} per output", names, f"{error(pairs):.1e}")
    console.print(table)


if __name__ == "__main__":
    main()
