"""The learning rate over a training."""

from __future__ import annotations

import math


def cosine_lr(step: int, steps: int, lr: float, lr_min: float, warmup: int = 0) -> float:
    """Learning rate of one step: linear warm-up, then half a cosine from `lr` to `lr_min`.

    Args:
        step: From 0 to `steps - 1`.
        steps: Length of the training.
        lr: Rate at the top.
        lr_min: Rate at the end.
        warmup: Steps of the warm-up.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    position = (step - warmup) / max(1, steps - warmup)
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * position)) / 2
