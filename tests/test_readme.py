"""The Python examples of the README run as they stand, only shorter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_example_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("photographs", "holdout"):
        Path(name).mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (200, 208, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{name}/noise.png")
    names: dict[str, object] = {}
    exec(code.replace("iterations=20_000", "iterations=1, batch_size=1"), names)
    if "train(" in code:
        assert "dB" in capsys.readouterr().out
        assert isinstance(names["large"], torch.Tensor)
        assert names["large"].shape == (1, 3, 192, 192)


def test_there_are_python_examples():
    assert len(BLOCKS) == 3
