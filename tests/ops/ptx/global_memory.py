"""Global memory: the process's own, as far as a launch was given it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from tests.ops.ptx.fault import AccessFault

_NOBODY = -1


@dataclass(frozen=True)
class Buffer:
    """Memory that kernels may read, and perhaps write."""

    name: str
    address: int
    size: int
    """Bytes."""
    writable: bool = False


class GlobalMemory:
    """Buffers of one launch, and who wrote what in it.

    Addresses are those of the process. Threads are numbered through the whole grid, and nothing but
    the end of the launch makes what one wrote visible to another.
    """

    def __init__(self, buffers: list[Buffer], granule: int) -> None:
        """Take the buffers; every write is a multiple of `granule` bytes."""
        self.buffers = sorted(buffers, key=lambda buffer: buffer.address)
        self._granule = granule
        self._begins = np.array([b.address for b in self.buffers], np.int64)
        self._ends = self._begins + np.array([b.size for b in self.buffers], np.int64)
        self._writable = np.array([b.writable for b in self.buffers], bool)
        # One window over them all; what lies between is never touched.
        self._base = int(self._begins[0]) // 16 * 16
        span = -(-(int(self._ends[-1]) - self._base) // 16) * 16
        memory = np.frombuffer((ctypes.c_char * span).from_address(self._base), np.uint8)
        self._views = {n: memory.view(f"u{n}") for n in (1, 2, 4, 8)}
        sizes = np.where(self._writable, self._ends - self._begins, 0) // granule + 2
        self._first = np.cumsum(sizes) - sizes
        self._writer = np.full(int(sizes.sum()), _NOBODY, np.int64)

    def read(
        self,
        addresses: np.ndarray,
        threads: np.ndarray,
        width: int,
        count: int,
        alignment: int | None = None,
    ) -> np.ndarray:
        """Read `count` elements of `width` bytes at every address: unsigned [addresses, count].

        The addresses are multiples of `alignment`, or if None of what is read.

        Raises:
            AccessFault: Outside all buffers, misaligned, or another thread of the launch wrote it.
        """
        at, buffer = self._locate(addresses, width * count, alignment or width * count, "reads")
        if self._writable[buffer].any():
            self._check_writer(at, buffer, threads, width * count, "reads")
        elements = (at - self._base)[:, None] // width + np.arange(count)
        return self._views[width][elements]

    def write(self, addresses: np.ndarray, threads: np.ndarray, values: np.ndarray) -> None:
        """Write unsigned values [addresses, count].

        Raises:
            AccessFault: As for `read`, or the buffer may not be written.
        """
        width, count = values.itemsize, values.shape[1]
        at, buffer = self._locate(addresses, width * count, width * count, "writes")
        if not (allowed := self._writable[buffer]).all():
            n = int(np.argmin(allowed))
            name = self.buffers[buffer[n]].name
            raise AccessFault(f"writes to {name}, which is only read: {at[n]:#x}", n)
        granules = self._check_writer(at, buffer, threads, width * count, "writes")
        self._writer[granules] = threads[:, None]
        self._check_writer(at, buffer, threads, width * count, "writes")  # two at once
        elements = (at - self._base)[:, None] // width + np.arange(count)
        self._views[width][elements] = values

    def _locate(
        self, addresses: np.ndarray, size: int, alignment: int, does: str
    ) -> tuple[np.ndarray, np.ndarray]:
        at = addresses.view(np.int64)
        buffer = np.searchsorted(self._begins, at, side="right") - 1
        bad = (buffer < 0) | (at + size > self._ends[buffer])
        if bad.any():
            n = int(np.argmax(bad))
            raise AccessFault(
                f"{does} {size} bytes at {at[n]:#x}, outside {self._near(int(at[n]))}", n
            )
        bad = (at & (alignment - 1)) != 0
        if bad.any():
            n = int(np.argmax(bad))
            raise AccessFault(f"{does} {size} bytes at {at[n]:#x}, which is misaligned", n)
        return at, buffer

    def _near(self, address: int) -> str:
        def distance(buffer: Buffer) -> int:
            return max(buffer.address - address, address - buffer.address - buffer.size)

        nearest = min(self.buffers, key=distance)
        begin, end = nearest.address, nearest.address + nearest.size
        return f"of all buffers; the next one is {nearest.name}, {begin:#x} to {end:#x}"

    def _check_writer(
        self, at: np.ndarray, buffer: np.ndarray, threads: np.ndarray, size: int, does: str
    ) -> np.ndarray:
        """Return the granules of the accesses, [accesses, granules of one]."""
        offset = at // self._granule - self._begins[buffer] // self._granule
        first = self._first[buffer] + np.where(self._writable[buffer], offset, 0)
        granules = first[:, None] + np.arange(-(-size // self._granule))
        writer = self._writer[granules]
        bad = (writer != _NOBODY) & (writer != threads[:, None]) & self._writable[buffer][:, None]
        if bad.any():
            n, g = np.unravel_index(int(np.argmax(bad)), bad.shape)
            raise AccessFault(
                f"{does} {at[n]:#x} of {self.buffers[buffer[n]].name}, which thread "
                f"{writer[n, g]} of the grid wrote in the same launch",
                int(n),
            )
        return granules
