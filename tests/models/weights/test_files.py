from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mkdext.models import (
    EDSR,
    HAN,
    MODEL_NAMES,
    RCAN,
    EDSRConfig,
    HANConfig,
    RCANConfig,
    SRNetwork,
    create_model,
    load_model,
    load_weights,
    read_weights,
)
from mkdext.models.registry import recognise

SMALL = RCANConfig(groups=2, blocks=3, features=8, reduction=4)


def official_weights(config: RCANConfig, scale: int) -> dict[str, Tensor]:
    """A state dict with the names and shapes of the official RCAN code."""
    c, squeeze = config.features, config.features // config.reduction
    shapes: dict[str, tuple[int, int, int]] = {"head.0": (c, 3, 3)}
    for g in range(config.groups):
        for b in range(config.blocks):
            block = f"body.{g}.body.{b}.body"
            shapes[f"{block}.0"] = shapes[f"{block}.2"] = (c, c, 3)
            shapes[f"{block}.3.conv_du.0"] = (squeeze, c, 1)
            shapes[f"{block}.3.conv_du.2"] = (c, squeeze, 1)
        shapes[f"body.{g}.body.{config.blocks}"] = (c, c, 3)
    shapes[f"body.{config.groups}"] = (c, c, 3)
    factor, stages = {2: (2, 1), 3: (3, 1), 4: (2, 2), 8: (2, 3)}[scale]
    for stage in range(stages):
        shapes[f"tail.0.{2 * stage}"] = (factor**2 * c, c, 3)
    shapes["tail.1"] = (3, c, 3)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, (out, into, size) in shapes.items():
        weights[f"{name}.weight"] = torch.randn(out, into, size, size, generator=generator)
        weights[f"{name}.bias"] = torch.randn(out, generator=generator)
    return weights | colour_shifts(255, (0.5, 0.4, 0.3), (0.9, 1.0, 1.1))


def colour_shifts(
    white: float, mean: tuple[float, ...] = (0.4488, 0.4371, 0.4040), deviation: object = (1, 1, 1)
) -> dict[str, Tensor]:
    """The layers that take a mean colour away and put it back, as the official code has them."""
    shifts = {}
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        std = torch.tensor(deviation)
        shifts[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1) / std.view(3, 1, 1, 1)
        shifts[f"{name}.bias"] = sign * white * torch.tensor(mean) / std
    return shifts


def basicsr_weights(weights: dict[str, Tensor], config: RCANConfig) -> dict[str, Tensor]:
    """The same weights with the names of BasicSR, which keeps no mean."""
    names = {
        "head.0": "conv_first",
        "tail.1": "conv_last",
        f"body.{config.groups}": "conv_after_body",
    }
    names |= {f"tail.0.{i}": f"upsample.{i}" for i in (0, 2, 4)}
    for g in range(config.groups):
        names[f"body.{g}.body.{config.blocks}"] = f"body.{g}.conv"
        for b in range(config.blocks):
            ours, theirs = f"body.{g}.body.{b}.body", f"body.{g}.residual_group.{b}.rcab"
            names |= {f"{ours}.{i}": f"{theirs}.{i}" for i in (0, 2)}
            names[f"{ours}.3.conv_du.0"] = f"{theirs}.3.attention.1"
            names[f"{ours}.3.conv_du.2"] = f"{theirs}.3.attention.3"
    split = ((*name.rsplit(".", 1), tensor) for name, tensor in weights.items())
    return {f"{names[m]}.{kind}": t for m, kind, t in split if not m.endswith("_mean")}


def assert_same(model: nn.Module, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in state)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_official_weights_of_every_scale_load_with_their_own_means(file: Path, scale: int) -> None:
    weights = official_weights(SMALL, scale)
    torch.save(weights, file)
    model = load_model(file)
    assert isinstance(model, RCAN)
    assert (model.config, model.scale) == (SMALL, scale)
    assert_same(model, weights)
    assert model(torch.rand(1, 3, 4, 5)).shape == (1, 3, 4 * scale, 5 * scale)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_named_network_is_recognised_from_its_weights(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, scale=4)
    assert isinstance(model, SRNetwork)
    found = recognise(model.state_dict())
    scale = None if name.startswith("vdsr") else 4
    assert found == (type(model), model.config, scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["rcan-a", "edsr-s", "rdn-s", "san-s", "han-s", "imdn-s", "vdsr-half"]
)
@pytest.mark.parametrize("scale", [2, 3])
def test_every_student_comes_back_from_a_file(file: Path, name: str, scale: int) -> None:
    trained = create_model(name, scale)
    save_file(trained.state_dict(), file)
    for model in (load_model(file, scale), load_model(file, scale, name)):
        assert type(model) is type(trained) and model.scale == scale
        assert_same(model, trained.state_dict())
    with pytest.raises(ValueError, match=r"the checkpoint is .*, the network is "):
        load_model(file, scale, "rcan-t" if name == "rcan-a" else "rcan-a")


