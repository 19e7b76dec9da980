"""From PTX to Python: every run of instructions without a branch becomes one function on arrays."""

from __future__ import annotations

from tests.ops.ptx.control_flow import cut
from tests.ops.ptx.instructions import InstructionWriter, access
from tests.ops.ptx.program import Kernel, size_of
from tests.ops.ptx.writer import Run


class Translation:
    """A kernel that can run.

    Attributes:
        kernel: What was translated.
        blocks: The kernel without its branches.
        registers: The place of each register.
        granules: Of global and of shared memory, the least number of bytes that is read or written
            at once.
    """

    def __init__(self, kernel: Kernel, symbols: dict[str, int]) -> None:
        """Translate; `symbols` are the addresses of variables in global memory."""
        self.kernel = kernel
        self.blocks = cut(kernel)
        self.registers = {name: n for n, name in enumerate(kernel.registers)}
        self.granules = {space: self._granule(space) for space in ("global", "shared")}
        self._symbols = {
            **symbols,
            **kernel.parameter_names.offsets,
            **kernel.shared.offsets,
            **kernel.local.offsets,
        }
        self._functions: dict[tuple[int, bool], Run] = {}

    def function(self, at: int, masked: bool) -> Run:
        """Return a block's function, made when it is first asked for.

        Raises:
            NotImplementedError: It has an instruction that is not known.
        """
        if (at, masked) not in self._functions:
            writer = InstructionWriter(self.kernel, self.registers, self._symbols, masked)
            for instruction in self.blocks[at].instructions:
                writer.add(instruction)
            self._functions[at, masked] = writer.function()
        return self._functions[at, masked]

    def _granule(self, space: str) -> int:
        sizes = [16]
        for instruction in self.kernel.instructions:
            parts = instruction.parts
            if parts[0] in ("ld", "st") and access(parts[1:])[0] in (space, "generic"):
                sizes.append(size_of(parts[-1]))
            elif parts[:2] == ["cp", "async"] and parts[2] in ("ca", "cg"):
                sizes.append(int(instruction.operands[2]))
        return min(sizes)
