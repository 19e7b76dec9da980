"""What a step of a training sends in several processes, and how long that takes on a network.

Messages and bytes are counted in a real step, in which nothing is sent; the message of 8 bytes by
which processes agree whether to stop is one of them. Times follow from a model:
a ring passes `2 (N - 1) / N` times the bytes through each connection, and each message costs
`2 log2(N)` latencies. What is computed meanwhile is not counted: here nothing overlaps.

    python benchmarks/bench_processes.py
    python benchmarks/bench_processes.py --students rcan-t --latency 5
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mkdext._system.processes import Processes, at_work
from mkdext.models.handling import count_parameters
from mkdext.training import BUILTIN_DEMO, MetaOptions
from mkdext.training.setup import prepare
from mkdext.training.step import Batch

PROCESSES = 8, 64
GIGABITS = 25, 200
METHODS: dict[str, dict[str, Any]] = {
    "vanilla": {"method": "vanilla"},
    "fitnet": {"method": "fitnet"},
    "mkd, T = 1": {"meta": MetaOptions()},
    "mkd, T = 1, local": {"meta": MetaOptions(local=True)},
    "mkd, T = 3": {"meta": MetaOptions(steps=3)},
    "mkd, T = 3, replayed": {"meta": MetaOptions(steps=3, mode="replayed")},
    "mkd, T = 3, local": {"meta": MetaOptions(steps=3, local=True)},
}
_SIDE = 8  # of a patch; what is sent does not depend on it


class Counting(Processes):
    """One of two processes that sends nothing and counts what it would send."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__(rank=0, size=2)
        self.messages = 0
        self.bytes = 0

    def _reduce(self, tensor: torch.Tensor, how: Any) -> None:
        self.messages += 1
        self.bytes += tensor.nbytes


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--students", nargs="+", default=["rcan-a", "vdsr"])
    parser.add_argument(
        "--latency", type=float, default=10.0, help="of the network, in microseconds (default 10)"
    )
    return parser.parse_args()


def counted(student: str, changes: dict[str, Any]) -> tuple[int, Counting]:
    """Parameters of a student, and what a step of it sends, with a meta step where there is one."""
    torch.manual_seed(0)
    options = dataclasses.replace(
        BUILTIN_DEMO, student=student, batch_size=2, patch_size=_SIDE, **changes
    )
    stage = prepare(options.resolved()).student_stages[0]
    stage.begin(None)
    low, high = torch.rand(1, 3, _SIDE, _SIDE), torch.rand(1, 3, 4 * _SIDE, 4 * _SIDE)
    together = Counting()
    together.divide(2)
    with at_work(together):
        stage.take(1, Batch(low, high, scale=4))
        together.agreed(0)
    return count_parameters(stage.network), together


def seconds(sent: Counting, processes: int, gigabits: float, latency: float) -> float:
    """What the network takes for a step."""
    passed = 2 * (processes - 1) / processes * sent.bytes * 8 / (gigabits * 1e9)
    return passed + sent.messages * 2 * math.log2(processes) * latency * 1e-6


def main() -> None:
    """Print the table."""
    arguments = parse_arguments()
    table = Table("student", "parameters", "method", "messages", "MB", box=box.MARKDOWN)
    for processes in PROCESSES:
        for gigabits in GIGABITS:
            table.add_column(f"{processes} GPUs, {gigabits} Gbit/s")
    print("Times in milliseconds a step.")
    for student in arguments.students:
        for name, changes in METHODS.items():
            parameters, sent = counted(student, changes)
            times = [
                f"{1e3 * seconds(sent, processes, gigabits, arguments.latency):.2f}"
                for processes in PROCESSES
                for gigabits in GIGABITS
            ]
            row = f"{parameters:,}", name, str(sent.messages), f"{sent.bytes / 1e6:.3f}"
            table.add_row(student, *row, *times)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
