"""Memory: what a process takes, what a computation would take, and what the system can give."""

from __future__ import annotations

import contextlib
import resource
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes of physical memory in use by this process now; where that is not told, its peak."""
    return _of_status("VmRSS") or _peak_of_process()


class PeakMemory:
    """The most memory that was in use between `start` and `bytes`, on one device."""

    def __init__(self, device: torch.device) -> None:
        """For a CPU: of this process; for a CUDA device: of its tensors."""
        self.device = device

    def start(self) -> None:
        """Begin anew. Where the system does not allow it, the peak is that of the process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            _RESET.write_text("5")

    def bytes(self) -> int:
        """The peak in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _of_status("VmHWM") or _peak_of_process()


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors made inside of it that are alive.

    With meta tensors, which have shapes but no memory, it tells what a computation would need.

    Attributes:
        live: Bytes at present.
        peak: Most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this machine or container can still give, none where Linux does not tell.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    except OSError:
        return None
    kilobytes, _ = fields["MemAvailable"].split()
    return min([int(kilobytes) * 1024, *_left_in_groups(root)])


def _of_status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _left_in_groups(root: Path) -> Iterator[int]:
    """What the control group of this process leaves it, and each group above that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    name = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    mounted = root / "sys/fs/cgroup"
    for group in (mounted / name, *(mounted / name).parents):
        try:
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group here, or "max"
            continue
        # What files keep in memory without need is given back when it is wanted.
        yield max(limit - used + int(kept.get("inactive_file", 0)), 0)
