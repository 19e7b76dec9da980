from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mkdext.training import BUILTIN_DEMO, TrainOptions
from mkdext.training.memory import LiveBytes, available_bytes
from mkdext.training.options import MetaOptions, known_methods
from mkdext.training.plan import estimate_memory, make_networks


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


def estimate(options: TrainOptions) -> int:
    resolved = options.resolved()
    return estimate_memory(resolved, make_networks(resolved))


def test_the_estimate_grows_with_the_batch_and_the_patch():
    sizes = [
        estimate(dataclasses.replace(BUILTIN_DEMO, method="vanilla", **changes))
        for changes in ({}, {"batch_size": 16}, {"patch_size": 48})
    ]
    assert 1.8 < sizes[1] / sizes[0] < 2.1
    assert 3.5 < sizes[2] / sizes[0] < 4.1


@pytest.mark.parametrize("method", known_methods())
def test_every_method_has_an_estimate(method):
    options = TrainOptions(method=method, student="rcan-a", patch_size=8, train_dir=(Path(),))
    assert estimate(options) > 0


@pytest.mark.parametrize("mode", ["unrolled", "replayed"])
def test_what_many_inner_steps_take_is_reckoned_from_few(mode):
    def of(steps: int) -> TrainOptions:
        meta = MetaOptions(steps=steps, mode=mode)
        return dataclasses.replace(BUILTIN_DEMO, patch_size=8, meta=meta).resolved()

    options = of(8)
    computed = estimate_memory.__wrapped__(options, make_networks(options))
    assert estimate(options) == pytest.approx(computed, rel=1e-6)
    assert estimate(of(100_000_000)) > 10**11


def test_this_machine_tells_its_memory():
    assert available_bytes() is None or available_bytes() > 1e8


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes asked for are impossible"):
        estimate(dataclasses.replace(BUILTIN_DEMO, patch_size=2**40, method="vanilla"))
