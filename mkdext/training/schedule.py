"""How learning rate and loss weights change over a stage."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple


class Phase(NamedTuple):
    """What holds at one step."""

    lr: float
    """Learning rate of the student."""
    reconstruction: float
    """Weight of the reconstruction loss."""
    distillation: float
    """Weight of the distillation loss."""
    imitation: float = 0.0
    """Share of the reconstruction loss that is taken against the teacher's picture."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The steps from `first` to `end - 1`.

    Example:
        >>> schedule = Schedule(first=10, end=20, lr=0.2, lr_min=0.1, distillation=3.0)
        >>> schedule.at(10)
        Phase(lr=0.2, reconstruction=1.0, distillation=3.0, imitation=0.0)
        >>> round(schedule.at(15).lr, 3), round(schedule.at(15).distillation, 3)
        (0.15, 1.5)
    """

    first: int
    end: int
    lr: float
    """Learning rate at the beginning."""
    lr_min: float
    """Learning rate at the end of the cosine."""
    warmup: int = 0
    """Steps over which the learning rate first rises to its value."""
    reconstruction: float = 1.0
    """Weight of the reconstruction loss."""
    distillation: float = 0.0
    """Weight of the distillation loss, at the beginning if it fades."""
    fades: bool = True
    """Whether the weight of the distillation loss falls to 0 along half a cosine."""
    imitation: tuple[float, float] = (0.0, 0.0)
    """Share of the reconstruction loss that is taken against the teacher's picture, at the
    beginning and, along a straight line, at the end."""

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.end - self.first

    def at(self, step: int) -> Phase:
        """Learning rate and weights of one step, from `first` to `end - 1`."""
        taken = step - self.first
        lr = cosine(taken, self.length, self.lr, self.lr_min, self.warmup)
        weight = self.distillation
        if self.fades:
            weight = cosine(taken, self.length, weight, 0.0)
        start, end = self.imitation
        share = start + (end - start) * taken / self.length
        return Phase(lr, self.reconstruction, weight, share)


def cosine(step: int, steps: int, start: float, end: float, warmup: int = 0) -> float:
    """A linear rise to `start` over `warmup` steps, then half a cosine to `end`."""
    if step < warmup:
        return start * (step + 1) / warmup
    position = (step - warmup) / max(1, steps - warmup)
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
