"""Knowledge distillation for super-resolution networks, with C++ operators for PyTorch."""

from typing import TYPE_CHECKING

from mkdext._system.processors import keep_to_quota
from mkdext._system.startup import explain_exhausted_memory, is_command

__version__ = "0.2.0"

if is_command():
    explain_exhausted_memory()
    keep_to_quota()

if TYPE_CHECKING:
    from mkdext.models.convolutions import accelerate as accelerate
    from mkdext.training import distill as distill
else:

    def __getattr__(name):
        """What is called from here imports PyTorch only when it is asked for."""
        if name == "accelerate":
            from mkdext.models.convolutions import accelerate

            return accelerate
        if name == "distill":
            from mkdext.training import distill

            return distill
        raise AttributeError(f"module 'mkdext' has no attribute {name!r}")

    def __dir__():
        return [*globals(), "accelerate", "distill"]
