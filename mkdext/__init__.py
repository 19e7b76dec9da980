"""Knowledge distillation for super-resolution networks, with C++ operators for PyTorch."""

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

from mkdext._startup import explain_exhausted_memory, is_command

__version__ = "0.1.0"

if is_command():
    explain_exhausted_memory()

if TYPE_CHECKING:
    from mkdext.training import distill as distill
else:

    class _Package(ModuleType):
        """`mkdext.distill` is the function, and imports PyTorch only when it is asked for."""

        @property
        def distill(self):
            from mkdext.training import distill

            return distill

        @distill.setter
        def distill(self, package):
            """Keep the function when the import system sets the package of methods here."""

        def __dir__(self) -> Iterable[str]:
            return [*super().__dir__(), "distill"]

    sys.modules[__name__].__class__ = _Package
