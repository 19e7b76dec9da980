from __future__ import annotations

import io
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mkdext.data import imresize
from mkdext.models import VDSR, LumaVDSR, VDSRConfig, create_model, load_model, load_weights
from mkdext.models.weights.pickled_modules import read_pickled_modules
from tests.models.textbook import conv, with_random_weights

TINY = VDSRConfig(features=4, blocks=2)

# MATLAB's rgb2ycbcr, by 255.
OFFSET = torch.tensor([16, 128, 128], dtype=torch.float64).view(3, 1, 1)
MATRIX = torch.tensor(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]],
    dtype=torch.float64,
)


def textbook_vdsr(weights: dict[str, Tensor], scale: int, lr: Tensor) -> Tensor:
    """Y sharpened, Cb and Cr enlarged by bicubic interpolation."""
    ycbcr = torch.einsum("ij,bjhw->bihw", MATRIX, lr) + OFFSET
    y, chroma = imresize(ycbcr, scale).split((1, 2), dim=1)
    x = conv(weights, "luma.input", y / 255).clamp(min=0)
    for block in range(TINY.blocks):
        x = conv(weights, f"luma.residual_layer.{block}.conv", x).clamp(min=0)
    y = y + 255 * conv(weights, "luma.output", x)
    return torch.einsum("ij,bjhw->bihw", MATRIX.inverse(), torch.cat((y, chroma), 1) - OFFSET)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_vdsr_changes_luma_alone(scale: int) -> None:
    model = with_random_weights(VDSR(TINY, scale))
    lr = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    expected = textbook_vdsr(model.state_dict(), scale, lr)
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


def test_gradients_reach_every_convolution_of_a_new_vdsr() -> None:
    model = create_model("vdsr-half", scale=2)
    lr = torch.rand(2, 3, 12, 12)
    added = model(lr) - imresize(lr, 2)
    assert 1e-3 < added.std() < 0.5
    (added - 0.1).square().mean().backward()
    gradients = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
    assert len(gradients) == 20
    assert all(1e-4 < gradient < 10 for gradient in gradients)


def official_weights(features: int, blocks: int) -> dict[str, Tensor]:
    """A state dict with the names and shapes of pytorch-vdsr."""
    weights = {
        f"residual_layer.{i}.conv.weight": torch.randn(features, features, 3, 3)
        for i in range(blocks)
    }
    weights["input.weight"] = torch.randn(features, 1, 3, 3)
    weights["output.weight"] = torch.randn(1, features, 3, 3)
    return weights


@pytest.mark.parametrize(("name", "features"), [("vdsr", 64), ("vdsr-half", 32)])
def test_official_weights_fit_every_scale(tmp_path: Path, name: str, features: int) -> None:
    weights = official_weights(features, blocks=18)
    file = tmp_path / "weights.pt"
    torch.save({"epoch": 50, "model": {f"module.{n}": w for n, w in weights.items()}}, file)
    for scale in (2, 3, 4):
        for model in (load_model(file, scale), load_model(file, scale, name)):
            assert isinstance(model, VDSR) and model.scale == scale
            luma = model.luma.state_dict()
            assert luma.keys() == weights.keys()
            assert all(torch.equal(luma[n], weights[n]) for n in weights)


def test_official_weights_load_into_the_whole_network_and_into_its_y_network() -> None:
    weights, model = official_weights(4, 2), VDSR(TINY, scale=2)
    load_weights(model, weights)
    alone = LumaVDSR(TINY)
    load_weights(alone, weights)
    y = torch.rand(1, 1, 5, 6)
    torch.testing.assert_close(model.luma(y), alone(y))
    torch.testing.assert_close(alone(y), y + alone.residual(y))


def test_weights_for_every_scale_need_one_to_be_named(tmp_path: Path) -> None:
    torch.save(create_model("vdsr-half", scale=3).state_dict(), tmp_path / "w")
    assert load_model(tmp_path / "w", scale=4).scale == 4
    with pytest.raises(ValueError, match="are of VDSR and serve for every scale; say"):
        load_model(tmp_path / "w")


class Published(torch.nn.Module):
    """A network with the parts and names of pytorch-vdsr."""

    def __init__(self) -> None:
        super().__init__()
        self.residual_layer = torch.nn.Sequential(*(Block() for _ in range(2)))
        self.input = torch.nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.output = torch.nn.Conv2d(4, 1, 3, padding=1, bias=False)
        self.relu = torch.nn.ReLU(inplace=True)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)


class OldParameter:
    """Pickles a parameter as the first versions of PyTorch did."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return torch.nn.Parameter, (self.tensor,), (True, False, OrderedDict())


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """A network whose classes are those of a module `vdsr`, which is not there afterwards."""
    module = types.ModuleType("vdsr")
    for network in (Published, Block):
        monkeypatch.setattr(network, "__module__", "vdsr")
        setattr(module, network.__name__, network)
    monkeypatch.setitem(sys.modules, "vdsr", module)
    yield Published()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("form", ["zip", "legacy", "parallel", "old parameters"])
def test_the_official_file_a_pickled_network_gives_its_weights(
    form: str, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: tensor.clone() for name, tensor in published.state_dict().items()}
    network: torch.nn.Module = published
    if form == "parallel":
        network = torch.nn.DataParallel(published)
    if form == "old parameters":
        for part in published.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = OldParameter(parameter.data)  # type: ignore[assignment]
    content = {"epoch": 50, "model": network}
    torch.save(content, tmp_path / "vdsr.pth", _use_new_zipfile_serialization=form == "zip")
    monkeypatch.delitem(sys.modules, "vdsr")
    model = load_model(tmp_path / "vdsr.pth", scale=3)
    assert isinstance(model, VDSR) and model.config == TINY
    luma = model.luma.state_dict()
    assert luma.keys() == weights.keys()
    assert all(torch.equal(luma[name], weights[name]) for name in weights)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_network_with_something_else_in_it_is_refused(
    legacy: bool, published: Published, tmp_path: Path
) -> None:
    published.extra = Harmful(tmp_path / "harm")
    content = {"epoch": 50, "model": published}
    torch.save(content, tmp_path / "vdsr.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"asks for \S*, which could execute code, so it was not"):
        load_model(tmp_path / "vdsr.pth", scale=3)
    assert not (tmp_path / "harm").exists()


def test_what_a_pickle_changes_is_not_torchs(published: Published, tmp_path: Path) -> None:
    pickled = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"  # the function itself, and its state
        b"N}X\x0c\x00\x00\x00__defaults__)s\x86b."
    )
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with suppress(Exception):
        read_pickled_modules(io.BytesIO(pickled))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before
