"""Every instruction that is known, as Python.

A method is named like the first word of an opcode; those of formulas.py need none.
"""

from __future__ import annotations

import re

import numpy as np

from tests.ops.ptx import tensor_cores
from tests.ops.ptx.formulas import FORMULAS
from tests.ops.ptx.program import TYPES, Instruction, size_of
from tests.ops.ptx.writer import Writer

WINDOWS = {"shared": 1 << 60, "local": 2 << 60, "param": 3 << 60}
"""Where the generic addresses of a memory begin; global ones are those of the process."""


class InstructionWriter(Writer):
    """Writes instructions."""

    def add(self, instruction: Instruction) -> None:
        """Translate an instruction.

        Raises:
            NotImplementedError: It is not known.
        """
        parts = instruction.parts
        handler = getattr(self, f"_{parts[0]}", None) or (
            self._compute if parts[0] in FORMULAS else None
        )
        try:
            if handler is None:
                raise KeyError(parts[0])
            handler(parts, instruction)
        except (KeyError, ValueError, IndexError) as error:
            raise NotImplementedError(
                f"{self._kernel.name}: no such instruction is known: {instruction} ({error!r})"
            ) from error

    def _compute(self, parts: list[str], instruction: Instruction) -> None:
        """Anything with a formula: operands in, one result out."""
        name, modifiers, kind = parts[0], parts[1:-1], parts[-1]
        formula = FORMULAS[name]
        if not set(modifiers) <= formula.allowed or kind in _HALVES:
            raise ValueError(instruction.opcode)
        target, *sources = instruction.operands
        kinds = [formula.kinds.get(n, kind) for n in range(len(sources))]
        if formula.wide and "wide" in modifiers:
            self._wide(name, kind, target, sources)
            return
        texts = [self._read(s, k) for s, k in zip(sources, kinds, strict=True)]
        self._write(target, kind, formula.text(texts, modifiers, kind))

    def _shl(self, parts: list[str], instruction: Instruction) -> None:
        self._shift(parts[1], instruction, "<<", "shift_left")

    def _shr(self, parts: list[str], instruction: Instruction) -> None:
        self._shift(parts[1], instruction, ">>", "shift_right")

    def _shift(self, kind: str, instruction: Instruction, sign: str, function: str) -> None:
        target, source, amount = instruction.operands
        if amount in self._registers:
            text = f"{function}({self._read(source, kind)}, {self._read(amount, 'u32')})"
        else:
            text = f"{self._read(source, kind)} {sign} {self._read(amount, kind)}"
        self._write(target, kind, text)

    def _wide(self, name: str, kind: str, target: str, sources: list[str]) -> None:
        longer = f"{kind[0]}{2 * int(kind[1:])}"
        dtype = f"np.{np.dtype(TYPES[longer]).name}"
        a, b = (self._read(s, kind) for s in sources[:2])
        text = f"multiply_wide({a}, {b}, {dtype})"
        if name == "mad":
            text = f"{text} + {self._read(sources[2], longer)}"
        self._write(target, longer, text)

    def _mov(self, parts: list[str], instruction: Instruction) -> None:
        (_, kind), (target, source) = parts, instruction.operands
        if source.startswith("{"):
            names, size = _list(source), size_of(kind)
            words = ", ".join(
                self._all_threads(name, f"b{8 * size // len(names)}") for name in names
            )
            self._write(target, kind, f"np.stack([{words}], 1).view('u{size}')[:, 0]")
        elif target.startswith("{"):
            names = _list(target)
            size = size_of(kind) // len(names)
            whole = self._temporary(
                f"np.ascontiguousarray({self._read(source, kind)}).view('u{size}')"
                f".reshape(-1, {len(names)})"
            )
            for n, name in enumerate(names):
                self._write(name, f"b{8 * size}", f"{whole}[:, {n}].copy()")
        elif source in self._registers or source.startswith("%"):
            self._write(target, kind, self._read(source, kind))
        else:
            self._write(target, kind, f"t.full({self._read(source, kind)})")

    def _setp(self, parts: list[str], instruction: Instruction) -> None:
        _, how, *combine, kind = parts
        if kind in _HALVES:
            raise ValueError(kind)
        targets, a, b, *other = instruction.operands
        text = f"compare({self._read(a, kind)}, {self._read(b, kind)}, '{how}')"
        first, _, second = targets.partition("|")
        result = self._temporary(text)
        for target, value in ((first, result), (second, f"~{result}")):
            if not target:
                continue
            if combine:
                value = f"({value}) {_LOGIC[combine[0]]} {self._read(other[0], 'pred')}"
            self._write(target, "pred", value)

    def _selp(self, parts: list[str], instruction: Instruction) -> None:
        target, a, b, predicate = instruction.operands
        kind = parts[1]
        text = (
            f"where({self._read(predicate, 'pred')}, {self._read(a, kind)}, {self._read(b, kind)})"
        )
        self._write(target, kind, text)

    def _cvt(self, parts: list[str], instruction: Instruction) -> None:
        target, *sources = instruction.operands
        *modifiers, to, of = parts[1:]
        if to in ("bf16x2", "f16x2"):
            if modifiers != ["rn"] or of != "f32":
                raise ValueError(instruction.opcode)
            high, low = (self._half(to[:-2], self._read(s, of)) for s in sources)
            self._write(target, to, f"np.stack([{low}, {high}], 1).view(np.uint32)[:, 0]")
            return
        text = self._read(sources[0], of)
        if to == "tf32":
            if modifiers != ["rna"] or of != "f32":
                raise ValueError(instruction.opcode)
            self._write(target, "b32", f"to_tf32({text})")
            return
        saturating = "sat" in modifiers
        rounding = [m for m in modifiers if m != "sat"]
        self._write(target, to, self._convert(to, of, text, rounding, saturating))

    def _convert(self, to: str, of: str, text: str, rounding: list[str], saturating: bool) -> str:
        to_float, of_float = "f" in to, "f" in of
        whole = rounding[0] if rounding and rounding[0] in _WHOLE else None
        if len(rounding) > 1 or (rounding and not whole and rounding != ["rn"]):
            raise ValueError(rounding)
        if of == "bf16":
            text = f"from_bfloat16({text})"
        dtype = f"np.{np.dtype(TYPES[to]).name}"
        if not to_float:
            if of_float:
                if whole is None:
                    raise ValueError(rounding)
                return f"to_integer({text}, {dtype}, '{whole}')"
            if saturating:
                limits = np.iinfo(TYPES[to])
                text = f"clamp({text}, {limits.min}, {limits.max})"
            return f"({text}).astype({dtype})"
        if whole:
            text = f"round_to_whole({text}, '{whole}')"
        if to == "bf16":
            if of == "bf16":
                raise ValueError("bf16 to bf16")
            result = self._half(to, f"({text}).astype(np.float32)")
            if saturating:
                raise ValueError("sat")
            return result
        result = f"({text}).astype({dtype})"
        return f"saturate({result})" if saturating else result

    def _half(self, kind: str, text: str) -> str:
        if kind == "bf16":
            return f"to_bfloat16({text})"
        return f"({text}).astype(np.float16).view(np.uint16)"

    def _cvta(self, parts: list[str], instruction: Instruction) -> None:
        target, source = instruction.operands
        space, kind = parts[-2], parts[-1]
        text = self._read(source, kind)
        if source not in self._registers:
            text = f"t.full({text})"
        if space != "global":
            window = self._constant(np.uint64(WINDOWS[space]))
            text = f"{text} {'-' if parts[1] == 'to' else '+'} {window}"
        self._write(target, kind, text)

    def _ld(self, parts: list[str], instruction: Instruction) -> None:
        target, address = instruction.operands
        space, count, kind = access(parts[1:])
        targets = _list(target) if count > 1 else [target]
        self._mark(instruction)
        values = self._temporary(
            f"t.load('{space}', {self._address(address)}, {size_of(kind)}, {count})"
        )
        for n, name in enumerate(targets):
            self._write(name, kind, f"{values}[{n}].view(np.{np.dtype(TYPES[kind]).name})")

    def _st(self, parts: list[str], instruction: Instruction) -> None:
        address, source = instruction.operands
        space, count, kind = access(parts[1:])
        sources = _list(source) if count > 1 else [source]
        bits = f"b{8 * size_of(kind)}"
        values = ", ".join(self._all_threads(s, bits) for s in sources)
        self._mark(instruction)
        self._lines.append(f"t.store('{space}', {self._address(address)}, [{values}])")

    def _cp(self, parts: list[str], instruction: Instruction) -> None:
        self._mark(instruction)
        rest = parts[2:]
        if rest == ["commit_group"]:
            self._lines.append("t.commit_copies()")
        elif rest == ["wait_all"]:
            self._lines.append("t.await_copies(None)")
        elif rest == ["wait_group"]:
            self._lines.append(f"t.await_copies({int(instruction.operands[0])})")
        elif rest[0] in ("ca", "cg") and _spaces(rest[1:]) == ["shared", "global"]:
            to, of, size, *taken = instruction.operands
            if int(size) not in ((4, 8, 16) if rest[0] == "ca" else (16,)):
                raise ValueError(size)
            count = self._all_threads(taken[0], "b32") if taken else f"t.full(np.uint32({size}))"
            self._lines.append(
                f"t.copy({self._address(to)}, {self._address(of)}, {int(size)}, {count})"
            )
        else:
            raise ValueError(rest)

    def _mma(self, parts: list[str], instruction: Instruction) -> None:
        shape = ".".join(parts[3:])
        if parts[1:3] != ["sync", "aligned"] or not tensor_cores.is_known_product(shape):
            raise ValueError(shape)
        d, a, b, c = (_list(operand) for operand in instruction.operands)
        words = [", ".join(self._all_threads(s, "b32") for s in side) for side in (a, b)]
        sums = ", ".join(self._all_threads(s, "f32") for s in c)
        self._mark(instruction)
        result = self._temporary(f"t.multiply_add('{shape}', [{words[0]}], [{words[1]}], [{sums}])")
        for n, name in enumerate(d):
            self._write(name, "f32", f"{result}[{n}]")

    def _ldmatrix(self, parts: list[str], instruction: Instruction) -> None:
        if parts[1:4] != ["sync", "aligned", "m8n8"] or parts[-1] != "b16":
            raise ValueError(parts)
        target, address = instruction.operands
        names = _list(target) if target.startswith("{") else [target]
        if parts[4] != f"x{len(names)}" or _spaces(parts[5:-1])[-1] != "shared":
            raise ValueError(parts)
        self._mark(instruction)
        transposed = "trans" in parts
        result = self._temporary(
            f"t.load_matrices({self._address(address)}, {len(names)}, {transposed})"
        )
        for n, name in enumerate(names):
            self._write(name, "b32", f"{result}[{n}]")

    def _shfl(self, parts: list[str], instruction: Instruction) -> None:
        if parts[1] != "sync":
            raise ValueError(parts)
        self._check_all_lanes(instruction.operands[4])
        targets, a, b, c = instruction.operands[:4]
        value, *controls = (self._all_threads(s, "b32") for s in (a, b, c))
        self._mark(instruction)
        result = self._temporary(f"t.shuffle('{parts[2]}', {value}, {', '.join(controls)})")
        target, _, inside = targets.partition("|")
        self._write(target, "b32", f"{result}[0]")
        if inside:
            self._write(inside, "pred", f"{result}[1]")

    def _bar(self, parts: list[str], instruction: Instruction) -> None:
        if parts == ["bar", "warp", "sync"]:
            self._check_all_lanes(instruction.operands[0])
            self._mark(instruction)
            self._lines.append("t.warp_barrier()")

    def _check_all_lanes(self, members: str) -> None:
        if members not in ("-1", "0xffffffff", "4294967295"):
            raise ValueError(members)

    def _bra(self, parts: list[str], instruction: Instruction) -> None:
        """The end of a block, which the machine looks at."""

    _ret = _exit = _barrier = _bra


_HALVES = ("f16", "bf16", "f16x2", "bf16x2")  # are converted and multiplied in matrices only
_WHOLE = ("rni", "rzi", "rmi", "rpi")
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_CACHE = (
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "weak",
    "relaxed",
    "volatile",
    "gpu",
    "cta",
)


def _list(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{}").split(",")]


def _spaces(parts: list[str]) -> list[str]:
    """The memories that modifiers name, as in ``shared::cta`` and ``global``."""
    names = []
    for part in parts:
        name = part.partition("::")[0]
        if name in ("shared", "global", "local", "param"):
            names.append(name)
        elif name not in ("L1", "L2", "trans"):
            raise ValueError(part)
    return names


def access(modifiers: list[str]) -> tuple[str, int, str]:
    """The memory, the number of elements and their type of a load or store."""
    *rest, kind = modifiers
    count = 1
    if rest and re.fullmatch(r"v[248]", rest[-1]):
        count = int(rest.pop()[1:])
    spaces = _spaces([part for part in rest if part not in _CACHE])
    return spaces[0] if spaces else "generic", count, kind
