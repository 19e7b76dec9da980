"""Distillation methods, one file each; a file in this folder is a method to choose from.

The package can be called, too: `mkdext.distill(student, teacher, images)` is
`mkdext.training.distill`.
"""

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

from mkdext.distill.base import Descent, DistillationMethod, MetaDefaults
from mkdext.distill.mkd import MKD, KRNet, MKDOptions
from mkdext.distill.registry import method_class, method_names, register

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)


class _Distill(ModuleType):
    """A package that is also the function that its name promises."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        from mkdext.training import distill  # which imports this package

        return distill(*given, **named)


sys.modules[__name__].__class__ = _Distill

__all__ = [
    "MKD",
    "Descent",
    "DistillationMethod",
    "KRNet",
    "MKDOptions",
    "MetaDefaults",
    "method_class",
    "method_names",
    "register",
]
