"""Cuts a kernel into blocks of instructions that threads run together, and says what follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.ops.ptx.program import Instruction, Kernel

_ENDS = {"bra", "ret", "exit", "bar", "barrier"}


@dataclass(frozen=True)
class End:
    """How a block ends."""

    kind: str
    """``next``, ``jump``, ``branch``, ``barrier`` or ``exit``."""
    target: int = -1
    """The block that a jump, or a branch that is taken, goes to; otherwise the next one follows."""
    predicate: str = ""
    """The register that decides on a branch."""
    negated: bool = False


_NEXT = End("next")


@dataclass
class InstructionBlock:
    """Instructions without a branch, but for the last one."""

    instructions: list[Instruction] = field(default_factory=list)
    end: End = _NEXT


def cut(kernel: Kernel) -> list[InstructionBlock]:
    """Cut at labels, branches and barriers, and around every instruction with a predicate.

    Such an instruction becomes a block that a branch goes around.

    Raises:
        NotImplementedError: A branch or barrier of an unknown kind.
    """
    blocks = [InstructionBlock()]
    first: dict[int, int] = {}  # the block that an instruction begins
    labels = set(kernel.labels.values())
    ends: list[InstructionBlock] = []
    for n, instruction in enumerate(kernel.instructions):
        is_end = instruction.parts[0] in _ENDS and instruction.opcode != "bar.warp.sync"
        is_guarded = instruction.guard is not None and not is_end
        if n in labels or is_guarded:
            blocks.append(InstructionBlock())
        first[n] = len(blocks) - 1
        if is_guarded:
            blocks[-1].end = _branch(instruction.guard, len(blocks) + 1, around=True)
            blocks.append(InstructionBlock())
        blocks[-1].instructions.append(instruction)
        if is_end:
            ends.append(blocks[-1])
        if is_end or is_guarded:
            blocks.append(InstructionBlock())
    first[len(kernel.instructions)] = len(blocks) - 1
    blocks[-1].end = End("exit")
    targets = {label: first[n] for label, n in kernel.labels.items()}
    for block in ends:
        block.end = _end(kernel, block.instructions[-1], targets)
    return blocks


def _end(kernel: Kernel, instruction: Instruction, targets: dict[str, int]) -> End:
    name = instruction.parts[0]
    if name == "bra":
        target = targets[instruction.operands[0]]
        return _branch(instruction.guard, target) if instruction.guard else End("jump", target)
    if instruction.guard is None and name in ("ret", "exit"):
        return End("exit")
    if (
        instruction.guard is None
        and instruction.opcode in ("bar.sync", "barrier.sync")
        and instruction.operands == ("0",)
    ):
        return End("barrier")
    raise NotImplementedError(f"{kernel.name}: no such instruction is known: {instruction}")


def _branch(guard: str, target: int, around: bool = False) -> End:
    return End("branch", target, guard.lstrip("!"), guard.startswith("!") != around)
