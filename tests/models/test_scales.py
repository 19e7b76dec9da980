"""Networks of several scales share their weights, where these serve for every scale."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mkdext.models import adapt, at_scales, create_model


@pytest.mark.parametrize("kind", ["vdsr", "users"])
def test_networks_that_sharpen_what_was_enlarged_serve_for_every_scale(kind):
    if kind == "vdsr":
        network = create_model("vdsr-half", 2)
    else:
        network = adapt(nn.Conv2d(3, 3, 3, padding=1), 2, "it")
    networks = at_scales(network, (2, 3, 4), "`student`")
    assert networks[2] is network and {s: n.scale for s, n in networks.items()} == {
        **{2: 2, 3: 3, 4: 4}
    }
    weights = [next(n.parameters()) for n in networks.values()]
    assert all(weight is weights[0] for weight in weights)
    assert networks[3](torch.rand(1, 3, 5, 4)).shape == (1, 3, 15, 12)


def test_a_network_that_enlarges_serves_for_one_scale():
    own = adapt(nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2)), 2, "it")
    for network in (create_model("rcan-a", 2), own):
        assert list(at_scales(network, (2,), "`student`")) == [2]
        with pytest.raises(ValueError, match=r"^`scale` 2 3: the weights of `student` .* one scal"):
            at_scales(network, (2, 3), "`student`")
