"""Training: options, stages, the trainer, the run directory."""

from mkdext.training.data_free_options import ContrastiveOptions, DataFreeOptions, GeneratorOptions
from mkdext.training.distill import Distilled, distill
from mkdext.training.image_maker import CollapseError
from mkdext.training.options import BUILTIN_DEMO, MetaOptions, TrainOptions
from mkdext.training.run.directory import TrainingStopped
from mkdext.training.run.report import Summary
from mkdext.training.step import NonFiniteError
from mkdext.training.trainer import train

__all__ = [
    "BUILTIN_DEMO",
    "CollapseError",
    "ContrastiveOptions",
    "DataFreeOptions",
    "Distilled",
    "GeneratorOptions",
    "MetaOptions",
    "NonFiniteError",
    "Summary",
    "TrainOptions",
    "TrainingStopped",
    "distill",
    "train",
]
