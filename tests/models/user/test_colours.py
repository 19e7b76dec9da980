"""Which colours a trained network takes is found on photographs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext.data import imresize
from mkdext.models import adapt, builtin_teacher
from mkdext.models.user.colours import in_colours, with_found_colours
from mkdext.models.user.interface import COLOURS, Colours


class Changed(nn.Module):
    """The built-in teacher for other colours."""

    def __init__(self, colours: Colours) -> None:
        super().__init__()
        self.net, self.colours = builtin_teacher(), colours

    def forward(self, low: Tensor) -> Tensor:
        return self.colours.to_network(self.net(self.colours.from_network(low)))


@pytest.mark.parametrize("name", [255, "-1..1", "1-bgr", "255-bgr", "255-mean"])
def test_the_colours_of_a_network_are_found_and_told(name) -> None:
    found = with_found_colours(adapt(Changed(COLOURS[name]), 4, "teacher"), "teacher")
    # The network hardly tells the order of colours: the other one may be as good.
    assert found.network.interface.colours.white == COLOURS[name].white
    assert found.remark is None or found.remark.startswith("teacher Changed takes colours from")
    low = torch.rand(1, 3, 8, 8)
    usual = in_colours(found.network, name, "`teacher_range`")
    torch.testing.assert_close(usual(low), builtin_teacher()(low), rtol=1e-4, atol=1e-4)


def test_a_result_of_another_range_is_found() -> None:
    class Levels(nn.Module):
        def forward(self, low: Tensor) -> Tensor:
            return imresize(low, 2) * 255

    found = with_found_colours(adapt(Levels(), 2, "teacher"), "teacher")
    assert found.network.interface.colours == COLOURS["1-to-255"]
    assert "and gives them from 0 to 255" in str(found.remark)


def test_networks_that_need_no_others_stay_as_they_are() -> None:
    ours = builtin_teacher()
    assert with_found_colours(ours, "teacher") == (ours, None)
    torch.manual_seed(0)
    random = adapt(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), 2, "teacher")
    for network in (adapt(Changed(COLOURS[1]), 4, "teacher"), random):
        assert with_found_colours(network, "teacher") == (network, None)


def test_colours_that_a_network_cannot_have_are_refused() -> None:
    assert in_colours(builtin_teacher(), 1, "`teacher_range`").scale == 4
    with pytest.raises(ValueError, match="`teacher_range` 255: RCAN is a network of this package"):
        in_colours(builtin_teacher(), 255, "`teacher_range`")
    luma = adapt(nn.Conv2d(1, 1, 3, padding=1), 2, "teacher")
    assert in_colours(luma, 255, "`teacher_range`").interface.colours.white == 255
    with pytest.raises(ValueError, match="1-bgr: Conv2d takes Y alone"):
        in_colours(luma, "1-bgr", "`teacher_range`")
