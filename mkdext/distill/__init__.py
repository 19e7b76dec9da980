"""Distillation methods, one file each; a file in this folder is a method to choose from.

They are imported by `from mkdext.distill import MKD`; `mkdext.distill` itself, also after
`import mkdext.distill`, is the function that distils.
"""

import importlib
import pkgutil

from mkdext.distill.base import Descent, DistillationMethod, MetaDefaults
from mkdext.distill.mkd import MKD, KRNet, MKDOptions
from mkdext.distill.registry import method_class, method_names, register

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

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
