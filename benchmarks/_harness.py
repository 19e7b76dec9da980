"""What the benchmarks share: interleaved timing, peak memory, the machine header, JSON.

The process keeps the memory that it frees, as a training does: otherwise the system's page faults,
which fall on some rounds and not on others, cost as much as a convolution.

Two sides are never timed one after the other but in turn, in one loop and in changing order, so
that a slow second of a shared machine hits both. Ratios are taken round by round and their median
is reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run from any directory, installed or not
    sys.path.insert(0, str(ROOT))

from mkdext._system import cuda, extension  # noqa: E402
from mkdext._system.allocator import keep_freed_memory  # noqa: E402
from mkdext._system.files import write_text  # noqa: E402

keep_freed_memory()


@dataclass(frozen=True)
class Timing:
    """The seconds of one candidate, one per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The interquartile range over the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median

    def ratio_to(self, other: Timing) -> float:
        """Return how many times faster this one is than the other: median over the rounds."""
        pairs = zip(other.seconds, self.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, Timing]:
    """Time every candidate once per round, after one round that is not counted.

    The order changes from round to round: what runs after a form that fills the caches is slower.
    A round holds enough calls of a candidate, one right after the other, to last milliseconds. On
    a GPU a single call of tens of microseconds cannot be timed between two CUDA events; on a CPU it
    would be timed on caches that other forms have filled, as nothing in a training is.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    calls = {name: _calls_per_round(run, device) for name, run in candidates.items()}
    order = random.Random(0)
    for round_ in range(repeats + 1):
        for name, run in order.sample(list(candidates.items()), len(candidates)):
            taken = _seconds_per_call(run, calls[name], device)
            if round_ > 0:
                seconds[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _calls_per_round(run: Callable[[], object], device: torch.device) -> int:
    first = _seconds_per_call(run, 1, device)  # loads kernels, and lets cuDNN choose
    if device.type == "cpu" and first > 0.1:
        return 1
    return max(1, min(200, int(4e-3 / _seconds_per_call(run, 3, device))))


def _seconds_per_call(run: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        return _seconds_between_events(run, calls, device)
    clock, _ = choose_clock(device)
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def _seconds_between_events(run: Callable[[], object], calls: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def choose_clock(device: torch.device) -> tuple[Callable[[], float], str]:
    """Return the clock and its name.

    With one thread on a CPU it is the thread's own processor time, so that other processes on the
    machine do not enter (their use of caches and memory does); else the time on the wall.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.thread_time, "processor time of the thread"
    return time.perf_counter, "wall"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Return how far a call lifts the memory in use above where it stood, after a first call.

    On a CPU that is the peak of the resident memory; None where the system does not tell.
    """
    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or freed memory still counts as in use
        before = _status_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
        run()
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def peak_gflops(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Measure what can be computed at most, in GFLOP/s: the fastest of repeated matrix products.

    On a CPU MKL's product of two 512 x 512 matrices, which stay in the caches, comes within a few
    per cent of the peak of the multiply-add units; a GPU needs larger ones.
    """
    side = 8192 if device.type == "cuda" else 512
    with on_threads(threads):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _fastest(lambda: torch.mm(a, b, out=out), device, 50)
    return 2 * side**3 / seconds / 1e9


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """PyTorch computes on `count` threads inside."""
    used = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(used)


def copy_bandwidth(device: torch.device) -> float:
    """Measure the fastest copy of 256 MiB, in GB/s: bytes read plus bytes written."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(lambda: target.copy_(source), device, 5) / 1e9


def launch_seconds(device: torch.device) -> float:
    """Measure what a GPU takes for a kernel that does nothing, many of them in a row."""
    with torch.cuda.device(device):
        return _fastest(lambda: torch.cuda._sleep(0), device, 20)


def _fastest(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    return min(time_interleaved({"": run}, device, repeats)[""].seconds)


def machine(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    """Describe what the numbers depend on.

    The limits of the machine, `peak_gflops` of the dtype, `copy_bandwidth` and on a GPU
    `launch_seconds`, are measured.
    """
    status = extension.status()
    described: dict[str, object] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "clock": choose_clock(device)[1],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "extension": status.state,
        "commit": _commit(),
    }
    if status.state == "loaded":
        described["instruction_set"] = extension.module().instruction_set()
        described["compiler"] = status.build["compiler"]
    if device.type == "cuda":
        described["clock"] = "CUDA events"
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
        described["cudnn"] = torch.backends.cudnn.version()
        described["cuda_extension"] = cuda.status().state
        described["tf32"] = cuda.allows_tf32()
        described["launch_us"] = round(1e6 * launch_seconds(device), 2)
    if device.type == "cpu":
        described["peak_gflops_one_thread"] = round(peak_gflops(device, dtype, 1), 1)
    described["peak_gflops"] = round(peak_gflops(device, dtype, torch.get_num_threads()), 1)
    described["copy_gb_per_s"] = round(copy_bandwidth(device), 1)
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_json(path: Path, header: Mapping[str, object], rows: Sequence[object]) -> None:
    """Write the machine and the rows, every round included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"machine": header, "results": rows}, indent=2) + "\n")
