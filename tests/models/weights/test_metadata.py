"""Weights files that say what they are of."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mkdext
from mkdext.models import (
    EDSR,
    RCAN,
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
    with pytest.raises(ValueError, match="no architecture that mkdext knows"):
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
        ({"config": {"blocks": 10**9, "features": 8}}, r"say EDSRConfig\(blocks=1000000000, "),
        ({"config": {"blocks": 2, "features": 10**12}}, r"say EDSRConfig\(.*features=10000000000"),
        ({"config": {"blocks": 2.0, "features": 8}}, "blocks must be a whole number, got 2.0"),
        ({"config": {"blocks": True, "features": 8}}, "blocks must be a whole number, got True"),
        ({"config": {"blocks": 2, "features": "8"}}, "features must be a whole number, got '8'"),
        ({"config": {"blocks": 2, "features": 8, "residual_scale": "1"}}, "must be a number, got"),
        ({"config": {"blocks": 2, "features": 8, "residual_scale": 10**400}}, "must be finite"),
        ({"config": [2, 8]}, "'config' must be of type dict, got list"),
        ({"scale": 2.0}, "'scale' must be of type int, got float"),
        ({"scale": 10**9}, "'scale' must be 1 to 64, got 1000000000"),
        ({"architecture": 5}, "'architecture' must be of type str, got int"),
        ({"architecture": "E" * 10**6}, r"the metadata say E{80}\.\.\., the weights are of EDSR"),
        ({"origin": ["train"]}, "'origin' must be of type dict, got list"),
        ({"origin": None}, "'origin' must be of type dict, got NoneType"),
        ({"version": 1}, "'version' must be of type str, got int"),
        ({"value_range": None}, "'value_range' must be of type list, got NoneType"),
        ({"value_range": ["x" * 10**6]}, r"must be \(0\.0, 1\.0\), got \('xxx"),
        ({"state": {"packed": ["head.0.bias"]}}, "its metadata: 'head.0.bias' is damaged"),
        ({"state": {"packed": ["tail"]}}, "its metadata tell of 'tail', which is not there"),
        ({"state": {"versions": [1]}}, "'versions' must be of type dict, got list"),
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


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "x" * 10**7, '"RCAN"'])
def test_metadata_of_any_depth_and_length_are_refused_in_a_sentence(file: Path, text: str) -> None:
    save_file(create_model("edsr-s", scale=2).state_dict(), file, {"mkdext": text})
    with pytest.raises(ValueError, match="its metadata 'mkdext' ") as caught:
        load_model(file)
    assert len(str(caught.value)) < len(str(file)) + 200


def test_an_origin_holds_whatever_names_files_can_have_and_is_json(file: Path) -> None:
    folder = os.fsdecode(b"fotos \xff\xe9")
    save_model(file, create_model("edsr-s", scale=2), {"train_dir": [folder], "psnr": float("nan")})
    metadata = read_metadata(file)
    assert metadata is not None and metadata.origin == {"train_dir": [folder], "psnr": None}


class Changed(EDSR):
    """A user's network that computes something else with the same weights."""

    def super_resolve(self, lr: torch.Tensor) -> torch.Tensor:
        return super().super_resolve(lr).square()


def test_a_network_of_this_package_that_a_factory_made_says_what_it_is(file: Path) -> None:
    origin = {"student": "/nets/own.py:make", "scale": 4}
    tuned = create_model("rcan-a", scale=4)
    save_model(file, tuned, origin)
    loaded = load_model(file)
    assert isinstance(loaded, RCAN) and (loaded.config, loaded.scale) == (tuned.config, 4)
    replaced = create_model("edsr-s", scale=2)
    replaced.body[0].body[1] = nn.GELU()
    pruned = create_model("edsr-s", scale=2)
    pruned.tail.append(nn.Conv2d(3, 3, 1))
    for model in (replaced, pruned, Changed(EDSRConfig(1, 8), 2), nn.Sequential(tuned)):
        save_model(file, model, origin)
        with pytest.raises(ValueError, match="of your own network at x4; name what makes it"):
            load_model(file)


def test_a_network_asked_for_by_name_must_be_the_one_of_the_metadata(file: Path) -> None:
    save_model(file, EDSR(EDSRConfig(blocks=4, features=16, residual_scale=0.1), scale=2), {})
    with pytest.raises(ValueError, match=r"residual_scale=0\.1\), edsr-s is EDSRConfig"):
        load_model(file, name="edsr-s")
