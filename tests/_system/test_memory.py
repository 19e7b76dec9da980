from __future__ import annotations

import torch

from mkdext._system.memory import LiveBytes, available_bytes


def test_what_a_container_may_use_counts(tmp_path):
    group = tmp_path / "sys/fs/cgroup/jobs/one"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  8000 kB\n")
    assert available_bytes(tmp_path) == 8_192_000
    (tmp_path / "proc/self/cgroup").write_text("0::/jobs/one\n")
    for folder, limit in ((group, "max"), (group.parent, "5000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("2000000\n")
        (folder / "memory.stat").write_text("anon 900000\ninactive_file 600000\n")
    assert available_bytes(tmp_path) == 3_600_000
    (group / "memory.max").write_text("1000000\n")
    assert available_bytes(tmp_path) == 0
    assert available_bytes(tmp_path / "nowhere") is None


def test_the_peak_counts_what_lives_at_one_time():
    with LiveBytes() as memory:
        kept = torch.empty(1000, device="meta")
        for _ in range(3):
            passing = torch.empty(2000, device="meta")
            del passing
        view = kept[:10]
    assert memory.live == 4 * 1000
    assert memory.peak == 4 * 3000
    assert view.shape == (10,)


def test_a_backward_pass_keeps_its_activations():
    weight = torch.empty(64, 64, device="meta", requires_grad=True)
    with LiveBytes() as memory:
        x = torch.empty(100, 64, device="meta")
        for _ in range(5):
            x = torch.relu(x @ weight)
        forward = memory.live
        x.sum().backward()
    activation = 4 * 100 * 64
    assert forward == 6 * activation
    assert memory.peak > forward
    assert memory.live < forward


def test_this_machine_tells_its_memory():
    assert available_bytes() is None or available_bytes() > 1e8
