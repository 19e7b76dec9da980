"""Processors that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from mkdext._system.cgroups import whole_processors

_THREADS = "OMP_NUM_THREADS"


def processors() -> int:
    """Processors that this process may use: by its affinity, and by the quota of its container."""
    return _within_quota(len(_affinity()))


def physical_cores() -> int:
    """As `processors`, with hyper-threads not counted where Linux tells them."""
    siblings = set()
    for cpu in _affinity():
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(file.read_text(encoding="utf-8") if file.exists() else str(cpu))
    return _within_quota(len(siblings))


def keep_to_quota() -> None:
    """Have libraries that are imported from now on start no more threads than the quota allows.

    They count the machine's cores, and a container that may use the time of two would be stopped
    most of the time with the threads of sixty. A number that the user has set stays.
    """
    quota = whole_processors()
    if quota is not None and quota < len(_affinity()) and not os.environ.get(_THREADS):
        os.environ[_THREADS] = str(quota)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _within_quota(count: int) -> int:
    return min(count, whole_processors() or count)
