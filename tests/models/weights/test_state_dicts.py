"""Weights as training programs keep them: under other names, with prefixes, beside others."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mkdext.models import (
    EDSR,
    RCAN,
    EDSRConfig,
    RCANConfig,
    load_model,
    load_weights,
    load_weights_file,
    read_weights,
)

Weights = dict[str, Tensor]


def edsr(seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    return EDSR(EDSRConfig(blocks=1, features=8), scale=2).state_dict()


def mine(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 3, 1))


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def discriminator() -> Weights:
    return {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.ones(4)}


FORMS: dict[str, Callable[[Weights], Any]] = {
    "Lightning": lambda w: {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.5",
        "state_dict": under("model.", w),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'psnr'}": {"best_model_score": torch.ones(())}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 1e-4, "betas": (0.9, 0.999)},
    },
    "Lightning with its parts": lambda w: {
        "state_dict": {
            **under("net.", w),
            **under("discriminator.", discriminator()),
            **under("perceptual_loss.vgg.", discriminator()),
            "criterion.weight": torch.ones(3),
            "val_psnr.total": torch.ones(()),
        }
    },
    "criterion beside": lambda w: {"state_dict": {**w, "criterion.weight": torch.ones(3)}},
    "arguments": lambda w: {"args": argparse.Namespace(out=Path("x"), lr=1e-4), "model": w},
    "numbers of numpy": lambda w: {
        "psnr": np.float64(30.5),
        "curve": np.arange(3.0),
        "when": datetime(2024, 1, 1),
        "state_dict": w,
    },
    "epoch beside": lambda w: {**w, "epoch": 3},
    "generator": lambda w: {"generator": w, "discriminator": discriminator()},
    "params-ema": lambda w: {"params-ema": w},
    "g in model": lambda w: {"model": {"g": w, "d": discriminator()}},
    "net_g": lambda w: {"iter": 5, "net_g": w, "net_d": discriminator()},
    "netG.": lambda w: under("netG.", w),
    "mmediting": lambda w: {
        "meta": {"iter": 5},
        "state_dict": {
            **under("generator.", w),
            **under("discriminator.", discriminator()),
            "step_counter": torch.zeros(1),
        },
    },
    "timm": lambda w: {"state_dict": {n: t + 1 for n, t in w.items()}, "state_dict_ema": w},
    "AveragedModel": lambda w: {"ema": {**under("module.", w), "n_averaged": torch.tensor(9)}},
    "ema-pytorch": lambda w: {
        **under("online_model.", {n: t + 1 for n, t in w.items()}),
        **under("ema_model.", w),
        "initted": torch.tensor(True),
        "step": torch.tensor(4),
    },
    "g_ema": lambda w: {"g": {n: t + 1 for n, t in w.items()}, "g_ema": w, "d": discriminator()},
    "generator_ema.": lambda w: {
        "state_dict": under("generator.", {n: t + 1 for n, t in w.items()})
        | under("generator_ema.", w)
    },
    "compiled, parallel, in Lightning": lambda w: {
        "state_dict": under("model._orig_mod.module.", w)
    },
    "wrapped often": lambda w: {"checkpoint": {"model": {"state_dict": under("module.", w)}}},
    "twice the same": lambda w: {"best": w, "last": {n: t.clone() for n, t in w.items()}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_found_in_what_training_programs_keep(
    form: str, legacy: bool, tmp_path: Path
) -> None:
    file = tmp_path / "weights.ckpt"
    torch.save(FORMS[form](edsr()), file, _use_new_zipfile_serialization=not legacy)
    loaded = load_model(file).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in edsr().items())
    torch.save(FORMS[form](mine().state_dict()), file, _use_new_zipfile_serialization=not legacy)
    own = mine(1)
    load_weights_file(own, file)
    assert all(torch.equal(own.state_dict()[n], t) for n, t in mine().state_dict().items())


@pytest.mark.parametrize("names", [("best", "last"), ("student.", "teacher."), ("a_ema", "b_ema")])
def test_two_networks_of_which_any_could_be_meant_are_refused(
    names: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "two.pt"
    first, second = names
    if first.endswith("."):
        torch.save({"state_dict": under(first, edsr(0)) | under(second, edsr(1))}, file)
    else:
        torch.save({first: edsr(0), second: edsr(1)}, file)
    for load in (load_model, lambda path: load_weights_file(EDSR(EDSRConfig(1, 8), 2), path)):
        with pytest.raises(ValueError, match="holds several networks that fit, under") as caught:
            load(file)
        message = str(caught.value)
        assert message.startswith(f"weights file {file}: ")
        assert repr(first) in message and repr(second) in message and "torch.save(" in message
    line = re.search(r"torch\.save\(.*, NEW\)", message)
    assert line is not None
    exec(line[0], {"torch": torch, "FILE": file, "NEW": tmp_path / "one.pt"})
    loaded = load_model(tmp_path / "one.pt").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in edsr(0).items())


def test_what_is_asked_for_chooses_among_several(tmp_path: Path) -> None:
    file = tmp_path / "several.pt"
    small = RCAN(RCANConfig(groups=4, blocks=1, features=16), scale=4)
    large = RCAN(RCANConfig(groups=4, blocks=4, features=16), scale=4)
    other = RCAN(RCANConfig(groups=4, blocks=1, features=16), scale=2)
    torch.save({"a": small.state_dict(), "b": large.state_dict(), "c": other.state_dict()}, file)
    assert load_model(file, scale=2).scale == 2
    assert load_model(file, scale=4, name="rcan-b").config == large.config
    with pytest.raises(ValueError, match="several networks"):
        load_model(file, scale=4)
    load_weights_file(large, file)


def test_a_part_of_another_network_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    weights = under("body.", mine().state_dict()) | {"refine.weight": torch.ones(3)}
    with pytest.raises(ValueError, match="another architecture, 0 of 4 names"):
        load_weights(mine(), weights)
    with pytest.raises(ValueError, match=r"1 unexpected \(refine\.weight\)"):
        load_weights(mine(), mine().state_dict() | {"refine.weight": torch.ones(3)})


def test_a_file_of_nothing_that_fits_says_what_is_where(tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    torch.save({"params": discriminator(), "ema": discriminator()}, file)
    with pytest.raises(ValueError) as caught:
        load_weights_file(mine(), file)
    assert "these are the ones under 'ema', others are under 'params'" in str(caught.value)
    with pytest.raises(
        ValueError, match=r"it holds under 'ema' conv\.weight, conv\.bias; and under"
    ):
        load_model(file)


def test_averaged_weights_come_first_then_the_order_of_names(tmp_path: Path) -> None:
    file = tmp_path / "order.pt"
    names = ["params", "state_dict", "model_state_dict", "model", "net", "network", "generator"]
    names += ["net_g", "netG", "g", "gen", "weights"]
    for index, name in enumerate(names):
        later = {other: {"a": torch.zeros(1)} for other in reversed(names[index + 1 :])}
        torch.save({"optimizer": {"b": torch.zeros(1)}, **later, name: {"a": torch.ones(1)}}, file)
        assert read_weights(file)["a"] == 1
        torch.save({name: {"a": torch.zeros(1)}, "net_g_ema": {"a": torch.ones(1)}}, file)
        assert read_weights(file)["a"] == 1


def test_versions_of_modules_survive_prefixes(tmp_path: Path) -> None:
    class Renamed(nn.Module):
        _version = 2

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(1))

        def _load_from_state_dict(
            self, state: Weights, prefix: str, metadata: dict[str, Any], *rest: Any
        ) -> None:
            if metadata.get("version") != 2:  # older files keep the logarithm
                state[f"{prefix}gain"] = state[f"{prefix}gain"].exp()
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    saved, file = nn.Sequential(Renamed()), tmp_path / "versions.pt"
    torch.save(nn.ModuleDict({"model": nn.ModuleDict({"module": saved})}).state_dict(), file)
    model = nn.Sequential(Renamed())
    load_weights_file(model, file)
    assert model[0].gain == 0
