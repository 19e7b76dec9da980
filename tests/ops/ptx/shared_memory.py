"""Shared memory of the blocks that run together, and who touched what since their last barrier.

Only a barrier orders the threads of a block, and ``bar.warp.sync`` those of a warp. Between two of
them no byte may be written by one thread and touched by another one.
"""

from __future__ import annotations

import numpy as np

from tests.ops.ptx.fault import AccessFault
from tests.ops.ptx.tensor_cores import LANES

_NOBODY = -1
_SEVERAL = -2


class SharedMemory:
    """Shared memory with the state of every granule, the least that the kernel touches at once.

    Addresses are offsets within a block's memory; threads are numbered through the blocks. Of a
    granule's readers, and of its writers, one number is kept: of a thread, of a warp of which
    several threads did it, of a warp that has met since, or `_SEVERAL` or `_NOBODY`.
    """

    def __init__(self, blocks: int, size: int, threads: int, granule: int) -> None:
        """Make memory of `size` bytes for each of the blocks of so many threads."""
        self._size = size
        self._stride = -(-size // 16) * 16
        self._granule = granule
        self._threads = blocks * threads
        self._warps = self._threads // LANES
        everyone = np.arange(self._threads)
        self._base = everyone // threads * self._stride
        warps = np.arange(self._warps)
        # Of a thread, of a warp, and of one that has met; the last two are _SEVERAL and _NOBODY.
        self._warp_of = np.concatenate([everyone // LANES, warps, warps, [-1, -1]]).astype(np.int32)
        self._several_of = np.where(
            self._warp_of < 0, np.int32(_SEVERAL), self._threads + self._warp_of
        )
        memory = np.zeros(blocks * self._stride, np.uint8)
        self._views = {n: memory.view(f"u{n}") for n in (1, 2, 4, 8)}
        granules = memory.size // granule
        self._written = np.zeros(granules, bool)
        self._copying = np.zeros(granules, bool)
        self._writer = np.full(granules, _NOBODY, np.int32)
        self._reader = np.full(granules, _NOBODY, np.int32)
        # Asynchronous copies on their way: threads, places, bytes and groups of each instruction.
        self._copies: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._group = np.zeros(len(everyone), np.int64)

    def read(
        self,
        addresses: np.ndarray,
        threads: np.ndarray,
        width: int,
        count: int,
        *,
        by_warp: bool = False,
    ) -> np.ndarray:
        """Read `count` elements of `width` bytes at every address: unsigned [addresses, count].

        With `by_warp` what a thread addresses goes to other threads of its warp.

        Raises:
            AccessFault: Out of bounds, misaligned, never written, not awaited, or a race.
        """
        at, granules = self._locate(addresses, threads, width * count, "reads")
        if not self._written[granules].all() or self._copying[granules].any():
            self._refuse_unwritten(addresses, granules)
        who = self._several_of[threads] if by_warp else threads.astype(np.int32)
        self._check(self._writer, granules, who, addresses, "reads", "wrote")
        self._note_readers(granules, who)
        return self._views[width][at[:, None] // width + np.arange(count)]

    def write(self, addresses: np.ndarray, threads: np.ndarray, values: np.ndarray) -> None:
        """Write unsigned values [addresses, count].

        Raises:
            AccessFault: Out of bounds, misaligned, or a race.
        """
        width, count = values.itemsize, values.shape[1]
        at, granules = self._claim(addresses, threads, width * count)
        self._written[granules] = True
        self._views[width][at[:, None] // width + np.arange(count)] = values

    def copy(self, addresses: np.ndarray, threads: np.ndarray, values: np.ndarray) -> None:
        """Begin to copy bytes [addresses, size] there; they come when they are awaited.

        Raises:
            AccessFault: As for `write`.
        """
        at, granules = self._claim(addresses, threads, values.shape[1])
        self._copying[granules] = True
        self._copies.append((threads, at, values, self._group[threads]))

    def commit(self, threads: np.ndarray) -> None:
        """End the threads' groups of copies and begin new ones."""
        self._group[threads] += 1

    def wait(self, threads: np.ndarray, but: int | None) -> None:
        """Let the threads' copies arrive: all, or those of all ended groups but the last ones."""
        waiting = np.zeros(self._group.size, bool)
        waiting[threads] = True
        still = []
        for owners, at, values, groups in self._copies:
            arrive = waiting[owners]
            if but is not None:
                arrive = arrive & (groups < self._group[owners] - but)
            if arrive.any():
                self._arrive(owners[arrive], at[arrive], values[arrive])
            if not arrive.all():
                rest = ~arrive
                still.append((owners[rest], at[rest], values[rest], groups[rest]))
        self._copies = still

    def barrier(self, block: int) -> None:
        """Order what the threads of a block did before what they do from now on."""
        own = slice(
            block * self._stride // self._granule, (block + 1) * self._stride // self._granule
        )
        self._writer[own] = _NOBODY
        self._reader[own] = _NOBODY

    def warp_barrier(self, threads: np.ndarray) -> None:
        """Order what the threads of whole warps did before what those of a warp do from now on."""
        met = np.arange(len(self._warp_of))
        met[-2:] = _SEVERAL, _NOBODY
        of_these = np.isin(self._warp_of, self._warp_of[threads])
        met[of_these] = self._met(self._warp_of[of_these])
        self._writer[:] = met[self._writer]
        self._reader[:] = met[self._reader]

    def _arrive(self, owners: np.ndarray, at: np.ndarray, values: np.ndarray) -> None:
        granules = self._granules(at, values.shape[1])
        self._copying[granules] = False
        self._written[granules] = True
        self._writer[granules] = owners[:, None]
        self._views[1][at[:, None] + np.arange(values.shape[1])] = values

    def _note_readers(self, granules: np.ndarray, who: np.ndarray) -> None:
        who = np.broadcast_to(who[:, None], granules.shape)
        # Of several that read the same granule at once the last one is kept, until all count.
        while (missing := ~self._counts(self._reader[granules], who)).any():
            granules, who = granules[missing], who[missing]
            who = self._together(self._reader[granules], who)
            self._reader[granules] = who

    def _counts(self, kept: np.ndarray, who: np.ndarray) -> np.ndarray:
        """Tell whether what is kept tells of a reader."""
        return (kept == who) | (kept == _SEVERAL) | (kept == self._several_of[who])

    def _together(self, kept: np.ndarray, who: np.ndarray) -> np.ndarray:
        """One number for both."""
        several = self._several_of[who]
        same_warp = (self._several_of[kept] == several) & (several != _SEVERAL)
        alone = (kept == _NOBODY) | (same_warp & (kept == self._met(self._warp_of[who])))
        return np.where(alone, who, np.where(same_warp, several, _SEVERAL)).astype(np.int32)

    def _met(self, warp: np.ndarray) -> np.ndarray:
        return self._threads + self._warps + warp

    def _granules(self, at: np.ndarray, size: int) -> np.ndarray:
        return at[:, None] // self._granule + np.arange(size // self._granule)

    def _locate(
        self, addresses: np.ndarray, threads: np.ndarray, size: int, does: str
    ) -> tuple[np.ndarray, np.ndarray]:
        bad = (addresses < 0) | (addresses + size > self._size)
        if bad.any():
            n = int(np.argmax(bad))
            raise AccessFault(
                f"{does} {size} bytes at {addresses[n]:#x} of {self._size} bytes of shared memory",
                n,
            )
        bad = (addresses & (size - 1)) != 0
        if bad.any():
            n = int(np.argmax(bad))
            raise AccessFault(
                f"{does} {size} bytes at {addresses[n]:#x} of shared memory, which is misaligned", n
            )
        at = self._base[threads] + addresses
        return at, self._granules(at, size)

    def _claim(
        self, addresses: np.ndarray, threads: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Check a write and note whose it is."""
        at, granules = self._locate(addresses, threads, size, "writes")
        if self._copying[granules].any():
            n = int(np.argmax(self._copying[granules].any(1)))
            raise AccessFault(
                f"writes {addresses[n]:#x} of shared memory, where a copy is under way", n
            )
        self._check(self._writer, granules, threads, addresses, "writes", "wrote")
        self._check(self._reader, granules, threads, addresses, "writes", "read")
        self._writer[granules] = threads[:, None]
        self._check(self._writer, granules, threads, addresses, "writes", "wrote")  # two at once
        return at, granules

    def _check(
        self,
        kept: np.ndarray,
        granules: np.ndarray,
        who: np.ndarray,
        addresses: np.ndarray,
        does: str,
        did: str,
    ) -> None:
        other = kept[granules]
        bad = (other != _NOBODY) & (other != who[:, None])
        if bad.any():
            bad &= other != self._met(self._warp_of[who])[:, None]
        if bad.any():
            n, g = np.unravel_index(int(np.argmax(bad)), bad.shape)
            raise AccessFault(
                f"race: {does} {addresses[n]:#x} of shared memory, which "
                f"{self._name(int(other[n, g]))} {did} after the last barrier",
                int(n),
            )

    def _name(self, who: int) -> str:
        if 0 <= who < self._threads:
            return f"thread {who} of those that run together"
        return "several threads" if who == _SEVERAL else f"warp {self._warp_of[who]}"

    def _refuse_unwritten(self, addresses: np.ndarray, granules: np.ndarray) -> None:
        copying = self._copying[granules].any(1)
        bad = copying | ~self._written[granules].all(1)
        n = int(np.argmax(bad))
        why = "where a copy is under way" if copying[n] else "which was never written"
        raise AccessFault(f"reads {addresses[n]:#x} of shared memory, {why}", n)
