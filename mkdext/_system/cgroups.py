"""Linux control groups: what a container, a job of a cluster or a service leaves a process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def memory_left(root: Path = ROOT) -> int | None:
    """The fewest bytes that a group of this process, or one above it, still gives; none: no limit.

    Args:
        root: Where `proc` and `sys` are.
    """
    left = []
    for group in _groups(root, "memory"):
        for limit_file, used_file, files in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                limit, used = (int(_read(group / name)) for name in (limit_file, used_file))
                kept = dict(line.split() for line in _read(group / "memory.stat").splitlines())
            except (OSError, ValueError):  # no such group or version, or "max"
                continue
            # What files keep in memory without need is given back when it is wanted.
            left.append(max(limit - used + int(kept.get(files, 0)), 0))
    return min(left, default=None)


def processor_quota(root: Path = ROOT) -> float | None:
    """Of how many processors the time may be used, by the tightest group; none: no limit.

    Args:
        root: Where `proc` and `sys` are.
    """
    quotas = []
    for group in _groups(root, "cpu"):
        try:
            quota, period = (int(number) for number in _read(group / "cpu.max").split())
        except (OSError, ValueError):  # no such group or version, or "max"
            try:
                quota = int(_read(group / "cpu.cfs_quota_us"))
                period = int(_read(group / "cpu.cfs_period_us"))
            except (OSError, ValueError):
                continue
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def whole_processors(root: Path = ROOT) -> int | None:
    """The quota, rounded up, as JVM and loky do; at least one; none: no limit."""
    quota = processor_quota(root)
    return None if quota is None else max(math.ceil(quota), 1)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all above it, in both versions of the system."""
    try:
        lines = _read(root / "proc/self/cgroup").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0" and not controllers:
            tops = (mounted, mounted / "unified")
        elif controller in controllers.split(","):
            tops = (mounted / controllers, mounted / controller)
        else:
            continue
        # Within a container the name may be that of the host, or lead above what is mounted.
        parts = [] if ".." in name.split("/") else [part for part in name.split("/") if part]
        for top in tops:
            for length in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:length])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