@pytest.mark.parametrize("scale", [3, 4])
def test_weights_with_the_names_of_basicsrs_rcan_load_with_the_mean_of_div2k(
    file: Path, scale: int
) -> None:
    weights = official_weights(SMALL, scale) | colour_shifts(255)
    basicsr = basicsr_weights(weights, SMALL)
    torch.save({"params": basicsr}, file)
    assert_same(load_model(file), weights)
    model = RCAN(SMALL, scale)
    load_weights(model, basicsr)
    assert_same(model, weights)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_weights_with_the_names_of_basicsrs_edsr_load_with_the_mean_of_div2k(
    file: Path, scale: int
) -> None:
    weights = EDSR(EDSRConfig(blocks=3, features=8), scale).state_dict() | colour_shifts(255)
    names = {"head.0": "conv_first", "body.3": "conv_after_body", "tail.1": "conv_last"}
    names |= {f"tail.0.{i}": f"upsample.{i}" for i in (0, 2)}
    names |= {f"body.{i}.body.{j}": f"body.{i}.conv{1 + j // 2}" for i in range(3) for j in (0, 2)}
    split = ((*name.rsplit(".", 1), tensor) for name, tensor in weights.items())
    basicsr = {f"{names[m]}.{kind}": t for m, kind, t in split if not m.endswith("_mean")}
    torch.save({"params_ema": basicsr}, file)
    assert_same(load_model(file), weights)


def test_wide_edsr_weights_make_a_network_that_scales_its_residuals(file: Path) -> None:
    for features, residual_scale in ((256, 0.1), (64, 1.0)):
        trained = EDSR(EDSRConfig(blocks=1, features=features), scale=2)
        torch.save(trained.state_dict(), file)
        assert load_model(file).config == EDSRConfig(1, features, residual_scale)


def test_weights_in_half_precision_become_float32(file: Path) -> None:
    weights = {name: w.half() for name, w in official_weights(SMALL, 2).items()}
    torch.save(weights, file)
    assert_same(load_model(file), {name: w.float() for name, w in weights.items()})


def test_loading_leaves_the_random_generator_alone(file: Path) -> None:
    torch.save(official_weights(SMALL, 2), file)
    before = torch.get_rng_state()
    load_model(file)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_format_is_told_from_the_content(tmp_path: Path) -> None:
    weights = {"a": torch.rand(2, 3), "b": torch.arange(3)}
    save_file(weights, tmp_path / "safetensors.pt")
    torch.save(weights, tmp_path / "zip.safetensors")
    torch.save(weights, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        read = read_weights(path)
        assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_a_safetensors_header_of_any_length_is_recognised(file: Path) -> None:
    for length in range(1, 200):
        save_file({"n" * length: torch.ones(1)}, file)
        assert list(read_weights(file)) == ["n" * length]


@pytest.mark.parametrize("key", ["params_ema", "params", "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_are_removed(file: Path, key: str, prefix: str) -> None:
    torch.save({"epoch": 3, key: {f"{prefix}a": torch.ones(1), f"{prefix}b": torch.ones(2)}}, file)
    assert list(read_weights(file)) == ["a", "b"]


def test_averaged_weights_are_preferred(file: Path) -> None:
    torch.save({"params": {"a": torch.zeros(1)}, "params_ema": {"a": torch.ones(1)}}, file)
    assert read_weights(file)["a"] == 1


def test_a_prefix_that_only_some_names_have_belongs_to_the_network(file: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, file)
    assert list(read_weights(file)) == ["module.a", "b"]


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        """Remember which file."""
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        """What the unpickler shall call."""
        return os.system, (f"touch '{self.victim}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 0", "protocol 2", "protocol 4"])
def test_code_in_a_pickle_is_never_executed(file: Path, tmp_path: Path, form: str) -> None:
    victim = tmp_path / "executed"
    content = {"state_dict": {"a": torch.ones(1)}, "extra": Malicious(victim)}
    if form.startswith("protocol"):
        file.write_bytes(pickle.dumps(Malicious(victim), protocol=int(form[-1])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
        read_weights(file)
    assert not victim.exists()
    if form != "protocol 0":
        assert "could execute code, so it was not loaded; save the tensors alone" in str(
            caught.value
        )
    if form in ("zip", "legacy"):
        assert "asks for posix.system" in str(caught.value)


class Mine(nn.Conv2d):
    """A network that only its own code knows."""


def test_a_whole_pickled_network_is_read_if_torch_has_it_else_refused_with_the_fix(
    file: Path,
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU())
    network.register_buffer("grid", torch.ones(1), persistent=False)
    torch.save(network, file)
    weights = read_weights(file)
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], t) for name, t in network.state_dict().items())
    torch.save(Mine(1, 1, 1), file)
    with pytest.raises(ValueError, match=r"asks for \S*\.Mine, .*state_dict"):
        read_weights(file)


def test_a_missing_file_or_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pt does not exist"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a directory"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_an_empty_file_and_a_text_file_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.touch()
    with pytest.raises(ValueError, match=rf"{path} is empty"):
        read_weights(path)
    path.write_text("<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(ValueError, match=rf"{path} is neither .* it begins with b'<!DOCTYPE html"):
        read_weights(path)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_cut_off_anywhere_is_refused_in_one_line(file: Path, form: str) -> None:
    weights = {"a": torch.rand(4, 3), "b": torch.rand(5)}
    if form == "safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=form == "zip")
    whole = file.read_bytes()
    for end in {1, 4, 9, 12, 30, *range(40, len(whole), 37), len(whole) - 1}:
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=re.escape(f"weights file {file}")) as caught:
            read_weights(file)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(file)) + 250


