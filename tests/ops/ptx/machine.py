"""Runs a grid of a PTX kernel on the processor, on the process's own memory.

The threads of some blocks run together, as numpy arrays. Where they go different ways, those that
are furthest behind in the text go first, which brings them together again after a branch or loop.
It is strict where a GPU lets pass: see fault.py, shared_memory.py and global_memory.py for what is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from tests.ops.ptx.global_memory import Buffer, GlobalMemory
from tests.ops.ptx.program import Module
from tests.ops.ptx.threads import Dim3, Observer, Threads
from tests.ops.ptx.translation import Translation

_TOGETHER = 1024  # threads; more would not make numpy faster


class Machine:
    """Runs the kernels of a PTX file."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._variables = {
            name: np.zeros(size + alignment, np.uint8)
            for name, (size, alignment) in module.globals.items()
        }
        self._symbols = {
            name: -(-memory.ctypes.data // module.globals[name][1]) * module.globals[name][1]
            for name, memory in self._variables.items()
        }
        self._translations: dict[str, Translation] = {}

    def parameters(self, name: str) -> list[tuple[int, int]]:
        """Return the offset and the bytes of each parameter of a kernel, in its memory."""
        return self._module.kernel(name).parameters

    def shared_bytes(self, name: str) -> int:
        """Return the bytes of shared memory that a kernel declares."""
        return self._module.kernel(name).shared.size

    def launch(
        self,
        name: str,
        grid: Dim3,
        block: Dim3,
        parameters: bytes,
        buffers: Sequence[Buffer],
        *,
        dynamic_shared: int = 0,
        only: Iterable[int] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Run a kernel.

        Args:
            name: Of the ``.entry``.
            grid: Blocks.
            block: Threads of a block, a multiple of 32.
            parameters: The memory of parameters.
            buffers: What it may read or write.
            dynamic_shared: Bytes.
            only: The numbers of the blocks that run; all if None.
            observer: Is told what is executed.

        Raises:
            Fault: The kernel did what it may not do.
            NotImplementedError: It has an instruction that is not known.
        """
        if name not in self._translations:
            self._translations[name] = Translation(self._module.kernel(name), self._symbols)
        translation = self._translations[name]
        own = [
            Buffer(variable, self._symbols[variable], size)
            for variable, (size, _) in self._module.globals.items()
        ]
        memory = GlobalMemory([*buffers, *own], translation.granules["global"])
        threads = math.prod(block)
        numbers = list(range(math.prod(grid)) if only is None else only)
        together = max(_TOGETHER // threads, 1)
        for first in range(0, len(numbers), together):
            some = np.array(numbers[first : first + together], np.int64)
            running = Threads(
                translation, grid, block, some, memory, parameters, dynamic_shared, observer
            )
            with np.errstate(all="ignore"):
                running.run()
