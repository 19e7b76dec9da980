"""Small photographs and options, so that a training takes a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
def flags(photographs: Path) -> list[str]:
    """Flags of a meta knowledge distillation of seconds."""
    return [
        *("--train-dir", str(photographs), "--val-dir", str(photographs)),
        *("--iterations", "12", "--batch-size", "2", "--patch-size", "8", "--mkd.grid", "2"),
        *("--meta.every", "2", "--validate-every", "6", "--checkpoint-every", "3"),
        *("--log-every", "1"),
    ]
