"""The compiled CUDA operators ``mkdext._C_cuda``: loading them, and whether a GPU can run them.

Nothing here is done before a CUDA tensor reaches an operator, or `mkdext.doctor` asks.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator

import torch

from mkdext._system import extension
from mkdext._system.extension import ExtensionStatus, Library

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
        operators = extension.status()  # `_C` has the schemas that `_C_cuda` implements
        with _lock:
            if _status is None:
                _status = operators if operators.state != "loaded" else extension.load(OPERATORS)
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
    if extension.is_required():
        raise ImportError(f"{current.reason}: {current.fix} ({extension.REQUIRE_VARIABLE} is set)")
    extension.warn_once(current)
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
    driver, toolkit = driver_version(), build["toolkit"]
    needed = tuple(int(part) for part in toolkit.split(".")[:2])
    if driver is None:
        return None
    supported = ".".join(map(str, driver))
    if driver[0] < needed[0]:
        return (
            f"the NVIDIA driver supports CUDA {supported}, but the CUDA operators were built with "
            f"{toolkit}",
            f"update the driver, or build with a CUDA toolkit {driver[0]} "
            "(CUDA_HOME=... pip install .)",
        )
    # Drivers run machine code of newer toolkits of their major version, but cannot compile the PTX.
    if driver < needed and not has_machine_code(capability, build["architectures"]):
        wanted = ".".join(map(str, capability))
        return (
            f"the NVIDIA driver supports CUDA {supported} and cannot compile the PTX of {toolkit} "
            f"that {name} needs",
            f'update the driver, or run `{ARCHITECTURES_VARIABLE}="{wanted}" pip install .` in the '
            "root of the clone",
        )
    return None


def driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver supports, like (13, 0); None where that is unknown.

    For when the operators are loaded: it is they who ask.
    """
    version: int = sys.modules[f"mkdext.{OPERATORS.name}"].driver_version()
    return (version // 1000, version % 1000 // 10) if version > 0 else None


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Tell whether code built for some architectures runs on a GPU.

    PTX runs on everything newer.

    Args:
        capability: The GPU's compute capability.
        architectures: As in ``build_info``: ``"8.0 9.0+PTX"``.
    """
    newer = (built for built, ptx in _parsed(architectures) if ptx and capability >= built)
    return has_machine_code(capability, architectures) or any(newer)


def has_machine_code(capability: tuple[int, int], architectures: str) -> bool:
    """Tell whether a GPU needs no PTX: machine code of X.Y runs on X.Z with Z >= Y."""
    return any(
        capability[0] == built[0] and capability >= built for built, _ in _parsed(architectures)
    )


def _parsed(architectures: str) -> Iterator[tuple[tuple[int, int], bool]]:
    for text in architectures.split():
        number, _, ptx = text.partition("+")
        major, minor = number.split(".")
        yield (int(major), int(minor)), bool(ptx)


def float32_algorithm(device: torch.device) -> str:
    """Return what ``"auto"`` of `dynamic_conv2d` is for float32 on a GPU, tf32 not being allowed.

    For when the operators are loaded: it is they who choose.
    """
    algorithm: str = sys.modules[f"mkdext.{OPERATORS.name}"].float32_algorithm(device.index or 0)
    return algorithm


def allows_tf32() -> bool:
    """Tell whether PyTorch's settings let float32 matrix products round their factors to tf32.

    `torch.compile` cannot trace the question.
    """
    precision: str = torch.backends.cuda.matmul.fp32_precision
    return precision == "tf32"
