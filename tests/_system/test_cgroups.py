"""Limits of control groups, of both versions and at any height, in a tree that stands for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mkdext._system import processors as used
from mkdext._system.cgroups import memory_left, processor_quota, whole_processors


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return root


def version_2(folder: str, limit: str) -> dict[str, str]:
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": "2000000",
        f"{folder}/memory.stat": "anon 900000\ninactive_file 600000",
    }


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    groups = {**version_2(f"{top}/jobs/one", "max"), **version_2(f"{top}/jobs", "5000000")}
    root = tree(tmp_path, "0::/jobs/one", groups)
    assert memory_left(root) == 3_600_000
    tree(root, "0::/jobs/one", version_2(f"{top}/jobs/one", "1000000"))
    assert memory_left(root) == 0
    quotas = {f"{top}/jobs/one/cpu.max": "max 100000", f"{top}/jobs/cpu.max": "250000 100000"}
    assert processor_quota(tree(root, "0::/jobs/one", quotas)) == 2.5
    assert whole_processors(root) == 3


def test_version_1_keeps_memory_and_time_apart(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    groups = "12:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/init.scope"
    files = {
        f"{top}/memory/slurm/job_7/memory.limit_in_bytes": "9223372036854771712",
        f"{top}/memory/slurm/job_7/memory.usage_in_bytes": "3000000",
        f"{top}/memory/slurm/job_7/memory.stat": "cache 1\ntotal_inactive_file 100000",
        f"{top}/memory/slurm/memory.limit_in_bytes": "4000000",
        f"{top}/memory/slurm/memory.usage_in_bytes": "3000000",
        f"{top}/memory/slurm/memory.stat": "total_inactive_file 100000",
        f"{top}/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "-1",
        f"{top}/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000",
        f"{top}/cpu,cpuacct/slurm/cpu.cfs_quota_us": "50000",
        f"{top}/cpu,cpuacct/slurm/cpu.cfs_period_us": "100000",
    }
    root = tree(tmp_path, groups, files)
    assert memory_left(root) == 1_100_000
    assert processor_quota(root) == 0.5
    assert whole_processors(root) == 1


@pytest.mark.parametrize("name", ["/docker/of_the_host", "/../../elsewhere"])
def test_within_a_container_the_mounted_group_counts(name: str, tmp_path: Path) -> None:
    files = {**version_2("sys/fs/cgroup", "3000000"), "sys/fs/cgroup/cpu.max": "100000 100000"}
    root = tree(tmp_path, f"0::{name}", files)
    assert memory_left(root) == 1_600_000
    assert processor_quota(root) == 1


def test_no_limit_is_told_as_such(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", {"sys/fs/cgroup/cpu.max": "max 100000"})
    assert memory_left(root) is None and whole_processors(root) is None
    assert memory_left(tmp_path / "nowhere") is None


def test_a_quota_bounds_processors_and_the_threads_of_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(used, "_affinity", lambda: set(range(64)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(used, "whole_processors", lambda: None)
    used.keep_to_quota()
    assert used.processors() == 64 and "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(used, "whole_processors", lambda: 3)
    assert used.processors() == 3 and used.physical_cores() <= 3
    used.keep_to_quota()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    used.keep_to_quota()
    assert os.environ["OMP_NUM_THREADS"] == "8"
