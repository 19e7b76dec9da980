"""`python -m mkdext.train`."""

from __future__ import annotations

import tyro

from mkdext.training.loop import train
from mkdext.training.options import TrainOptions

if __name__ == "__main__":
    train(tyro.cli(TrainOptions))
