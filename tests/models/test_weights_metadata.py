"""Weights files that say what they are of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mkdext
from mkdext.models import (
    EDSR,
    VDSR,
    EDSRConfig,
    VDSRConfig,
    create_model,
    load_model,
    load_weights,
    read_metadata,
    read_weights,
    save_model,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def change(file: Path, **values: object) -> None:
    """Write other metadata to the same weights."""
    metadata = read_metadata(file)
    assert metadata is not None
    content = json.loads(metadata.to_json()) | values
    save_file(load_file(file), file, {"mkdext": json.dumps(content)})


def test_a_file_tells_all_that_one_must_know_of_it(file: Path) -> None:
    save_model(file, create_model("san-s", scale=3), {"method": "mkd", "steps": 20})
    metadata = read_metadata(file)
    assert metadata is not None
    assert (metadata.architecture, metadata.scale) == ("SAN", 3)
    assert metadata.config["reduction"] == 4
    assert (metadata.value_range, metadata.version) == ((0, 1), mkdext.__version__)
    assert metadata.origin == {"method": "mkd", "steps": 20}


def test_what_shapes_do_not_tell_comes_back(file: Path) -> None:
    trained = EDSR(EDSRConfig(blocks=2, features=8, residual_scale=0.3), scale=2)
    save_model(file, trained, {})
    model = load_model(file)
    assert model.config == trained.config
    lr = torch.rand(1, 3, 6, 5)
    assert torch.equal(model(lr), trained(lr))
    vdsr = VDSR(VDSRConfig(features=8, blocks=2), scale=3)
    save_model(file, vdsr, {})
    assert (load_model(file).scale, load_model(file, scale=2).scale) == (3, 2)


def test_the_bytes_depend_on_nothing_else(tmp_path: Path) -> None:
    model = create_model("rcan-a", scale=2)
    channels_last = create_model("rcan-a", scale=2).to(memory_format=torch.channels_last)
    channels_last.load_state_dict(model.state_dict())
    for name, version in (("a", model), ("b", channels_last)):
        save_model(tmp_path / name, version, {"steps": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_of_a_network_of_the_users_own_are_saved_without_architecture(file: Path) -> None:
    own = nn.Conv2d(3, 3, 3)
    save_model(file, own, {"steps": 1})
    metadata = read_metadata(file)
    assert metadata is not None and metadata.architecture is None
    load_weights(nn.Conv2d(3, 3, 3), read_weights(file))
    with pytest.raises(ValueError, match="no architecture that is known here"):
        load_model(file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_files_that_say_nothing_load_by_their_shapes(
    file: Path, metadata: dict[str, str] | None
) -> None:
    save_file(create_model("rcan-a", scale=2).state_dict(), file, metadata)
    assert read_metadata(file) is None
    assert load_model(file).scale == 2
    torch.save(create_model("edsr-s", scale=3).state_dict(), file)
    assert read_metadata(file) is None
    assert load_model(file).scale == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "RCAN"}, "the metadata say RCAN, the weights are of EDSR"),
        ({"scale": 4}, "the metadata say x4, the weights are for x2"),
        ({"config": {"blocks": 3, "features": 8}}, r"say EDSRConfig\(blocks=3, .* are of EDSRC"),
        ({"config": {"blocks": 2, "features": 16}}, r"metadata say EDSRConfig\(.*features=16"),
        ({"config": {"depth": 2}}, "impossible EDSR: .*depth"),
        ({"config": {"blocks": 0, "features": 8}}, "impossible EDSR: .*blocks must be at least 1"),
        ({"value_range": [0, 255]}, r"value range .* must be \(0\.0, 1\.0\), got \(0, 255\)"),
        ({"colour": "red"}, "metadata 'mkdext' are not those of this package"),
    ],
)
def test_metadata_that_contradict_the_weights_are_refused(
    file: Path, values: dict[str, object], message: str
) -> None:
    save_model(file, EDSR(EDSRConfig(blocks=2, features=8), scale=2), {})
    change(file, **values)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(file)
    assert str(caught.value).startswith(f"weights file {file}: ")


def test_metadata_that_are_no_json_are_refused(file: Path) -> None:
    save_file(create_model("edsr-s", scale=2).state_dict(), file, {"mkdext": "EDSR x2"})
    with pytest.raises(ValueError, match="its metadata 'mkdext' is not JSON"):
        load_model(file)


def test_a_network_asked_for_by_name_must_be_the_one_of_the_metadata(file: Path) -> None:
    save_model(file, EDSR(EDSRConfig(blocks=4, features=16, residual_scale=0.1), scale=2), {})
    with pytest.raises(ValueError, match=r"residual_scale=0\.1\), edsr-s is EDSRConfig"):
        load_model(file, name="edsr-s")
