"""A small teacher and flags of a data-free training of a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mkdext.models import RCAN, VDSR, RCANConfig, VDSRConfig, save_model


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of untrained teachers, an RCAN for x2 and a VDSR, by their names."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(5)
    networks = {
        "rcan": RCAN(RCANConfig(groups=4, blocks=1, features=4, reduction=2), scale=2),
        "vdsr": VDSR(VDSRConfig(features=4, blocks=4), scale=2),
    }
    paths = {name: folder / f"{name}.safetensors" for name in networks}
    for name, network in networks.items():
        save_model(paths[name], network, {})
    return paths


@pytest.fixture(scope="session")
def flags(photographs: Path, teachers: dict[str, Path]) -> list[str]:
    """Flags of a training of seconds, with everything that there is."""
    return [
        *("--teacher-weights", str(teachers["rcan"]), "--scale", "2", "--patch-size", "8"),
        *("--val-dir", str(photographs), "--iterations", "12", "--batch-size", "2"),
        *("--generator.every", "2", "--stages", "2", "--validate-every", "4", "--log-every", "1"),
        *("--checkpoint-every", "5", "--contrastive.bank-bytes", "2000"),
    ]
