from __future__ import annotations

import types

import psutil
import pytest
import torch

from mkdext._system import memory
from mkdext._system.memory import LiveBytes, available_bytes, resident_bytes


@pytest.mark.parametrize(("left", "available"), [(None, 8000), (3000, 3000), (9000, 8000)])
def test_what_a_container_may_use_counts(left, available, monkeypatch):
    machine = types.SimpleNamespace(available=8000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(memory, "memory_left", lambda: left)
    assert available_bytes() == available


def test_the_peak_counts_what_lives_at_one_time():
    with LiveBytes() as counted:
        kept = torch.empty(1000, device="meta")
        for _ in range(3):
            passing = torch.empty(2000, device="meta")
            del passing
        view = kept[:10]
    assert counted.live == 4 * 1000
    assert counted.peak == 4 * 3000
    assert view.shape == (10,)


def test_a_backward_pass_keeps_its_activations():
    weight = torch.empty(64, 64, device="meta", requires_grad=True)
    with LiveBytes() as counted:
        x = torch.empty(100, 64, device="meta")
        for _ in range(5):
            x = torch.relu(x @ weight)
        forward = counted.live
        x.sum().backward()
    activation = 4 * 100 * 64
    assert forward == 6 * activation
    assert counted.peak > forward
    assert counted.live < forward


def test_this_machine_tells_its_memory():
    assert available_bytes() > 1e7
    assert 1e7 < resident_bytes() < 1e12
