"""The compiled CUDA operators ``mkdext._C_cuda``: loading them, and whether a GPU can run them.

Nothing here is done before a CUDA tensor reaches an operator, or `mkdext.doctor` asks.
"""

from __future__ import annotations

import functools
import threading

import torch

from mkdext import _extension
from mkdext._extension import ExtensionStatus, Library

ARCHITECTURES_VARIABLE = "MKDEXT_CUDA_ARCHITECTURES"
OLDEST_ARCHITECTURE = (8, 0)
"""The oldest GPUs whose tensor cores multiply bfloat16 and tf32."""

OPERATORS = Library(
    "_C_cuda",
    "cuda",
    "the CUDA operators of mkdext",
    "install the CUDA toolkit (nvcc)",
)

_lock = threading.Lock()
_status: ExtensionStatus | None = None


def status() -> ExtensionStatus:
    """Load ``mkdext._C_cuda`` if that was not tried before, and tell the outcome. Thread-safe."""
    global _status
    if _status is None:
        operators = _extension.status()  # `_C` has the schemas that `_C_cuda` implements
        with _lock:
            if _status is None:
                _status = operators if operators.state != "loaded" else _extension.load(OPERATORS)
    return _status


def is_loaded() -> bool:
    """Tell whether ``mkdext._C_cuda`` was loaded before; a compiler can trace it."""
    return _status is not None and _status.state == "loaded"


def available(device: torch.device) -> bool:
    """Tell whether the CUDA operators can be used on a device; warn, once, if they are not there.

    Raises:
        ImportError: They are not there and ``MKDEXT_REQUIRE_EXT=1``.
        RuntimeError: They are, but were not built for this GPU, or the driver is too old for them.
    """
    current = status()
    if current.state == "loaded":
        _check_device(device.index or 0)
        return True
    if _extension.is_required():
        raise ImportError(f"{current.reason}: {current.fix} ({_extension.REQUIRE_VARIABLE} is set)")
    _extension.warn_once(current)
    return False


@functools.cache
def _check_device(index: int) -> None:
    obstacle = find_obstacle(index)
    if obstacle is not None:
        raise RuntimeError(f"mkdext on cuda:{index}: {': '.join(obstacle)}")


def find_obstacle(index: int) -> tuple[str, str] | None:
    """Tell why a GPU cannot run the loaded operators, and the fix; None if it can."""
    build = status().build
    capability = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    if not runs_on(capability, build["architectures"]):
        wanted = ".".join(map(str, capability))
        if capability < OLDEST_ARCHITECTURE:
            return (
                f"{name} has compute capability {wanted}, but the CUDA operators need 8.0",
                "use `mkdext.ops.reference`, or device cpu",
            )
        return (
            f"{name} has compute capability {wanted}, but the CUDA operators were built for "
            f"{build['architectures']}",
            f'run `{ARCHITECTURES_VARIABLE}="{wanted}" pip install .` in the root of the clone',
        )
    driver: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    toolkit = tuple(int(part) for part in build["toolkit"].split(".")[:2])
    if driver // 1000 < toolkit[0]:
        return (
            f"the NVIDIA driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, but the CUDA "
            f"operators were built with {build['toolkit']}",
            f"update the driver, or build with a CUDA toolkit {driver // 1000} "
            "(CUDA_HOME=... pip install .)",
        )
    return None


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Tell whether code built for some architectures runs on a GPU.

    Machine code of X.Y runs on X.Z with Z >= Y, PTX on everything newer.

    Args:
        capability: The GPU's compute capability.
        architectures: As in ``build_info``: ``"8.0 9.0+PTX"``.
    """
    for text in architectures.split():
        number, _, ptx = text.partition("+")
        major, minor = (int(part) for part in number.split("."))
        if capability >= (major, minor) and (ptx or capability[0] == major):
            return True
    return False


def allows_tf32() -> bool:
    """Tell whether PyTorch's settings let float32 matrix products round their factors to tf32.

    `torch.compile` cannot trace the question.
    """
    precision: str = torch.backends.cuda.matmul.fp32_precision
    return precision == "tf32"
