"""Knowledge distillation for super-resolution networks, with C++ operators for PyTorch."""

import importlib
from typing import TYPE_CHECKING

from mkdext._startup import explain_exhausted_memory, is_command

__version__ = "0.1.0"

if is_command():
    explain_exhausted_memory()

if TYPE_CHECKING:
    from mkdext.training import distill as distill
else:

    def __getattr__(name):
        """`mkdext.distill` imports PyTorch only when it is asked for."""
        if name == "distill":
            return importlib.import_module("mkdext.distill")
        raise AttributeError(f"module 'mkdext' has no attribute {name!r}")

    def __dir__():
        return [*globals(), "distill"]
