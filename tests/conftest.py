"""What every test may use, and the line of the pytest header that tells what is under test."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mkdext
from mkdext import _extension

# Tensors as small as those of the tests are slower on several threads, and far slower where other
# processes want the cores. The variable is for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_report_header() -> str:
    status = _extension.status()
    where = status.path if status.state == "loaded" else f"{status.state}: {status.reason}"
    return f"mkdext: {Path(mkdext.__file__).parent}\ncompiled operators: {where}"


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


@pytest.fixture(scope="session")
def library() -> Path:
    """The compiled library; the test is skipped where none was built, and fails if it is unfit."""
    status = _extension.status()
    if status.state == "missing" and not _extension.is_required():
        pytest.skip(f"{status.reason}: {status.fix}")
    assert status.state == "loaded", f"{status.reason}: {status.fix}"
    assert status.path is not None
    return status.path
