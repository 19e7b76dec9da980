"""PTX text as kernels: their parameters, variables, registers and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

TYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    **{f"{kind}{8 * size}": np.dtype(f"u{size}").type for kind in "bu" for size in (1, 2, 4, 8)},
    **{f"s{8 * size}": np.dtype(f"i{size}").type for size in (1, 2, 4, 8)},
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    # numpy has none: its bits.
    "bf16": np.uint16,
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
}
"""The numpy type that holds a value of a PTX type."""


def size_of(type_name: str) -> int:
    """Bytes of a PTX type."""
    return np.dtype(TYPES[type_name]).itemsize


@dataclass(frozen=True)
class Instruction:
    """One instruction, its names resolved where blocks of inline assembly have their own."""

    line: int
    opcode: str
    """All of it, like ``ld.global.v2.f32``."""
    operands: tuple[str, ...]
    guard: str | None = None
    """The predicate that it needs: ``%p1``, or ``!%p1``."""

    @property
    def parts(self) -> list[str]:
        """The opcode's words."""
        return self.opcode.split(".")

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"line {self.line}: {guard}{self.opcode} {', '.join(self.operands)}"


@dataclass
class Variables:
    """Variables of one memory: where each begins, and how long they are together."""

    offsets: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, size: int, alignment: int) -> None:
        """Place a variable behind the others."""
        self.size = -(-self.size // alignment) * alignment
        self.offsets[name] = self.size
        self.size += size


@dataclass
class Kernel:
    """One ``.entry``."""

    name: str
    parameters: list[tuple[int, int]] = field(default_factory=list)
    """Offset and bytes of each in the memory of parameters."""
    parameter_names: Variables = field(default_factory=Variables)
    shared: Variables = field(default_factory=Variables)
    local: Variables = field(default_factory=Variables)
    registers: dict[str, str] = field(default_factory=dict)
    """Names and PTX types."""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """The instruction that each stands before."""


_ENTRY = re.compile(r"^(?:\.visible\s+|\.weak\s+)*\.entry\s+(\w+)\s*\(", re.MULTILINE)
_VARIABLE = re.compile(
    r"\.(?P<space>global|const|shared|local|param)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"\.(?P<type>\w+)\s+(?:\.ptr(?:\s+\.\w+(?:\s+\d+)?)*\s+)?(?P<name>[\w$%]+)"
    r"(?P<array>\[(?P<count>\d*)\])?(?P<value>\s*=)?"
)
_MODULE_VARIABLE = re.compile(
    r"^(?:\.(?:visible|extern|weak)\s+)*" + _VARIABLE.pattern, re.MULTILINE
)
_STATEMENT = re.compile(r"\s*(?:(?P<label>[\w$]+):(?!:)|(?P<brace>[{}])|(?P<text>[^;]+);)")
_OPERAND = re.compile(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+")
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")


class Module:
    """The kernels of a PTX file, each parsed when it is asked for."""

    def __init__(self, text: str) -> None:
        """Find the kernels and the variables outside them.

        Raises:
            NotImplementedError: A variable has a value, or lies in constant memory.
        """
        self.text = re.sub(r"//[^\n]*", "", text)
        self.entries = {match[1]: match for match in _ENTRY.finditer(self.text)}
        self.globals: dict[str, tuple[int, int]] = {}
        """Bytes and alignment of the variables in global memory; all are 0 in the beginning."""
        self.dynamic: dict[str, int] = {}
        """The alignment of the variables in dynamic shared memory."""
        for match in _MODULE_VARIABLE.finditer(self.text):
            self._add_variable(match)
        self._kernels: dict[str, Kernel] = {}

    def _add_variable(self, match: re.Match[str]) -> None:
        if match["space"] == "shared" and match["array"] and not match["count"]:
            self.dynamic[match["name"]] = int(match["align"] or 16)
        elif match["space"] == "global" and not match["value"]:
            self.globals[match["name"]] = _layout(match)
        else:
            raise NotImplementedError(f"a variable of a module: {match[0]}")

    def kernel(self, name: str) -> Kernel:
        """Return a kernel by its mangled name.

        Raises:
            KeyError: There is none of this name.
        """
        if name not in self._kernels:
            self._kernels[name] = self._parse(self.entries[name])
        return self._kernels[name]

    def _parse(self, entry: re.Match[str]) -> Kernel:
        kernel = Kernel(entry[1])
        end = self.text.index(")", entry.end())
        for match in _VARIABLE.finditer(self.text, entry.end(), end):
            size, alignment = _layout(match)
            kernel.parameter_names.add(match["name"], size, alignment)
            kernel.parameters.append((kernel.parameter_names.offsets[match["name"]], size))
        _Body(kernel).parse(self.text, self.text.index("{", end))
        for name, alignment in self.dynamic.items():  # they all begin at the same place
            kernel.shared.add(name, 0, alignment)
        return kernel


def _layout(match: re.Match[str]) -> tuple[int, int]:
    """Bytes and alignment of a variable."""
    size = size_of(match["type"])
    return size * int(match["count"] or 1), int(match["align"] or size)


class _Body:
    """What stands between the braces of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.scopes: list[dict[str, str]] = []

    def parse(self, text: str, begin: int) -> None:
        line, at = text.count("\n", 0, begin) + 1, begin
        while match := _STATEMENT.match(text, at):
            at = match.end()
            if match["brace"] == "{":
                self.scopes.append({})
            elif match["brace"]:
                self.scopes.pop()
                if not self.scopes:
                    return
            elif match["label"]:
                self.kernel.labels[match["label"]] = len(self.kernel.instructions)
            else:
                first = line + text.count("\n", match.start(), match.start("text"))
                self._statement(" ".join(match["text"].split()), first)
            line += text.count("\n", match.start(), at)
        raise ValueError(f"{self.kernel.name}: the end is missing")

    def _statement(self, text: str, line: int) -> None:
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith((".shared", ".local")):
            match = _VARIABLE.match(text)
            assert match is not None, text
            variables = self.kernel.shared if match["space"] == "shared" else self.kernel.local
            variables.add(match["name"], *_layout(match))
        elif text.startswith(".pragma"):
            pass
        elif text.startswith("."):
            raise NotImplementedError(f"{self.kernel.name}: {text}")
        else:
            self._instruction(text, line)

    def _registers(self, text: str) -> None:
        _, kind, names = text.split(maxsplit=2)
        for name in names.split(","):
            count = re.fullmatch(r"\s*(\S+)<(\d+)>", name)
            for each in [f"{count[1]}{n}" for n in range(int(count[2]))] if count else [name]:
                self._register(each.strip(), kind[1:])

    def _register(self, name: str, kind: str) -> None:
        # Those of inline assembly may be declared again and again.
        unique = name
        while unique in self.kernel.registers:
            unique += "'"
        self.kernel.registers[unique] = kind
        if unique != name:
            self.scopes[-1][name] = unique

    def _instruction(self, text: str, line: int) -> None:
        guard = None
        if text.startswith("@"):
            guard, text = text[1:].split(maxsplit=1)
        opcode, _, rest = text.partition(" ")
        operands = tuple(part.strip() for part in _OPERAND.findall(self._resolve(rest)))
        guard = self._resolve(guard) if guard else None
        self.kernel.instructions.append(Instruction(line, opcode, operands, guard))

    def _resolve(self, text: str) -> str:
        if not any(self.scopes):
            return text
        names = {old: new for scope in self.scopes for old, new in scope.items()}
        return _NAME.sub(lambda match: names.get(match[0], match[0]), text)
