"""Data-free training: options, stages, the student."""

from mkdext.training.data_free_options import ContrastiveOptions, DataFreeOptions, GeneratorOptions
from mkdext.training.datafree.student import train_without_data

__all__ = ["ContrastiveOptions", "DataFreeOptions", "GeneratorOptions", "train_without_data"]
