"""Random numbers that are a function of the seed and the step alone, so that a run can go on."""

from __future__ import annotations

import enum

import numpy as np
import torch


class Draw(enum.IntEnum):
    """What random numbers are for; those of one purpose are independent of those of another."""

    IMAGES = 0
    SCALE = 1
    GENERATION = 2
    GENERATION_SCALE = 3
    NEW_PARTS = 4
    SAMPLES = 5
    HELD_OUT = 6
    USUAL = 7
    MIXED_IN = 8
    POOL = 9
    COLOURS = 10


def seed_of(seed: int, purpose: Draw, index: int = 0) -> int:
    """A seed for one purpose at one step.

    Example:
        >>> seed_of(0, Draw.IMAGES, 1) == seed_of(0, Draw.IMAGES, 2)
        False
    """
    (word,) = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)
    return int(word >> np.uint64(1))


def random_for(seed: int, purpose: Draw, index: int = 0) -> torch.Generator:
    """A generator of random numbers, on the CPU, for one purpose at one step."""
    return torch.Generator().manual_seed(seed_of(seed, purpose, index))


def drawn(scales: tuple[int, ...], seed: int, purpose: Draw, index: int) -> int:
    """One of several scales."""
    random = random_for(seed, purpose, index)
    return scales[int(torch.randint(len(scales), (), generator=random))]
