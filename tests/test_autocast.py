"""Autocast as the operators see it within torch.compile, for devices that need not be there."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mkdext.ops._dispatch import is_autocast


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "mps"])
def test_autocast_of_every_kind_of_device_is_seen(device, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    with FakeTensorMode():
        tensor = torch.empty(1, device=device)
    before = torch.is_autocast_enabled(device)
    for enabled in (True, False):
        torch.set_autocast_enabled(device, enabled)
        try:
            assert is_autocast(tensor) == enabled
        finally:
            torch.set_autocast_enabled(device, before)


@pytest.mark.parametrize("compiling", [False, True])
def test_a_device_without_autocast_has_none(compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert not is_autocast(torch.empty(1, device="meta"))