def test_a_torchscript_archive_is_refused(file: Path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(nn.ReLU()), str(file))
    with pytest.raises(ValueError, match=re.escape(f"weights file {file}")):
        read_weights(file)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([torch.ones(1)], "got a list"),
        (torch.ones(1), "got a Tensor"),
        ({}, "got a dictionary of "),
        ({"epoch": 3, "lr": 1e-4}, "got a dictionary of epoch, lr;"),
        ({1: torch.ones(1)}, "got a dictionary of 1;"),
        ({"state_dict": {}}, "got a dictionary of "),
    ],
)
def test_a_file_without_a_state_dict_is_refused(file: Path, content: object, got: str) -> None:
    torch.save(content, file)
    with pytest.raises(ValueError, match=f"must hold a state dict.*{got}"):
        read_weights(file)


def test_a_safetensors_file_without_tensors_is_refused(file: Path) -> None:
    save_file({}, file)
    with pytest.raises(ValueError, match="holds no tensor"):
        read_weights(file)


def test_missing_unexpected_and_misshapen_weights_are_all_listed_and_nothing_is_loaded() -> None:
    model = RCAN(SMALL, scale=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = official_weights(SMALL, 2)
    del weights["head.0.bias"], weights["body.1.body.3.weight"]
    weights["extra"] = torch.ones(1)
    weights["tail.1.bias"] = torch.ones(4)
    weights["body.2.bias"] = torch.ones(8, dtype=torch.complex64)
    with pytest.raises(ValueError) as caught:
        load_weights(model, weights)
    assert str(caught.value) == (
        "the weights do not fit the network: 2 missing (head.0.bias, body.1.body.3.weight); "
        "1 unexpected (extra); 1 of a wrong shape (tail.1.bias is [4], must be [3]); "
        "1 of a wrong kind of number (body.2.bias is torch.complex64, must be torch.float32); "
        "give weights of this network, or name the network that they are of"
    )
    assert_same(model, before)


def test_only_the_first_ten_names_are_listed() -> None:
    with pytest.raises(ValueError, match=r"30 unexpected \(x0, .*, x9, \.\.\. 30 in all\);"):
        load_weights(nn.ReLU(), {f"x{i}": torch.ones(1) for i in range(30)})


@pytest.mark.parametrize(("has", "wants"), [(2, 4), (4, 2), (3, 2), (2, 3), (8, 4)])
def test_weights_of_another_scale_say_so(file: Path, has: int, wants: int) -> None:
    torch.save(official_weights(SMALL, has), file)
    reason = f"the checkpoint is for x{has}, the network is x{wants};"
    with pytest.raises(ValueError, match=reason):
        load_weights(RCAN(SMALL, wants), read_weights(file))
    with pytest.raises(ValueError, match=f"^weights file {file}: .*{reason}"):
        load_model(file, scale=wants)


def test_weights_of_another_size_than_the_name_asked_for_say_so(file: Path) -> None:
    torch.save(official_weights(SMALL, 4), file)
    with pytest.raises(ValueError, match=r"checkpoint is RCANConfig\(groups=2, .* the network is "):
        load_model(file, name="rcan-a")
    with pytest.raises(ValueError, match="did you mean rcan-a"):
        load_model(file, name="rcan_a")


def test_weights_of_another_network_of_the_package_say_so(file: Path) -> None:
    han = HAN(HANConfig(groups=2, blocks=3, features=8, reduction=4), scale=2)
    with pytest.raises(ValueError, match="the checkpoint is of HAN, the network is RCAN; 8 unexp"):
        load_weights(RCAN(SMALL, 2), han.state_dict())
    with pytest.raises(ValueError, match="the checkpoint is of RCAN, the network is HAN; 8 missi"):
        load_weights(han, official_weights(SMALL, 2))
    torch.save(han.state_dict(), file)
    with pytest.raises(ValueError, match="the checkpoint is of HAN, the network is EDSR; "):
        load_model(file, name="edsr-s")


def test_weights_that_fit_nothing_say_which_network_is_nearest(file: Path) -> None:
    weights = official_weights(SMALL, 4)
    torch.save({n: w for n, w in weights.items() if not n.startswith("tail.")}, file)
    with pytest.raises(ValueError, match="knows; nearest is RCAN, with 14 of its 18 kinds of weig"):
        load_model(file)
    for name, keys in {
        "RDN": ["SFENet1.weight", "RDBs.3.convs.1.conv.0.weight", "RDBs.3.LFF.bias"],
        "SAN": ["head.0.weight", "RG.7.soca.conv_du.0.weight", "RG.7.conv_last.bias"],
        "EDSR": ["head.0.weight", "body.0.body.0.weight", "tail.1.weight"],
        "VDSR": ["luma.input.weight"],
    }.items():
        torch.save({key: torch.ones(1) for key in keys}, file)
        with pytest.raises(
            ValueError, match=rf"mkdext knows; nearest is {name}, with {len(keys)} of"
        ):
            load_model(file)
    torch.save({"conv1.weight": torch.ones(1)}, file)
    with pytest.raises(
        ValueError, match=r"mkdext knows; it holds conv1\.weight; name what .*`model`"
    ):
        load_model(file)
    with pytest.raises(ValueError, match=r"another architecture, 0 of 66 names are the same"):
        load_weights(RCAN(SMALL, 4), read_weights(file))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["rcan-a", "edsr-s", "rdn-s", "san-s", "han-s", "imdn-s", "vdsr-half"]
)
@pytest.mark.parametrize("shape", [(), (0, 0, 3, 3)])
def test_a_weight_of_an_impossible_shape_never_gets_further(
    name: str, shape: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        model = create_model(name, scale=2)
        broken = torch.empty(shape)
    weights = model.state_dict()
    for key in weights:
        with pytest.raises(ValueError, match="do not fit"):
            load_weights(model, weights | {key: broken})


def test_weights_of_an_impossible_shape_are_refused(file: Path) -> None:
    weights = official_weights(SMALL, 4)
    for name, shape in {
        "head.0.weight": (),
        "tail.0.0.weight": (),
        "body.0.body.0.body.3.conv_du.0.weight": (0, 8, 1, 1),
        "body.1.body.0.body.0.weight": (10**5, 3),
    }.items():
        torch.save(weights | {name: torch.zeros(shape)}, file)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load_model(file)


def test_a_group_that_is_missing_is_listed_and_not_taken_for_a_smaller_network(file: Path) -> None:
    weights = official_weights(RCANConfig(groups=3, blocks=1, features=4, reduction=2), 2)
    torch.save({n: w for n, w in weights.items() if not n.startswith("body.1.")}, file)
    with pytest.raises(ValueError, match=r"missing \(body\.1\.body\.0"):
        load_model(file)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_in_the_network_are_refused(bad: float) -> None:
    weights = official_weights(SMALL, 2)
    weights["head.0.bias"] = torch.full((8,), bad, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"1 weights hold NaN or infinite numbers \(head\.0\.bias"):
        load_weights(RCAN(SMALL, 2), weights)


def test_buffers_count_as_weights() -> None:
    trained, model = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    trained(torch.rand(2, 3, 4, 4))
    load_weights(model, trained.state_dict())
    assert_same(model, trained.state_dict())
