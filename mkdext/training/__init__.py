"""Training: options, the loop, the run directory."""

from mkdext.training.loop import Summary, TrainingStopped, train
from mkdext.training.options import BUILTIN_DEMO, MetaOptions, TrainOptions
from mkdext.training.steps import NonFiniteError

__all__ = [
    "BUILTIN_DEMO",
    "MetaOptions",
    "NonFiniteError",
    "Summary",
    "TrainOptions",
    "TrainingStopped",
    "train",
]
