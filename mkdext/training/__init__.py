"""Training: options, the loop, the run directory."""

from mkdext.training.modules import Distilled, distill
from mkdext.training.options import BUILTIN_DEMO, MetaOptions, TrainOptions
from mkdext.training.signals import TrainingStopped
from mkdext.training.steps import NonFiniteError
from mkdext.training.student import Summary, train

__all__ = [
    "BUILTIN_DEMO",
    "Distilled",
    "MetaOptions",
    "NonFiniteError",
    "Summary",
    "TrainOptions",
    "TrainingStopped",
    "distill",
    "train",
]
