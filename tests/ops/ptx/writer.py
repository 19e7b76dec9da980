"""The text of a Python function of one block of instructions.

In a function `r` are the registers, numpy arrays of one value per thread, `t` the threads
(threads.Threads) and, where not all threads take part, `m` a mask of those that do. Registers are
replaced, never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tests.ops.ptx import arithmetic
from tests.ops.ptx.program import TYPES, Instruction, Kernel

Run = Callable[..., None]

_SPECIAL_VECTORS = ("%tid", "%ntid", "%ctaid", "%nctaid")
_SPECIAL = ("%laneid",)


class Writer:
    """The source of one function: operands as expressions, results as assignments."""

    def __init__(
        self, kernel: Kernel, registers: dict[str, int], symbols: dict[str, int], masked: bool
    ) -> None:
        self._kernel = kernel
        self._registers = registers
        self._symbols = symbols
        self._masked = masked
        self._lines: list[str] = []
        self._names: dict[str, object] = {**vars(arithmetic), "where": np.where}

    def function(self) -> Run:
        """Return what was written, as a function."""
        arguments = "t, r, m" if self._masked else "t, r"
        body = "".join(f"\n    {line}" for line in self._lines or ["pass"])
        exec(f"def run({arguments}):{body}", self._names)
        run = self._names["run"]
        assert callable(run)
        return run

    def _constant(self, value: object) -> str:
        name = f"c{len(self._names)}"
        self._names[name] = value
        return name

    def _read(self, operand: str, kind: str) -> str:
        """The expression of an operand as a PTX type."""
        dtype = TYPES[kind]
        if operand in self._registers:
            return self._view(operand, dtype)
        if operand.startswith("!"):
            return f"~r[{self._registers[operand[1:]]}]"
        if operand in _SPECIAL or operand.rpartition(".")[0] in _SPECIAL_VECTORS:
            name = operand.lstrip("%").replace(".", "_")
            return f"t.{name}" if dtype is np.uint32 else f"t.{name}.astype(np.{dtype.__name__})"
        return self._constant(self._number(operand, dtype))

    def _view(self, register: str, dtype: type[np.generic]) -> str:
        own = TYPES[self._kernel.registers[register]]
        text = f"r[{self._registers[register]}]"
        if own is dtype:
            return text
        name = f"np.{np.dtype(dtype).name}"
        have, need = np.dtype(own).itemsize, np.dtype(dtype).itemsize
        if have == need:
            return f"{text}.view({name})"
        if have > need:
            return f"{text}.astype(np.uint{8 * need}).view({name})"
        raise ValueError(f"{register} is too short")

    def _number(self, text: str, dtype: type[np.generic]) -> np.generic:
        if text in self._symbols:
            bits = self._symbols[text]
        elif re.fullmatch(r"0[fFdD][0-9A-Fa-f]+", text):
            bits = int(text[2:], 16)
        else:
            bits = int(text.rstrip("U"), 0)
        size = np.dtype(dtype).itemsize
        return np.array([bits % (1 << 8 * size)], f"u{size}").view(dtype)[0]

    def _write(self, operand: str, kind: str, expression: str) -> None:
        """Give a register a value of a PTX type, lengthened to its own."""
        if operand == "_":
            return
        own, dtype = np.dtype(TYPES[self._kernel.registers[operand]]), np.dtype(TYPES[kind])
        if own != dtype:
            if own.itemsize > dtype.itemsize:
                longer = f"{dtype.kind}{own.itemsize}"
                expression = f"({expression}).astype('{longer}')"
                dtype = np.dtype(longer)
            if own != dtype:
                expression = f"({expression}).view(np.{own.name})"
        at = self._registers[operand]
        if self._masked:
            expression = f"where(m, {expression}, r[{at}])"
        self._lines.append(f"r[{at}] = {expression}")

    def _temporary(self, expression: str) -> str:
        name = f"x{len(self._lines)}"
        self._lines.append(f"{name} = {expression}")
        return name

    def _mark(self, instruction: Instruction) -> None:
        """Note which instruction may fail."""
        self._lines.append(f"t.now = {self._constant(instruction)}")

    def _address(self, operand: str) -> str:
        """The expression of an address in brackets."""
        match = re.fullmatch(r"\[([^\]+]+)(?:\+(-?\w+))?\]", operand)
        if match is None:
            raise ValueError(operand)
        name, offset = match[1].strip(), int(match[2] or "0", 0)
        if name not in self._registers:
            return f"t.full({self._constant(np.int64(self._number(name, np.int64) + offset))})"
        if self._kernel.registers[name].endswith("64"):
            text = self._view(name, np.int64)
        else:
            # Signed: a pointer may be moved to before the memory, and come back by the offset.
            text = f"{self._view(name, np.int32)}.astype(np.int64)"
        return f"{text} + {offset}" if offset else text

    def _all_threads(self, operand: str, kind: str) -> str:
        """The expression of an operand, an array in any case."""
        text = self._read(operand, kind)
        return text if operand in self._registers else f"t.full({text})"
