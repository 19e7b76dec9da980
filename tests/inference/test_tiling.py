from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from mkdext.inference import (
    Costs,
    Tiling,
    enlarge_in_tiles,
    forward_costs,
    load_network,
    plan_tiles,
    reach,
)
from mkdext.models import EDSR, RDN, EDSRConfig, RDNConfig, SRNetwork, create_model


@pytest.mark.parametrize(
    "model",
    [
        EDSR(EDSRConfig(blocks=2, features=8), scale=3),
        RDN(RDNConfig(blocks=2, layers=2, growth=4, features=4), scale=2),
        create_model("vdsr-half", scale=4),
    ],
    ids=["edsr", "rdn", "vdsr"],
)
def test_a_network_of_local_receptive_field_gives_the_same_in_tiles(model: SRNetwork) -> None:
    distance = reach(model)
    assert distance is not None and 0 < distance < 20
    low = torch.rand(3, 37, 50)
    with torch.inference_mode():
        whole = model(low[None])[0]
    parts = enlarge_in_tiles(model, low, Tiling(16, 19, distance), model.scale)
    assert parts.shape == whole.shape
    # The sums are the same, in the order of another size of input.
    assert (parts - whole).abs().max() < 1e-4 < 1 / 255


def test_tiles_without_a_margin_would_show() -> None:
    network = load_network(None)
    low = torch.rand(3, 40, 40)
    with torch.inference_mode():
        whole = network(low[None])[0]
    parts = enlarge_in_tiles(network, low, Tiling(20, 20, 0), network.scale)
    assert (parts - whole).abs().max() > 1 / 255


@pytest.mark.parametrize("name", ["rcan-a", "han-s", "san-s"])
def test_a_network_that_looks_at_the_whole_picture_is_known(name: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        assert reach(create_model(name, scale=2)) is None


def test_the_reach_is_that_of_the_convolutions() -> None:
    edsr = EDSR(EDSRConfig(blocks=3, features=8), scale=2)
    # Head, six convolutions of the blocks, body, upsampler, and half a pixel of the tail.
    assert reach(edsr) == 10
    assert reach(nn.Conv2d(3, 3, 1)) == 0
    # Its last layer but one is shut, whatever the picture of the probe.
    shut = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        shut[0].bias.fill_(-100)
    assert reach(shut) == 2


class Strided(nn.Conv2d):
    """Sees blocks of 2x2 pixels, of an image of any size."""

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        blocks = super().forward(nn.functional.pad(low, (0, 1, 0, 1)))
        return nn.functional.interpolate(blocks, scale_factor=2)[
            ..., : low.shape[2], : low.shape[3]
        ]


def test_a_network_for_which_a_pixels_place_counts_has_no_reach() -> None:
    assert reach(Strided(3, 3, 2, stride=2)) is None
    assert reach(nn.Conv2d(3, 3, 3, padding=1)) == 1
    narrow = nn.ReflectionPad2d(9)  # more than the rows of the probe
    assert reach(nn.Sequential(narrow, nn.Conv2d(3, 3, 19))) is None


class Numbers(nn.Conv2d):
    """A network that cannot run without numbers."""

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        assert float(low.mean()) < 2
        return super().forward(low)


def test_costs_of_a_network_that_needs_numbers_are_those_of_a_run() -> None:
    same = nn.Conv2d(3, 16, 3, padding=1)
    measured, known = (forward_costs(n) for n in (Numbers(3, 16, 3, padding=1), same))
    assert measured.per_pixel == pytest.approx(known.per_pixel, rel=0.5)


def test_few_tiles_are_taken_and_none_needs_more_than_there_is() -> None:
    costs = Costs(fixed=1000, per_pixel=10)
    everything = costs.of(50, 80) + 50 * 80 * 4 * 3
    for available in (everything, everything - 1, everything / 4, 25_000):
        tiling = plan_tiles((50, 80), costs, 3, scale=2, sr_bytes=3, available=available)
        largest = min(tiling.height + 6, 50), min(tiling.width + 6, 80)
        assert costs.of(*largest) + tiling.height * 80 * 4 * 3 <= available
        rows, columns = tiling.rows(50), tiling.columns(80)
        assert (len(rows) == len(columns) == 1) == (available == everything)
        assert [rows[0].start, rows[-1].stop, columns[0].start, columns[-1].stop] == [0, 50, 0, 80]
        assert all(a.stop == b.start for a, b in itertools.pairwise(rows))
    with pytest.raises(ValueError, match="tiles of 16 pixels with a margin of 3 need 0 MiB"):
        plan_tiles((50, 80), costs, 3, scale=2, sr_bytes=3, available=5000)


def test_costs_grow_with_the_pixels_and_the_width_of_the_network() -> None:
    narrow, wide = (
        forward_costs(EDSR(EDSRConfig(blocks=2, features=features), scale=2))
        for features in (8, 32)
    )
    assert wide.per_pixel > 3 * narrow.per_pixel
    # Four maps as large as the result must be alive at a time, or two of four times the channels.
    assert narrow.per_pixel > 2 * 8 * 4 * 4
    assert narrow.of(20, 30) == narrow.fixed + 600 * narrow.per_pixel


class Particular(nn.Conv2d):
    """A network that cannot be copied, or runs at no usual size."""

    def __init__(self, sizes: set[int] | None) -> None:
        super().__init__(3, 3, 3, padding=1)
        self.sizes = sizes

    def __deepcopy__(self, memory: object) -> Particular:
        raise TypeError("cannot be copied")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.sizes is not None and image.shape[-1] not in self.sizes:
            raise SystemExit(0)
        return super().forward(image)


def test_networks_that_cannot_be_copied_or_probed_are_run_all_the_same():
    network = Particular(None).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert forward_costs(network).per_pixel > 0
    assert reach(network) is None
    assert forward_costs(Particular({7})) == Costs(0.0, 0.0)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
