from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mkdext.models import MODEL_NAMES, RCAN, RCANConfig, create_model

TINY = RCANConfig(groups=2, blocks=2, features=4, reduction=2)


def textbook_rcan(weights: dict[str, Tensor], config: RCANConfig, scale: int, lr: Tensor) -> Tensor:
    """The equations of the RCAN paper (Zhang et al. 2018, section 3), layer by layer."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=lr.dtype).view(1, 3, 1, 1)
    f_0 = conv("head.0", 255 * (lr - mean))  # eq. 1
    f_g = f_0
    for g in range(config.groups):
        f_gb = f_g
        for b in range(config.blocks):
            name = f"body.{g}.body.{b}.body"
            x = conv(f"{name}.2", conv(f"{name}.0", f_gb).clamp(min=0))  # eq. 18
            z = x.mean(dim=(2, 3), keepdim=True)  # eq. 7
            s = conv(f"{name}.3.conv_du.2", conv(f"{name}.3.conv_du.0", z).clamp(min=0))
            f_gb = f_gb + x / (1 + torch.exp(-s))  # eq. 8, 9, 17
        f_g = f_g + conv(f"body.{g}.body.{config.blocks}", f_gb)  # eq. 6
    f_up = f_0 + conv(f"body.{config.groups}", f_g)  # eq. 5
    factor = 3 if scale == 3 else 2
    for stage in range({2: 1, 3: 1, 4: 2, 8: 3}[scale]):
        x = conv(f"tail.0.{2 * stage}", f_up)
        n, c, h, w = x.shape
        x = x.view(n, c // factor**2, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3)
        f_up = x.reshape(n, c // factor**2, factor * h, factor * w)
    return conv("tail.1", f_up) / 255 + mean


def tiny_rcan(scale: int, dtype: torch.dtype = torch.float64) -> RCAN:
    torch.manual_seed(scale)
    return RCAN(TINY, scale).to(dtype)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("rcan-t", 15_592_355), ("rcan-a", 49_799), ("rcan-b", 106_067), ("rcan-c", 420_515)],
)
def test_the_networks_have_the_parameters_of_mkd_table_1(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(name, scale=4)
    assert sum(p.numel() for p in model.parameters()) == parameters
    # The official code counts the two colour shifts as well.
    assert sum(t.numel() for t in model.state_dict().values()) == parameters + 24


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_rcan_is_what_the_equations_say(scale: int) -> None:
    model, lr = tiny_rcan(scale), torch.rand(2, 3, 5, 7, dtype=torch.float64)
    expected = textbook_rcan(model.state_dict(), TINY, scale, lr)
    # The colour shifts are stored in float32.
    torch.testing.assert_close(model(lr), expected, rtol=0, atol=1e-6)
    for shift in (model.sub_mean, model.add_mean):
        sign = shift.bias.sign()
        shift.bias.copy_(sign * 255 * torch.tensor([0.4488, 0.4371, 0.4040], dtype=lr.dtype))
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (5, 12)])
def test_any_input_size_is_enlarged(scale: int, size: tuple[int, int]) -> None:
    h, w = size
    lr = torch.rand(2, 3, h, w)
    assert tiny_rcan(scale, torch.float32)(lr).shape == (2, 3, scale * h, scale * w)


def test_integer_colours_are_refused() -> None:
    with pytest.raises(TypeError, match=r"got torch\.uint8; divide it by 255"):
        tiny_rcan(2)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_an_empty_batch_is_enlarged() -> None:
    assert tiny_rcan(3, torch.float32)(torch.rand(0, 3, 4, 4)).shape == (0, 3, 12, 12)


def test_channels_last_gives_the_same_numbers() -> None:
    model, lr = tiny_rcan(4), torch.rand(2, 3, 6, 5, dtype=torch.float64)
    expected = model(lr)
    model.to(memory_format=torch.channels_last)
    actual = model(lr.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected)


def test_rcan_differentiates_twice_with_respect_to_all_its_parameters() -> None:
    model = tiny_rcan(2)
    names = [name for name, _ in model.named_parameters()]
    tensors = [parameter.detach().requires_grad_() for parameter in model.parameters()]
    lr = torch.rand(1, 3, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(image: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        sr: Tensor = torch.func.functional_call(model, parameters, (image,))
        return sr

    assert torch.autograd.gradcheck(run, (lr, *tensors), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (lr, *tensors), fast_mode=True)


def test_the_parameter_names_are_those_of_the_official_code() -> None:
    names = list(RCAN(RCANConfig(groups=1, blocks=1, features=4, reduction=2), 4).state_dict())
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    assert names == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert layers == [
        "sub_mean",
        "add_mean",
        "head.0",
        "body.0.body.0.body.0",
        "body.0.body.0.body.2",
        "body.0.body.0.body.3.conv_du.0",
        "body.0.body.0.body.3.conv_du.2",
        "body.0.body.1",
        "body.1",
        "tail.0.0",
        "tail.0.2",
        "tail.1",
    ]


@pytest.mark.parametrize("scale", [0, 1, 5, 16, -2])
def test_a_scale_that_rcan_does_not_come_at_is_refused(scale: int) -> None:
    with pytest.raises(ValueError, match=rf"scale must be one of \(2, 3, 4, 8\), got {scale}"):
        create_model("rcan-a", scale)


@pytest.mark.parametrize("field", ["groups", "blocks", "features", "reduction"])
def test_a_size_below_one_is_refused(field: str) -> None:
    sizes = {"groups": 1, "blocks": 1, "features": 16, "reduction": 1} | {field: 0}
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        RCANConfig(**sizes)


def test_fewer_features_than_the_reduction_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be at least reduction=16, got 8"):
        RCANConfig(groups=1, blocks=1, features=8)


def test_an_unknown_name_is_refused_with_near_names() -> None:
    with pytest.raises(ValueError, match=r"'rcanc' is unknown, there are .*; did you mean rcan-c"):
        create_model("rcanc", scale=4)


def test_the_same_seed_makes_the_same_network() -> None:
    torch.manual_seed(3)
    one = create_model("rcan-a", scale=2).state_dict()
    torch.manual_seed(3)
    other = create_model("rcan-a", scale=2).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_name_is_listed() -> None:
    assert MODEL_NAMES == ("rcan-t", "rcan-a", "rcan-b", "rcan-c")
