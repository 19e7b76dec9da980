"""Counts what a kernel executes: instructions, bank conflicts, sectors of global memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tests.ops.ptx.program import Instruction
from tests.ops.ptx.tensor_cores import LANES

CLASSES = (
    "mma",
    "float32",
    "float64",
    "conversion",
    "integer",
    "control",
    "shared load",
    "shared store",
    "global load",
    "global store",
    "copy",
    "parameter",
    "move",
)
"""Of instructions. Moves, and mostly loads of parameters, are gone in a GPU's own code."""

_BANKS = 32
_BANK_BYTES = 4
_SECTOR_BYTES = 32
_CONTROL = {"setp", "bra", "ret", "exit", "bar", "barrier"}
_SPACES = ("shared", "global", "param", "local")


def class_of(instruction: Instruction) -> str:
    """Return one of `CLASSES`."""
    parts = instruction.parts
    name, kind = parts[0], parts[-1]
    if name in ("ld", "st"):
        space = next((s for s in _SPACES if s in parts), "global")
        if space == "param":
            return "parameter"
        return (
            f"{'shared' if space == 'shared' else 'global'} {'load' if name == 'ld' else 'store'}"
        )
    if name in ("mov", "cvta"):
        return "move"
    if name in _CONTROL or kind == "pred":
        return "control"
    if name == "cvt":
        return "conversion" if any("f" in part for part in parts[-2:]) else "integer"
    if kind in ("f32", "f64") and name != "mma":
        return "float32" if kind == "f32" else "float64"
    return {"mma": "mma", "cp": "copy", "ldmatrix": "shared load", "shfl": "shared load"}.get(
        name, "integer"
    )


class Counts:
    """An Observer of the machine.

    Attributes:
        instructions: By class; one for each warp that takes part, with all its lanes or not.
        wavefronts: Passes through the banks of shared memory: ``load``, ``store``, and ``copy``,
            what asynchronous copies write there.
        sectors: Of 32 bytes of global memory, by instruction: ``load``, ``store`` and ``copy``.
    """

    def __init__(self) -> None:
        self.instructions: Counter[str] = Counter()
        self.wavefronts: Counter[str] = Counter()
        self.sectors: Counter[str] = Counter()
        self._classes: dict[int, Counter[str]] = {}

    def block(self, instructions: Sequence[Instruction], warps: int) -> None:
        """Count instructions."""
        # The lists live as long as the translation of the kernel.
        classes = self._classes.get(id(instructions))
        if classes is None:
            classes = Counter(class_of(instruction) for instruction in instructions)
            self._classes[id(instructions)] = classes
        for name, count in classes.items():
            self.instructions[name] += count * warps

    def access(
        self,
        instruction: Instruction,
        space: str,
        addresses: np.ndarray,
        threads: np.ndarray,
        size: int,
    ) -> None:
        """Count wavefronts or sectors."""
        kind = {"cp": "copy", "st": "store"}.get(instruction.parts[0], "load")
        if space == "shared":
            self.wavefronts[kind] += wavefronts(addresses, threads, size)
        elif space == "global":
            self.sectors[kind] += sectors(addresses, threads)


def wavefronts(addresses: np.ndarray, threads: np.ndarray, size: int) -> int:
    """Count the passes through the banks of shared memory that an instruction takes.

    A pass serves a word of each bank, to any number of lanes; up to 4 bytes for a whole warp, 8 for
    half of one, 16 for a quarter.

    Args:
        addresses: In bytes, of the threads.
        threads: Their numbers.
        size: Bytes of each.
    """
    together = LANES * _BANK_BYTES // max(size, _BANK_BYTES)
    words = addresses[:, None] // _BANK_BYTES + np.arange(max(size // _BANK_BYTES, 1))
    groups = np.broadcast_to((threads // together)[:, None], words.shape)
    distinct = np.unique(np.stack([groups.ravel(), words.ravel()]), axis=1)
    banks = np.unique(distinct[0] * _BANKS + distinct[1] % _BANKS, return_counts=True)
    most = np.zeros(int(distinct[0].max()) + 1, np.int64)
    np.maximum.at(most, banks[0] // _BANKS, banks[1])
    return int(most.sum())


def sectors(addresses: np.ndarray, threads: np.ndarray) -> int:
    """Count the sectors that the warps of an instruction touch; no access crosses one."""
    touched = np.stack([threads // LANES, addresses.view(np.int64) // _SECTOR_BYTES])
    return np.unique(touched, axis=1).shape[1]
