"""How learning rate and loss weights change over a training."""

from __future__ import annotations

import math
from typing import NamedTuple

from mkdext.training.options import ResolvedTraining


class Phase(NamedTuple):
    """What holds at one step."""

    lr: float
    """Learning rate of the student."""
    reconstruction: float
    """Weight of the reconstruction loss."""
    distillation: float
    """Weight of the distillation loss."""


def phase(step: int, options: ResolvedTraining) -> Phase:
    """Learning rate and weights of one step, from 0 to `iterations - 1`."""
    hints, total = options.hint_steps, options.iterations
    first, last = (0, hints) if step < hints else (hints, total)
    lr = cosine(step - first, last - first, options.lr, options.lr_min, options.warmup)
    if step < hints:
        return Phase(lr, reconstruction=0.0, distillation=1.0)
    if options.method == "vanilla" or hints:
        return Phase(lr, reconstruction=1.0, distillation=0.0)
    weight = options.kd_weight
    return Phase(lr, 1.0, cosine(step, total, weight, 0.0) if options.kd_fade else weight)


def cosine(step: int, steps: int, start: float, end: float, warmup: int = 0) -> float:
    """A linear rise to `start` over `warmup` steps, then half a cosine to `end`."""
    if step < warmup:
        return start * (step + 1) / warmup
    position = (step - warmup) / max(1, steps - warmup)
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
