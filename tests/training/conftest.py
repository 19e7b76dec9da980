"""Small options, so that a training takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def flags(photographs: Path) -> list[str]:
    """Flags of a meta knowledge distillation of seconds."""
    return [
        *("--train-dir", str(photographs), "--val-dir", str(photographs)),
        *("--iterations", "12", "--batch-size", "2", "--patch-size", "8", "--mkd.grid", "2"),
        *("--meta.every", "2", "--validate-every", "6", "--checkpoint-every", "3"),
        *("--log-every", "1", "--method", "mkd"),
    ]
