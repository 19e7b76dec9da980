"""Which threads run next: those that are furthest behind in the text of the kernel.

That brings threads together again that went different ways at a branch or left a loop at different
times. A thread goes on from a barrier when all of its block have come there.
"""

from __future__ import annotations

import numpy as np

from tests.ops.ptx.control_flow import End
from tests.ops.ptx.fault import ThreadFault

_GONE = np.iinfo(np.int64).max


class Schedule:
    """Where the threads of some blocks are.

    Attributes:
        running: The numbers of the threads that run now, through all blocks.
        mask: Which these are, [threads]; None if all run.
    """

    def __init__(self, blocks: int, size: int) -> None:
        """Put all threads of blocks of `size` at the beginning."""
        self._size = size
        self._everyone = np.arange(blocks * size)
        self._at = np.zeros(blocks * size, np.int64)
        self._waiting = np.zeros(blocks * size, bool)
        self.running = self._everyone
        self.mask: np.ndarray | None = None

    def choose(self) -> int | None:
        """Choose who runs next, and return the block of instructions; None if all have ended.

        Raises:
            ThreadFault: Threads wait at a barrier that others will never come to.
        """
        places = np.where(self._waiting, _GONE, self._at)
        at = int(places.min())
        if at == _GONE:
            if self._waiting.any():
                self._deadlock()
            return None
        mask = places == at
        if mask.all():
            self.mask, self.running = None, self._everyone
        else:
            self.mask, self.running = mask, np.flatnonzero(mask)
        return at

    def leave(self, at: int, end: End, predicate: np.ndarray | None) -> list[int]:
        """Send those that ran a block of instructions to what follows.

        Args:
            at: The block that they ran.
            end: How it ends.
            predicate: [threads], of a branch.

        Returns:
            The blocks of threads that this lets go on from a barrier.

        Raises:
            ThreadFault: Threads of a block wait at different barriers.
        """
        if end.kind == "next":
            self._at[self.running] = at + 1
        elif end.kind == "jump":
            self._at[self.running] = end.target
        elif end.kind == "exit":
            self._at[self.running] = _GONE
        elif end.kind == "branch":
            assert predicate is not None
            taken = predicate[self.running] != end.negated
            self._at[self.running] = np.where(taken, end.target, at + 1)
        else:
            self._at[self.running] = at + 1
            self._waiting[self.running] = True
            return self._release()
        return []

    def _release(self) -> list[int]:
        waiting = self._waiting.reshape(-1, self._size)
        places = self._at.reshape(-1, self._size)
        released = np.flatnonzero(waiting.all(1))
        if (places[released] != places[released][:, :1]).any():
            thread = int(released[0]) * self._size
            raise ThreadFault("waits with threads of its block that are at another barrier", thread)
        waiting[released] = False
        return [int(block) for block in released]

    def _deadlock(self) -> None:
        waiting = self._waiting.reshape(-1, self._size)
        block = int(np.argmax(waiting.any(1)))
        thread = block * self._size + int(np.argmax(waiting[block]))
        gone = int(np.argmin(waiting[block]))
        raise ThreadFault(
            f"waits at a barrier for ever: thread {gone} of its block has ended", thread
        )
