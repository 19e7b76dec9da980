"""What every test may use, and the line of the pytest header that tells what is under test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mkdext
from mkdext._system import extension
from mkdext.models import convolutions, make_own, save_model
from mkdext.training import checks, setup

# Tensors as small as those of the tests are slower on several threads, and far slower where other
# processes want the cores. The variable is for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_report_header() -> str:
    status = extension.status()
    where = status.path if status.state == "loaded" else f"{status.state}: {status.reason}"
    return f"mkdext: {Path(mkdext.__file__).parent}\ncompiled operators: {where}"


_ESTIMATE, _MEASURE = setup.estimate_memory, checks.require_strong_teacher


@pytest.fixture(autouse=True, scope="session")
def _memory_is_not_estimated() -> Iterator[None]:
    """The dry computation takes longer than a training as small as those of the tests."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(setup, "estimate_memory", lambda *given: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _teachers_may_be_weak() -> Iterator[None]:
    """The teachers of most tests have random weights."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(checks, "require_strong_teacher", lambda *given: None)
        yield


@pytest.fixture
def teachers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is compared with bicubic after all."""
    monkeypatch.setattr(checks, "require_strong_teacher", _MEASURE)


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a step is estimated after all."""
    monkeypatch.setattr(setup, "estimate_memory", _ESTIMATE)


ESPCN = """
from torch import nn

class ESPCN(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 6, 3, padding=1),
                         nn.Tanh(), nn.Conv2d(6, 16, 3, padding=1), nn.PixelShuffle(4))
"""


@pytest.fixture(scope="session")
def own_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What makes a network that is not of the package, for Y at x4, and weights of it."""
    folder = tmp_path_factory.mktemp("own_network")
    (folder / "espcn_of_a_user.py").write_text(ESPCN)
    name, weights = f"{folder / 'espcn_of_a_user.py'}:ESPCN", folder / "espcn.safetensors"
    torch.manual_seed(0)
    save_model(weights, make_own(name, "`student`"), {"student": name, "scale": 4})
    return name, weights


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two small pictures with smooth and sharp parts, not to be changed."""
    folder = tmp_path_factory.mktemp("folders") / "photographs"
    folder.mkdir()
    y, x = np.mgrid[:64, :72]
    waves = np.stack([np.sin(x / 5), np.sin(y / 7), np.sin((x + y) / 3)], -1)
    smooth = (127 + 100 * waves).astype(np.uint8)
    Image.fromarray(smooth).save(folder / "smooth.png")
    Image.fromarray(np.where(x[..., None] > y[..., None], smooth, 255 - smooth)).save(
        folder / "sharp.png"
    )
    return folder


@pytest.fixture
def has_winograd(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """There are Winograd convolutions, whatever was compiled here; what patches them away again."""
    is_stock = False

    @contextlib.contextmanager
    def stock() -> Iterator[None]:
        nonlocal is_stock
        before, is_stock = is_stock, True
        yield
        is_stock = before

    monkeypatch.setattr(convolutions, "stock_convolutions", stock)
    monkeypatch.setattr(
        convolutions, "conv2d_algorithm", lambda *given: "stock" if is_stock else "winograd"
    )
    return monkeypatch


@pytest.fixture
def convolved(has_winograd: pytest.MonkeyPatch) -> list[str]:
    """What the operator is asked to take, "winograd" or "stock", at each call."""
    taken: list[str] = []

    convolve = convolutions.convolve

    def noted(*given: Any, **settings: Any) -> torch.Tensor:
        taken.append(convolutions.convolutions_on("cpu"))
        return convolve(*given, **settings)

    has_winograd.setattr(convolutions, "convolve", noted)
    return taken


@pytest.fixture(scope="session")
def library() -> Path:
    """The compiled library; the test is skipped where none was built, and fails if it is unfit."""
    status = extension.status()
    if status.state == "missing" and not extension.is_required():
        pytest.skip(f"{status.reason}: {status.fix}")
    assert status.state == "loaded", f"{status.reason}: {status.fix}"
    assert status.path is not None
    return status.path
