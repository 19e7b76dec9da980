"""Distillation methods, one file or folder each: what is here is a method to choose from."""

import importlib
import pkgutil

from mkdext.methods.base import Descent, DistillationMethod, MetaDefaults
from mkdext.methods.mkd import MKD, KRNet, MKDOptions
from mkdext.methods.registry import (
    known_method,
    make_method,
    method_class,
    method_names,
    register,
    try_method,
)
from mkdext.methods.whitening import RunningMean, Whitened

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "MKD",
    "Descent",
    "DistillationMethod",
    "KRNet",
    "MKDOptions",
    "MetaDefaults",
    "RunningMean",
    "Whitened",
    "known_method",
    "make_method",
    "method_class",
    "method_names",
    "register",
    "try_method",
]
