"""The tests of the operators run against the compiled kernels.

Only where no compiler was there, so that nothing was built and nobody required it, do they run on
the plain PyTorch fallback; a binary that is stale or does not load is a failure.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from mkdext._system import extension


@pytest.fixture(autouse=True, scope="session")
def operators() -> None:
    status = extension.status()
    if status.state == "missing" and not extension.is_required():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", extension.ExtensionWarning)
            extension.available()
        return
    assert status.state == "loaded", f"{status.reason}: {status.fix}"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Restore the number of threads after a test that changes it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
