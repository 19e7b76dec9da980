"""Data-free training: options, stages, the student."""

from mkdext.training.datafree.options import ContrastiveOptions, DataFreeOptions, GeneratorOptions
from mkdext.training.datafree.student import train_without_data

__all__ = ["ContrastiveOptions", "DataFreeOptions", "GeneratorOptions", "train_without_data"]
