"""The numbers of steps, read without making a GPU wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_AHEAD = 2  # steps that a GPU's are read after it was given them


class Readings:
    """What the steps so far have come to.

    On a CPU the numbers of a step are there at once. From a GPU they are copied while it goes on,
    and read when they have arrived, two steps later at most.

    Attributes:
        values: The last number read of every name.
        failed: The step whose numbers were refused, if some were.
    """

    def __init__(
        self,
        values: Mapping[str, float],
        check: Callable[[Mapping[str, float]], None],
    ) -> None:
        """Begin with the values of a training that goes on.

        Args:
            values: They serve until there are newer ones.
            check: Called with the numbers of each step; raises if they are not to be accepted.
        """
        self.values = dict(values)
        self.failed: int | None = None
        self._check = check
        self._coming: deque[tuple[int, list[str], Arrival]] = deque()

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take the values of a step, scalars on one device.

        `check` may raise, for this step or one before.
        """
        together = torch.stack(list(values.values()))
        self._coming.append((step, list(values), Arrival.of(together)))
        while len(self._coming) > _AHEAD or (self._coming and self._coming[0][2].is_there()):
            self._read()

    def wait(self) -> None:
        """Read all that was added; `check` may raise."""
        while self._coming:
            self._read()

    def _read(self) -> None:
        self.failed, names, arrival = self._coming.popleft()
        numbers = dict(zip(names, arrival.numbers(), strict=True))
        self._check(numbers)
        self.failed = None
        self.values |= numbers


class Arrival(NamedTuple):
    """Numbers on their way from the device."""

    host: Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, numbers: Tensor) -> Arrival:
        """Send numbers `[N]` on their way."""
        if not numbers.is_cuda:
            return cls(numbers, None)
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        return cls(host, torch.cuda.current_stream(numbers.device).record_event())

    def is_there(self) -> bool:
        """Whether `numbers` would not wait."""
        return self.copied is None or bool(self.copied.query())  # type: ignore[no-untyped-call]

    def numbers(self) -> list[float]:
        """Wait for them."""
        if self.copied:
            self.copied.synchronize()
        numbers: list[float] = self.host.tolist()
        return numbers
