"""``python -m mkdext.complexity``: parameters and operations of the networks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.plugins import error_in_words
from mkdext._system.terminal import text_table
from mkdext.models import MODEL_NAMES, create_model, is_from_elsewhere, make_from_elsewhere
from mkdext.models.complexity import Complexity, complexity
from mkdext.models.fusing import fused
from mkdext.models.user.spandrel import SMALL

_NOTES = (
    "Papers: counted by thop 0.0.31, as in the tables of super-resolution papers. Parameters are "
    "those of the convolutions that run and of the fixed colour shifts; FLOPs are the "
    "multiplications of these convolutions, one addition of a bias for each output, and the "
    "additions of global pooling. Activations, attention and other matrix products count nothing. "
    "MACs: multiplications, each with its addition, of all convolutions and matrix products that "
    "run. Parameters: all that are trained. Branches that a network has for its training alone are "
    "folded before."
)


def _count(name: str, scale: int, size: int) -> Complexity:
    if is_from_elsewhere(name):
        # What a training has beside is folded, as it is for use.
        model = fused(make_from_elsewhere(name, scale, "network"), f"network {name}")
        try:
            return complexity(model, size)
        except (Exception, SystemExit) as error:  # Whatever a user's network may raise.
            raise ValueError(
                f"network {name} cannot run on the meta device: {error_in_words(error)}"
            ) from error
    with torch.device("meta"):
        model = create_model(name, scale)
    return complexity(model, size)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table.

    Args:
        arguments: Names and flags; default: those of the process.

    Returns:
        The exit status: 2 for a network that is unknown or cannot be made, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mkdext.complexity",
        description="Count parameters and operations of the networks.",
        epilog=_NOTES,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"networks to count: {', '.join(MODEL_NAMES)} (default: all of them); "
        f"{', '.join(SMALL)} or spandrel:CLASS, of the package spandrel; or your own, "
        "package.module:factory or file.py:factory",
    )
    parser.add_argument("--scale", type=int, default=4, help="enlargement factor (default: 4)")
    parser.add_argument(
        "--size",
        type=int,
        default=512,
        help="width and height of the low-resolution image (default: 512)",
    )

    def run() -> None:
        options = parser.parse_args(arguments)
        size = options.size
        table = text_table(
            f"x{options.scale}, low-resolution image of {size}x{size} pixels",
            *("network", "parameters", "papers: parameters", "papers: FLOPs", "MACs"),
        )
        for name in options.names or MODEL_NAMES:
            counted = _count(name, options.scale, size)
            table.add_row(
                name,
                f"{counted.parameters:,}",
                f"{counted.paper_parameters:,}",
                f"{counted.paper_flops / 1e9:,.2f} G",
                f"{counted.macs / 1e9:,.2f} G",
            )
        console = CommandTerminal()
        console.show(table)
        console.print(_NOTES)

    return exit_status("mkdext.complexity", run)


if __name__ == "__main__":
    sys.exit(main())
