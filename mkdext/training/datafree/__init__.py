"""Data-free training: options, stages, the loop."""

from mkdext.training.datafree.loop import train_without_data
from mkdext.training.datafree.options import ContrastiveOptions, DataFreeOptions, GeneratorOptions

__all__ = ["ContrastiveOptions", "DataFreeOptions", "GeneratorOptions", "train_without_data"]
