"""What `python -m mkdext.evaluate` measures on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mkdext.data import (
    BadImageError,
    ImagePairs,
    degradation_of,
    imresize,
    prepare_store,
    read_image,
)
from mkdext.evaluate import EvaluateCommand, photographs_of, read_levels, read_pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One photograph whose sides are no multiples of 4."""
    levels = np.random.default_rng(0).integers(0, 256, (50, 43, 3), np.uint8)
    (tmp_path / "high").mkdir()
    Image.fromarray(levels).save(tmp_path / "high" / "a.png")
    return tmp_path / "high"


def save(path: Path, image: torch.Tensor) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)


def photograph(folder: Path, low: Path | None = None, crop: bool = False) -> object:
    lr_dir = (low,) if low else ()
    command = EvaluateCommand(data=(folder,), lr_dir=lr_dir, crop=crop, out=folder.parent / "out")
    (found,) = photographs_of(command, 4)
    return found


def test_a_version_that_is_rounded_up_is_measured_on_with_crop(folder: Path) -> None:
    high = read_image(folder / "a.png")
    padded = torch.nn.functional.pad(high, (0, 1, 0, 2))
    given = imresize(padded, 1 / 4)
    save(folder.parent / "low" / "ax4.png", given)
    with pytest.raises(BadImageError, match=r"ax4\.png must be 10x12 pixels .* `crop` cuts both"):
        read_levels(photograph(folder, folder.parent / "low"), 4)
    low, cut = read_levels(photograph(folder, folder.parent / "low", crop=True), 4)
    assert low is not None
    assert torch.equal(low, given[:, :12, :10])
    assert torch.equal(cut, high[:, :48, :40])


def test_small_versions_beside_photographs_are_refused_or_given(folder: Path) -> None:
    (folder / "a.png").rename(folder / "a_HR.png")
    high = read_image(folder / "a_HR.png")[:, :48, :40]
    save(folder / "a_LR.png", imresize(high, 1 / 4))
    with pytest.raises(ValueError, match="holds low-resolution photographs too"):
        photograph(folder)
    low, cut = read_levels(photograph(folder, folder), 4)
    assert torch.equal(cut, high)
    assert low is not None
    assert torch.equal(low, imresize(high, 1 / 4))


def test_a_stored_photograph_that_has_changed_is_not_measured_on(folder: Path) -> None:
    store = prepare_store(folder, folder.parent / "store", scale=4, workers=1).folder
    read_levels(photograph(store), 4)
    pixels = bytearray((store / "pixels.u8").read_bytes())
    pixels[1000] ^= 1
    (store / "pixels.u8").write_bytes(pixels)
    with pytest.raises(BadImageError, match="has changed since it was written; delete the store"):
        read_levels(photograph(store), 4)


@pytest.mark.parametrize("name", ["area", "realesrgan"])
def test_photographs_are_degraded_as_a_training_measures_on_them(folder: Path, name: str) -> None:
    trained = ImagePairs([folder / "a.png"], 4, degradation=degradation_of(name))
    store = prepare_store(folder, folder.parent / "store", scale=4, workers=1).folder
    command = EvaluateCommand(data=(folder, store), degradation=name, out=folder.parent / "out")
    note = "area" if name == "area" else "realesrgan, fixed seed"
    for found, place in zip(photographs_of(command, 4), ("high", "store"), strict=True):
        assert found.set == f"{place} ({note})"
        low, high = read_pair(found, 4, "8bit")
        assert torch.equal((low * 255).round().byte(), trained[0][0])
        assert torch.equal(high, trained[0][1])


def test_given_versions_and_rounding_go_with_no_other_degradation(folder: Path) -> None:
    with pytest.raises(ValueError, match="--degradation area: --lr-dir has low-resolution"):
        EvaluateCommand(data=(folder,), lr_dir=(folder,), degradation="area")
    with pytest.raises(ValueError, match="--protocol must be 8bit with --degradation area"):
        EvaluateCommand(data=(folder,), protocol="float", degradation="area")
    save(
        folder.parent / "low" / "a.png", imresize(read_image(folder / "a.png")[:, :48, :40], 1 / 4)
    )
    low = folder.parent / "low"
    store = prepare_store(folder, folder.parent / "store", scale=4, lr=low, workers=1).folder
    command = EvaluateCommand(data=(store,), degradation="area", out=folder.parent / "out")
    with pytest.raises(ValueError, match=r"`degradation` area: store .* versions that were given"):
        photographs_of(command, 4)
