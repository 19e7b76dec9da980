from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mkdext.models import EDSR, RCAN, EDSRConfig, RCANConfig, begin_with, create_model

LARGE, SMALL = EDSRConfig(3, 4), EDSRConfig(2, 4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_all_is_taken_where_all_fits(file: Path) -> None:
    trained, model = EDSR(SMALL, 2), EDSR(SMALL, 2)
    torch.save({"params_ema": {f"module.{n}": t for n, t in state(trained).items()}}, file)
    assert begin_with(model, file) == [f"the student begins with weights of {file}: all 20 tensors"]
    torch.testing.assert_close(state(model), state(trained))


@pytest.mark.parametrize(("given", "own"), [(LARGE, SMALL), (SMALL, LARGE)])
def test_what_follows_the_blocks_is_found_after_another_number_of_them(
    file: Path, given: EDSRConfig, own: EDSRConfig
) -> None:
    trained, model = EDSR(given, 2), EDSR(own, 2)
    before = state(model)
    torch.save(state(trained), file)
    lines = begin_with(model, file)
    ends = f"body.{own.blocks}.weight", f"body.{given.blocks}.weight"
    assert torch.equal(state(model)[ends[0]], state(trained)[ends[1]])
    assert torch.equal(state(model)["body.1.body.0.weight"], state(trained)["body.1.body.0.weight"])
    block = [f"body.2.body.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    what = "in the file and not taken" if own is SMALL else "left as they were, not in the file"
    assert lines[1:] == [f"{what}: {', '.join(block)}"]
    taken = 20 if own is SMALL else "20 of its 24"
    assert str(taken) in lines[0]
    if own is LARGE:
        assert all(torch.equal(state(model)[name], before[name]) for name in block)


def test_the_upsampler_of_another_scale_stays_random(file: Path) -> None:
    trained, model = create_model("rcan-a", 2), create_model("rcan-a", 3)
    before = state(model)
    torch.save(state(trained), file)
    lines = begin_with(model, file)
    names = "tail.0.0.weight", "tail.0.0.bias"
    assert lines[1:] == [f"left as they were, of another shape in the file: {', '.join(names)}"]
    assert lines[0].endswith("50 of its 52 tensors, 60% of its numbers")
    for name, tensor in state(model).items():
        assert torch.equal(tensor, (before if name in names else state(trained))[name])


def test_weights_of_basicsr_and_of_another_range_of_colours_are_understood_in_part(
    file: Path,
) -> None:
    trained, model = EDSR(LARGE, 2), EDSR(SMALL, 2)
    names = {"head.0": "conv_first", "body.3": "conv_after_body", "tail.1": "conv_last"}
    names |= {"tail.0.0": "upsample.0"}
    names |= {f"body.{i}.body.{2 * j}": f"body.{i}.conv{j + 1}" for i in range(3) for j in (0, 1)}
    weights = {}
    for name, tensor in state(trained).items():
        layer, _, kind = name.rpartition(".")
        if layer in names:
            weights[f"{names[layer]}.{kind}"] = tensor
    torch.save(weights, file)
    begin_with(model, file)
    assert torch.equal(model.body[2].weight, trained.body[3].weight)
    own = state(trained)
    own |= {name: own[name] / 255 for name in ("sub_mean.bias", "add_mean.bias")}
    own |= {"tail.1.weight": own["tail.1.weight"] / 255, "tail.1.bias": own["tail.1.bias"] / 255}
    own |= {"head.0.weight": own["head.0.weight"] * 255}
    torch.save(own, file)
    begin_with(model, file)
    torch.testing.assert_close(model.head[0].weight, trained.head[0].weight)


class Own(nn.Sequential):
    def __init__(self, last: int) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, last, 3))


def test_a_users_network_takes_what_fits(file: Path) -> None:
    trained, model = Own(5), Own(6)
    torch.save({"state_dict": {f"net.{n}": t for n, t in state(trained).items()}}, file)
    lines = begin_with(model, file)
    assert torch.equal(model[0].weight, trained[0].weight)
    assert lines[1:] == ["left as they were, of another shape in the file: 1.weight, 1.bias"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (create_model("edsr-s", 2), "taken of it by RCAN: the checkpoint is of EDSR, the network"),
        (create_model("rcan-c", 2), r"nothing can be taken of it by RCAN: .*features=32"),
        (
            Own(3),
            r"nothing can be taken of it by RCAN: they are of another arch.* `student_w",
        ),
    ],
)
def test_a_file_of_which_nothing_fits_is_refused(file: Path, given: nn.Module, match: str) -> None:
    model = create_model("rcan-a", 2)
    before = state(model)
    torch.save(state(given), file)
    with pytest.raises(ValueError, match=f"weights file {file}: .*{match}"):
        begin_with(model, file)
    torch.testing.assert_close(state(model), before)


def test_numbers_that_are_none_are_refused_where_they_would_be_taken(file: Path) -> None:
    trained, model = RCAN(RCANConfig(2, 1, 4, 2), 2), RCAN(RCANConfig(1, 1, 4, 2), 2)
    weights = state(trained)
    weights["head.0.bias"][0] = torch.nan
    torch.save(weights, file)
    with pytest.raises(ValueError, match=r"1 weights hold NaN or infinite numbers \(head\.0\.bias"):
        begin_with(model, file)
