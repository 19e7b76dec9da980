"""The threads of some blocks of a grid: their registers, and what they do to memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from tests.ops.ptx import tensor_cores
from tests.ops.ptx.fault import AccessFault, Fault, ThreadFault
from tests.ops.ptx.global_memory import GlobalMemory
from tests.ops.ptx.instructions import WINDOWS
from tests.ops.ptx.program import TYPES, Instruction
from tests.ops.ptx.schedule import Schedule
from tests.ops.ptx.shared_memory import SharedMemory
from tests.ops.ptx.translation import Translation

Dim3 = tuple[int, int, int]


class Observer(Protocol):
    """Who wants to know what is executed."""

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


class Threads:
    """The threads of some blocks, which run together.

    The functions that writer.py writes read the attributes named like special registers
    (`tid_x`), set `now`, the instruction under way, and call the methods below `run`.
    """

    def __init__(
        self,
        translation: Translation,
        grid: Dim3,
        block: Dim3,
        blocks: np.ndarray,
        memory: GlobalMemory,
        parameters: bytes,
        dynamic_shared: int,
        observer: Observer | None,
    ) -> None:
        """Make the threads of the blocks of these numbers.

        Raises:
            NotImplementedError: Blocks are not of whole warps.
        """
        size = math.prod(block)
        if size % tensor_cores.LANES:
            raise NotImplementedError(f"blocks of {size} threads, no multiple of 32")
        kernel = translation.kernel
        self.now: Instruction | None = None
        self._translation = translation
        self._blocks = blocks
        self._size = size
        self._count = len(blocks) * size
        self._memory = memory
        self._shared = SharedMemory(
            len(blocks), kernel.shared.size + dynamic_shared, size, translation.granules["shared"]
        )
        self._parameters = np.frombuffer(parameters, np.uint8)
        self._local = np.zeros((self._count, kernel.local.size), np.uint8)
        self._observer = observer
        self._schedule = Schedule(len(blocks), size)
        kinds = kernel.registers.values()
        zeros = {kind: np.zeros(self._count, TYPES[kind]) for kind in set(kinds)}
        self._registers = [zeros[kind] for kind in kinds]
        thread, own_block = np.tile(np.arange(size), len(blocks)), np.repeat(blocks, size)
        self._in_grid = own_block * size + thread
        self.laneid = (thread % tensor_cores.LANES).astype(np.uint32)
        for name, number, sizes in (("tid", thread, block), ("ctaid", own_block, grid)):
            places = np.unravel_index(number, sizes[::-1])[::-1]
            for axis, place, length in zip("xyz", places, sizes, strict=True):
                setattr(self, f"{name}_{axis}", place.astype(np.uint32))
                setattr(self, f"n{name}_{axis}", self.full(np.uint32(length)))

    def full(self, value: np.generic) -> np.ndarray:
        """Return the same value for every thread."""
        return np.full(self._count, value)

    def run(self) -> None:
        """Run all threads to their end.

        Raises:
            Fault: With the kernel, the instruction and the thread in its message.
        """
        try:
            while (at := self._schedule.choose()) is not None:
                self._run_block(at)
        except ThreadFault as fault:
            raise Fault(self._describe(fault)) from None

    def _run_block(self, at: int) -> None:
        translation, schedule = self._translation, self._schedule
        block = translation.blocks[at]
        if self._observer is not None:
            warps = np.unique(schedule.running // tensor_cores.LANES)
            self._observer.block(block.instructions, len(warps))
        predicate = None
        if schedule.mask is None:
            translation.function(at, masked=False)(self, self._registers)
        else:
            translation.function(at, masked=True)(self, self._registers, schedule.mask)
        if block.end.kind == "barrier":
            self.now = block.instructions[-1]
        elif block.end.kind == "branch":
            predicate = self._registers[translation.registers[block.end.predicate]]
        for released in schedule.leave(at, block.end, predicate):
            self._shared.barrier(released)

    def _describe(self, fault: ThreadFault) -> str:
        block, thread = divmod(fault.thread, self._size)
        return (
            f"{self._translation.kernel.name}\n  {self.now}\n  thread {thread} of block "
            f"{self._blocks[block]} ({fault.thread} of those that run together) {fault}"
        )

    @contextmanager
    def _blame(self, threads: np.ndarray) -> Iterator[None]:
        """Say whose access is not allowed, of these threads."""
        try:
            yield
        except AccessFault as fault:
            raise ThreadFault(str(fault), int(threads[fault.which])) from None

    # What the translated instructions call. Values are [threads]; only those that run count.

    def load(self, space: str, addresses: np.ndarray, width: int, count: int) -> np.ndarray:
        """Load `count` elements of `width` bytes: unsigned [count, threads], 0 of others."""
        threads, addresses = self._schedule.running, self._of_running(addresses)
        space, addresses = self._resolve(space, addresses)
        self._observe(space, addresses, width * count)
        with self._blame(threads):
            if space == "global":
                values = self._memory.read(addresses, self._in_grid[threads], width, count)
            elif space == "shared":
                values = self._shared.read(addresses, threads, width, count)
            else:
                values = self._private(space, addresses, threads, width, count)
        if self._schedule.mask is None:
            return values.T
        result = np.zeros((count, self._count), values.dtype)
        result[:, threads] = values.T
        return result

    def store(self, space: str, addresses: np.ndarray, values: list[np.ndarray]) -> None:
        """Store unsigned elements."""
        threads, addresses = self._schedule.running, self._of_running(addresses)
        space, addresses = self._resolve(space, addresses)
        elements = np.stack([self._of_running(value) for value in values], 1)
        self._observe(space, addresses, elements.itemsize * len(values))
        with self._blame(threads):
            if space == "global":
                self._memory.write(addresses, self._in_grid[threads], elements)
            elif space == "shared":
                self._shared.write(addresses, threads, elements)
            elif space == "local":
                at = self._private_places(space, addresses, elements.itemsize * len(values))
                self._local[threads[:, None], at] = elements.view(np.uint8)
            else:
                raise AccessFault("stores to the memory of parameters", 0)

    def copy(self, to: np.ndarray, source: np.ndarray, size: int, taken: np.ndarray) -> None:
        """Begin a ``cp.async`` of `size` bytes, of which only the first `taken` are read."""
        threads = self._schedule.running
        to, source, taken = (self._of_running(values) for values in (to, source, taken))
        data = np.zeros((len(threads), size), np.uint8)
        for length in np.unique(taken[taken > 0]):
            some = np.flatnonzero(taken == length)
            self._observe("global", source[some], int(length), threads[some])
            with self._blame(threads[some]):
                if length > size:
                    raise AccessFault(f"copies {length} bytes into {size}", 0)
                data[some, :length] = self._memory.read(
                    source[some], self._in_grid[threads[some]], 1, int(length), size
                )
        self._observe("shared", to, size)
        with self._blame(threads):
            self._shared.copy(to, threads, data)

    def commit_copies(self) -> None:
        """``cp.async.commit_group``."""
        self._shared.commit(self._schedule.running)

    def await_copies(self, but: int | None) -> None:
        """``cp.async.wait_group``, or ``wait_all`` if None."""
        self._shared.wait(self._schedule.running, but)

    def warp_barrier(self) -> None:
        """``bar.warp.sync`` of whole warps."""
        self._whole_warps()
        self._shared.warp_barrier(self._schedule.running)

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
        of_rows = np.arange(self._count) % tensor_cores.LANES < 8 * count
        rows = of_rows if self._schedule.mask is None else of_rows & self._schedule.mask
        threads = np.flatnonzero(rows)
        self._observe("shared", addresses[threads], 16, threads)
        with self._blame(threads):
            values = self._shared.read(addresses[threads], threads, 2, 8, by_warp=True)
        matrices = np.zeros((self._count // tensor_cores.LANES, count, 8, 8), np.uint16)
        matrices[np.unique(threads // tensor_cores.LANES)] = values.reshape(-1, count, 8, 8)
        return tensor_cores.distribute_rows(matrices, transposed)

    def shuffle(
        self, how: str, value: np.ndarray, b: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``shfl.sync`` of whole warps."""
        self._whole_warps()
        return tensor_cores.shuffle(value, how, b, c)

    def _whole_warps(self) -> None:
        if self._schedule.mask is None:
            return
        lanes = self._schedule.mask.reshape(-1, tensor_cores.LANES)
        part = lanes.any(1) & ~lanes.all(1)
        if part.any():
            warp = int(np.argmax(part))
            raise ThreadFault(
                f"runs what a whole warp must run together, with {lanes[warp].sum()} of its lanes",
                warp * tensor_cores.LANES + int(np.argmax(lanes[warp])),
            )

    def _of_running(self, values: np.ndarray) -> np.ndarray:
        return values if self._schedule.mask is None else values[self._schedule.running]

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
            raise AccessFault(
                f"accesses {size} bytes at {addresses[n]:#x} of the memory of {space}", n
            )
        return addresses[:, None] + np.arange(size)

    def _observe(
        self, space: str, addresses: np.ndarray, size: int, threads: np.ndarray | None = None
    ) -> None:
        if self._observer is not None and self.now is not None:
            self._observer.access(
                self.now,
                space,
                addresses,
                self._schedule.running if threads is None else threads,
                size,
            )
