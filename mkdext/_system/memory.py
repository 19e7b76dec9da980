"""How much memory the process takes."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

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


def _of_status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
