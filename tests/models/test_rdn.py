from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mkdext.models import RDN, RDNConfig
from tests.models.textbook import conv, sub_pixel, with_random_weights

TINY = RDNConfig(blocks=2, layers=3, growth=2, features=5)


def textbook_rdn(weights: dict[str, Tensor], scale: int, lr: Tensor) -> Tensor:
    """The equations of Zhang et al. 2018, section 3."""
    f_minus1 = conv(weights, "SFENet1", 255 * lr)  # eq. 1
    f_d, blocks = conv(weights, "SFENet2", f_minus1), []  # eq. 2
    for d in range(TINY.blocks):
        maps = [f_d]
        for c in range(TINY.layers):  # eq. 4
            layer = conv(weights, f"RDBs.{d}.convs.{c}.conv.0", torch.cat(maps, 1))
            maps.append(layer.clamp(min=0))
        f_d = f_d + conv(weights, f"RDBs.{d}.LFF", torch.cat(maps, 1))  # eq. 5 and 6
        blocks.append(f_d)
    f_gf = conv(weights, "GFF.1", conv(weights, "GFF.0", torch.cat(blocks, 1)))  # eq. 8
    f_df = f_minus1 + f_gf  # eq. 7
    stages = {2: 1, 3: 1, 4: 2, 8: 3}[scale]
    return conv(weights, f"UPNet.{2 * stages}", sub_pixel(weights, "UPNet", f_df, scale)) / 255


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_rdn_is_what_the_equations_say(scale: int) -> None:
    model = with_random_weights(RDN(TINY, scale))
    lr = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    expected = textbook_rdn(model.state_dict(), scale, lr)
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "upsampler"),
    [
        (2, {0: (8, 5), 2: (3, 2)}),
        (3, {0: (18, 5), 2: (3, 2)}),
        (4, {0: (8, 5), 2: (8, 2), 4: (3, 2)}),
    ],
)
def test_the_names_and_shapes_are_those_of_the_official_code(
    scale: int, upsampler: dict[int, tuple[int, int]]
) -> None:
    layers = {"SFENet1": (5, 3, 3), "SFENet2": (5, 5, 3), "GFF.0": (5, 10, 1), "GFF.1": (5, 5, 3)}
    for d in (0, 1):
        layers |= {f"RDBs.{d}.convs.{c}.conv.0": (2, 5 + 2 * c, 3) for c in (0, 1, 2)}
        layers[f"RDBs.{d}.LFF"] = (5, 11, 1)
    layers |= {f"UPNet.{i}": (out, into, 3) for i, (out, into) in upsampler.items()}
    expected = {f"{name}.weight": (o, i, k, k) for name, (o, i, k) in layers.items()}
    expected |= {f"{name}.bias": (o,) for name, (o, _, _) in layers.items()}
    state = RDN(TINY, scale).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
