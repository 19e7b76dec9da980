"""What users' networks take and give: sizes, colours, several results, one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext.models import adapt
from mkdext.models.user.adapted import found_scale
from mkdext.models.user.interface import COLOURS, Sizes, picture_in


@pytest.mark.parametrize("name", COLOURS)
def test_colours_come_back_as_they_were(name) -> None:
    colours, image = COLOURS[name], torch.rand(2, 3, 4, 5)
    taken = colours.to_network(image)
    given = taken * 255 if colours.white_given else taken
    torch.testing.assert_close(colours.from_network(given), image)
    white = colours.to_network(torch.ones(1, 3, 1, 1)).flatten().tolist()
    expected = {
        1: [1, 1, 1],
        255: [255] * 3,
        "-1..1": [1, 1, 1],
        "1-bgr": [1, 1, 1],
        "255-bgr": [255] * 3,
        "1-mean": [1 - 0.4488, 1 - 0.4371, 1 - 0.4040],
        "255-mean": [255 * (1 - mean) for mean in (0.4488, 0.4371, 0.4040)],
        "1-to-255": [1, 1, 1],
    }
    assert white == pytest.approx(expected[name])
    red = colours.to_network(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)).flatten()
    assert int(red.argmax()) == (2 if colours.is_bgr else 0)


@pytest.mark.parametrize(
    ("sizes", "given", "fitting"),
    [
        (Sizes(), (5, 7), (5, 7)),
        (Sizes(8), (5, 16), (8, 16)),
        (Sizes(1, 16), (5, 17), (16, 17)),
        (Sizes(8, 12), (5, 17), (16, 24)),
        (Sizes(4, 1, is_square=True), (5, 17), (20, 20)),
    ],
)
def test_images_are_padded_by_mirrored_pixels(sizes, given, fitting) -> None:
    assert sizes.fitting(*given) == fitting
    image = torch.rand(2, 3, *given)
    padded = sizes.padded(image)
    assert padded.shape[2:] == fitting
    assert torch.equal(padded[:, :, : given[0], : given[1]], image)
    rows, columns = (min(1, new - old) for new, old in zip(fitting, given, strict=True))
    if rows:
        assert torch.equal(padded[:, :, given[0], : given[1]], image[:, :, -2])
    if columns:
        assert torch.equal(padded[:, :, : given[0], given[1]], image[..., -2])


def test_an_image_of_one_pixel_is_repeated() -> None:
    assert Sizes(4).padded(torch.full((1, 1, 1, 1), 3.0)).eq(3).all()


def test_the_first_picture_is_found_in_what_a_network_gives() -> None:
    picture = torch.rand(1, 3, 2, 2)
    for result in (picture, [picture, 1], (torch.rand(1, 7), picture), {"sr": picture}):
        assert picture_in(result, 3) is picture
    assert picture_in("text", 3) == "text"


class Several(nn.Module):
    """Multiples of 8 pixels, one image at a time, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) > 1 or x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError("not so")
        return self.conv(x).mean((2, 3)), nn.functional.pixel_shuffle(self.conv(x), 2)


def test_what_a_network_takes_is_found_out_by_running_it() -> None:
    network = Several()
    assert found_scale(network) == 2
    adapted = adapt(network, 2, "`student`")
    interface = adapted.interface
    assert interface.sizes == Sizes(8) and interface.one_by_one and interface.first_of_several
    low = torch.rand(3, 3, 9, 5)
    expected = nn.functional.pixel_shuffle(network.conv(low), 2)
    torch.testing.assert_close(adapted(low), expected)


def test_a_wrong_scale_is_told_with_the_right_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 27, 1), nn.PixelShuffle(3))
    with pytest.raises(ValueError, match="it enlarges 3 times: `scale` 3"):
        adapt(network, 2, "`student`")
