from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mkdext.models import RCAN, RCANConfig
from tests.models.textbook import Weights, channel_weights, conv, frame, with_random_weights

TINY = RCANConfig(groups=2, blocks=2, features=4, reduction=2)


def textbook_body(weights: Weights, f_0: Tensor) -> Tensor:
    """The equations of the RCAN paper (Zhang et al. 2018, section 3), layer by layer."""
    f_g = f_0
    for g in range(TINY.groups):
        f_gb = f_g
        for b in range(TINY.blocks):
            name = f"body.{g}.body.{b}.body"
            x = conv(weights, f"{name}.2", conv(weights, f"{name}.0", f_gb).clamp(min=0))  # eq. 18
            z = x.mean(dim=(2, 3), keepdim=True)  # eq. 7
            f_gb = f_gb + x * channel_weights(weights, f"{name}.3.conv_du", z)  # eq. 9, 17
        f_g = f_g + conv(weights, f"body.{g}.body.{TINY.blocks}", f_gb)  # eq. 6
    return conv(weights, f"body.{TINY.groups}", f_g)  # eq. 5


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_rcan_is_what_the_equations_say(scale: int) -> None:
    model = with_random_weights(RCAN(TINY, scale))
    lr, weights = torch.rand(2, 3, 5, 7, dtype=torch.float64), model.state_dict()
    expected = frame(weights, scale, lr, lambda x: textbook_body(weights, x))
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


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


def test_fewer_features_than_the_reduction_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be at least reduction=16, got 8"):
        RCANConfig(groups=1, blocks=1, features=8)
