"""The options of a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, how long. Defaults are those of the MKD paper, section 4.1."""

    student: str = "rcan-a"
    """Network to train."""
    scale: int = 4
    """Enlargement factor."""
    method: Literal["vanilla"] = "vanilla"
    """Way of training: 'vanilla' has no teacher."""
    train_dir: tuple[Path, ...] = ()
    """Folders of photographs to train on."""
    val_dir: tuple[Path, ...] = ()
    """Folders of photographs to measure on, each reported by its name."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """What to do with broken or too small training files, once all are named."""
    iterations: int = 300_000
    """Student steps."""
    batch_size: int = 16
    """Patches a step."""
    patch_size: int = 48
    """Width and height of a patch in low-resolution pixels."""
    lr: float = 1e-4
    """Learning rate of Adam at the beginning."""
    lr_min: float = 5e-6
    """Learning rate at the end of the cosine."""
    warmup: int = 0
    """Steps over which the learning rate first rises to its value."""
    validate_every: int = 1000
    """Steps between validations."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the weights and of the order of the patches."""
    out: Path = Path("runs/train")
    """Run directory; the same command goes on with the run it finds there."""
