"""Runs a grid of a PTX kernel on the processor, on the process's own memory.

The threads of some blocks run together, as numpy arrays. Where they go different ways, those that
are furthest behind in the text go first, which brings them together again after a branch or loop.
It is strict where a GPU lets pass: see fault.py, shared_memory.py and global_memory.py for what is
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from tests.ops.ptx import tensor_cores
from tests.ops.ptx.fault import Fault
from tests.ops.ptx.global_memory import Buffer, GlobalMemory
from tests.ops.ptx.program import TYPES, Instruction, Module
from tests.ops.ptx.shared_memory import SharedMemory
from tests.ops.ptx.translation import WINDOWS, Block, Translation

Dim3 = tuple[int, int, int]

_TOGETHER = 1024  # threads; more would not make numpy faster
_GONE = np.iinfo(np.int64).max


class Observer(Protocol):
    """What wants to know what is executed."""

    def block(self, instructions: Sequence[Instruction], warps: int) -> None:
        """So many warps run these instructions."""

    def access(
        self,
        instruction: Instruction,
        space: str,
        addresses: np.ndarray,
        threads: np.ndarray,
        size: int,
    ) -> None:
        """Threads access `size` bytes each."""


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
        memory = GlobalMemory([*buffers, *own], translation.granule("global"))
        threads = int(np.prod(block))
        numbers = list(range(int(np.prod(grid))) if only is None else only)
        together = max(_TOGETHER // threads, 1)
        for first in range(0, len(numbers), together):
            some = np.array(numbers[first : first + together], np.int64)
            shared = SharedMemory(
                len(some),
                translation.kernel.shared.size + dynamic_shared,
                threads,
                translation.granule("shared"),
            )
            running = Threads(translation, grid, block, some, memory, shared, parameters, observer)
            with np.errstate(all="ignore"):
                running.run()


class Threads:
    """The threads of some blocks; the functions of translation.py work on it."""

    def __init__(
        self,
        translation: Translation,
        grid: Dim3,
        block: Dim3,
        blocks: np.ndarray,
        memory: GlobalMemory,
        shared: SharedMemory,
        parameters: bytes,
        observer: Observer | None,
    ) -> None:
        size = int(np.prod(block))
        if size % tensor_cores.LANES:
            raise NotImplementedError(f"blocks of {size} threads, no multiple of 32")
        count = len(blocks) * size
        self._translation = translation
        self._blocks = blocks
        self._size = size
        self._memory = memory
        self._shared = shared
        self._parameters = np.frombuffer(parameters.ljust(16, b"\0"), np.uint8)
        self._local = np.zeros((count, translation.kernel.local.size), np.uint8)
        self._observer = observer
        self._everyone = np.arange(count)
        self._in_grid = np.repeat(blocks * size, size) + np.tile(np.arange(size), len(blocks))
        zeros = {
            kind: np.zeros(count, TYPES[kind])
            for kind in set(translation.kernel.registers.values())
        }
        self._registers = [zeros[kind] for kind in translation.kernel.registers.values()]
        # Where each thread is, the mask of those that run now, and their numbers.
        self._at = np.zeros(count, np.int64)
        self._waiting = np.zeros(count, bool)
        self._mask: np.ndarray | None = None
        self._running = self._everyone
        self.now: Instruction | None = None
        inside = np.tile(np.arange(size), len(blocks))
        self._special(inside, np.repeat(blocks, size), block, grid)

    def _special(self, thread: np.ndarray, block: np.ndarray, threads: Dim3, grid: Dim3) -> None:
        """The registers that tell a thread who it is, as `tid_x` and so on."""
        self.laneid = (thread % tensor_cores.LANES).astype(np.uint32)
        for name, number, sizes in (("tid", thread, threads), ("ctaid", block, grid)):
            for axis in "xyz":
                size = sizes["xyz".index(axis)]
                setattr(self, f"{name}_{axis}", (number % size).astype(np.uint32))
                setattr(self, f"n{name}_{axis}", self.full(np.uint32(size)))
                number = number // size

    def full(self, value: np.generic) -> np.ndarray:
        """The same value for every thread."""
        return np.full(len(self._everyone), value)

    def run(self) -> None:
        """Run all threads to their end.

        Raises:
            Fault: With the kernel, the instruction and the thread in its message.
        """
        try:
            self._run()
        except Fault as fault:
            raise Fault(self._describe(fault)) from None

    def _describe(self, fault: Fault) -> str:
        where = f"{self._translation.kernel.name}\n  {self.now}\n  "
        if fault.thread is None:
            return f"{where}{fault}"
        thread = int(self._running[fault.thread])
        return (
            f"{where}thread {thread % self._size} of block {self._blocks[thread // self._size]} "
            f"({thread} of those that run together) {fault}"
        )

    def _run(self) -> None:
        blocks = self._translation.blocks
        while self._choose():
            at = int(self._at[self._running[0]])
            block = blocks[at]
            if self._observer is not None:
                self._observer.block(block.instructions, len(np.unique(self._running // 32)))
            if self._mask is None:
                block.run(self, self._registers)
            else:
                block.run_masked(self, self._registers, self._mask)
            self._end(block, at)

    def _choose(self) -> bool:
        """Choose who runs next: those furthest behind of all that do not wait."""
        places = np.where(self._waiting, _GONE - 1, self._at)
        at = places.min()
        if at >= _GONE - 1:
            if self._waiting.any():
                self._deadlock()
            return False
        mask = places == at
        if mask.all():
            self._mask, self._running = None, self._everyone
        else:
            self._mask, self._running = mask, np.flatnonzero(mask)
        return True

    def _end(self, block: Block, at: int) -> None:
        """Send those that ran to where the end of their block leads."""
        running, end = self._running, block.end
        if end is None:
            self._at[running] = at + 1
        elif end.kind == "jump":
            self._at[running] = end.target
        elif end.kind == "branch":
            taken = self._registers[end.predicate][running] != end.negated
            self._at[running] = np.where(taken, end.target, at + 1)
        elif end.kind == "exit":
            self._at[running] = _GONE
        else:
            self.now = block.instructions[-1]
            self._at[running] = at + 1
            self._waiting[running] = True
            self._release()

    def _release(self) -> None:
        """Let the blocks go on all of whose threads wait at the barrier."""
        waiting = self._waiting.reshape(-1, self._size)
        for block in np.flatnonzero(waiting.all(1)):
            places = self._at.reshape(-1, self._size)[block]
            if (places != places[0]).any():
                raise Fault("threads of a block wait at different barriers")
            waiting[block] = False
            self._shared.barrier(int(block))

    def _deadlock(self) -> None:
        waiting = self._waiting.reshape(-1, self._size)
        block = int(np.argmax(waiting.any(1)))
        missing = int(np.argmin(waiting[block]))
        raise Fault(
            f"deadlock: {waiting[block].sum()} threads of block {self._blocks[block]} wait at a "
            f"barrier for ever, thread {missing} has ended"
        )

    # What the translated instructions call. Values are [threads]; only those that run count.

    def load(self, space: str, addresses: np.ndarray, width: int, count: int) -> np.ndarray:
        """Load `count` elements of `width` bytes: unsigned [count, threads], 0 of others."""
        threads, addresses = self._running, self._of_running(addresses)
        space, addresses = self._resolve(space, addresses)
        self._observe(space, addresses, width * count)
        if space == "global":
            values = self._memory.read(addresses, self._in_grid[threads], width, count)
        elif space == "shared":
            values = self._shared.read(addresses, threads, width, count)
        else:
            values = self._private(space, addresses, threads, width, count)
        if self._mask is None:
            return values.T
        result = np.zeros((count, len(self._everyone)), values.dtype)
        result[:, threads] = values.T
        return result

    def store(self, space: str, addresses: np.ndarray, values: list[np.ndarray]) -> None:
        """Store unsigned elements."""
        threads, addresses = self._running, self._of_running(addresses)
        space, addresses = self._resolve(space, addresses)
        elements = np.stack([self._of_running(value) for value in values], 1)
        self._observe(space, addresses, elements.itemsize * len(values))
        if space == "global":
            self._memory.write(addresses, self._in_grid[threads], elements)
        elif space == "shared":
            self._shared.write(addresses, threads, elements)
        elif space == "local":
            at = self._private_places(space, addresses, elements.itemsize * len(values))
            self._local[threads[:, None], at] = elements.view(np.uint8)
        else:
            raise Fault(f"stores to the memory of {space}", 0)

    def copy(self, to: np.ndarray, source: np.ndarray, size: int, taken: np.ndarray) -> None:
        """Begin a ``cp.async`` of `size` bytes, of which only the first `taken` are read."""
        threads = self._running
        to, source, taken = (self._of_running(v) for v in (to, source, taken))
        if (taken > size).any():
            raise Fault("copies more bytes than it writes", int(np.argmax(taken > size)))
        data = np.zeros((len(threads), size), np.uint8)
        partial = (taken > 0) & (taken < size)
        if partial.any():
            raise NotImplementedError("cp.async of a part of its bytes")
        whole = np.flatnonzero(taken)
        if whole.size:
            width = min(size, 8)
            self._observe("global", source[whole], size, threads[whole])
            try:
                values = self._memory.read(
                    source[whole], self._in_grid[threads[whole]], width, size // width
                )
            except Fault as fault:
                raise Fault(str(fault), int(whole[fault.thread or 0])) from None
            data[whole] = values.view(np.uint8)
        self._observe("shared", to, size)
        self._shared.copy(to, threads, data)

    def commit_copies(self) -> None:
        """``cp.async.commit_group``."""
        self._shared.commit(self._running)

    def await_copies(self, but: int | None) -> None:
        """``cp.async.wait_group``, or ``wait_all`` if None."""
        self._shared.wait(self._running, but)

    def multiply_add(
        self,
        shape: str,
        a: list[np.ndarray],
        b: list[np.ndarray],
        c: list[np.ndarray],
    ) -> np.ndarray:
        """``mma.sync``: [4, threads]."""
        self._whole_warps()
        return tensor_cores.multiply_add(shape, a, b, c)

    def load_matrices(self, addresses: np.ndarray, count: int, transposed: bool) -> np.ndarray:
        """``ldmatrix``: words [count, threads]."""
        self._whole_warps()
        of_rows = self._everyone % tensor_cores.LANES < 8 * count
        rows = of_rows if self._mask is None else of_rows & self._mask
        threads = np.flatnonzero(rows)
        self._observe("shared", addresses[threads], 16, threads)
        values = self._shared.read(addresses[threads], threads, 2, 8, by_warp=True)
        matrices = np.zeros((len(self._everyone) // tensor_cores.LANES, count, 8, 8), np.uint16)
        matrices[np.unique(threads // tensor_cores.LANES)] = values.reshape(-1, count, 8, 8)
        return tensor_cores.distribute_rows(matrices, transposed)

    def shuffle(
        self, how: str, value: np.ndarray, b: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``shfl.sync`` of whole warps."""
        self._whole_warps()
        return tensor_cores.shuffle(value, how, b, c)

    def _whole_warps(self) -> None:
        if self._mask is None:
            return
        lanes = self._mask.reshape(-1, tensor_cores.LANES)
        part = lanes.any(1) & ~lanes.all(1)
        if part.any():
            warp = int(np.argmax(part))
            first = int(np.argmax(self._running // tensor_cores.LANES == warp))
            raise Fault(
                f"runs what a whole warp must run together, with {lanes[warp].sum()} of its lanes",
                first,
            )

    def _of_running(self, values: np.ndarray) -> np.ndarray:
        return values if self._mask is None else values[self._running]

    def _resolve(self, space: str, addresses: np.ndarray) -> tuple[str, np.ndarray]:
        """The memory that generic addresses mean, and the addresses there."""
        if space != "generic":
            return space, addresses
        for name, begin in WINDOWS.items():
            inside = (addresses >= begin) & (addresses < begin + (1 << 32))
            if inside.all():
                return name, addresses - begin
            if inside.any():
                raise NotImplementedError("an instruction with generic addresses of two memories")
        return "global", addresses

    def _private(
        self, space: str, addresses: np.ndarray, threads: np.ndarray, width: int, count: int
    ) -> np.ndarray:
        at = self._private_places(space, addresses, width * count)
        values = self._parameters[at] if space == "param" else self._local[threads[:, None], at]
        return values.view(f"u{width}")

    def _private_places(self, space: str, addresses: np.ndarray, size: int) -> np.ndarray:
        limit = self._parameters.size if space == "param" else self._local.shape[1]
        bad = (addresses < 0) | (addresses + size > limit) | (addresses % size != 0)
        if bad.any():
            n = int(np.argmax(bad))
            raise Fault(f"accesses {size} bytes at {addresses[n]:#x} of the memory of {space}", n)
        return addresses[:, None] + np.arange(size)

    def _observe(
        self, space: str, addresses: np.ndarray, size: int, threads: np.ndarray | None = None
    ) -> None:
        if self._observer is not None and self.now is not None:
            self._observer.access(
                self.now, space, addresses, self._running if threads is None else threads, size
            )
