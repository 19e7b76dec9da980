from __future__ import annotations

import pytest
import torch
from torch import nn

from mkdext.models import (
    EDSR,
    HAN,
    IMDN,
    RCAN,
    RDN,
    SAN,
    VDSR,
    EDSRConfig,
    HANConfig,
    IMDNConfig,
    RCANConfig,
    RDNConfig,
    SANConfig,
    SRNetwork,
    VDSRConfig,
    adapt,
    create_model,
)
from mkdext.synthesis import carry_over, part_counts

NETWORKS = {
    "rcan": lambda: RCAN(RCANConfig(4, 1, 4, reduction=2), 2),
    "han": lambda: HAN(HANConfig(4, 1, 4, reduction=2), 2),
    "san": lambda: SAN(SANConfig(4, 1, 8, reduction=2), 2),
    "edsr": lambda: EDSR(EDSRConfig(4, 4), 2),
    "rdn": lambda: RDN(RDNConfig(4, 2, 4, 4), 2),
    "imdn": lambda: IMDN(IMDNConfig(4, 4, 1), 2),
    "vdsr": lambda: VDSR(VDSRConfig(4, 4), 2),
}


@pytest.fixture(params=NETWORKS)
def student(request) -> SRNetwork:
    torch.manual_seed(0)
    network = NETWORKS[request.param]()
    with torch.no_grad():
        for parameter in network.parameters():  # Attention begins with zeros.
            parameter.normal_(0, 0.1)
    return network


def silence(network: SRNetwork, parts: list[str]) -> None:
    """Make parts of a body pass on their input."""
    for name, parameter in network.named_parameters():
        if any(name.startswith(f"{part}.") for part in parts):
            nn.init.zeros_(parameter)
            if isinstance(network, VDSR):
                nn.init.dirac_(parameter)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (3, 3)])
def test_a_grown_student_computes_the_same_once_its_new_parts_do_nothing(student, before, after):
    """A new part that passes on its input, where nothing else looks at it, changes nothing."""
    small, large = student.with_parts(before), student.with_parts(after)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(0, 0.1)
        carry_over(small, large)
        silence(large, large.stages()[before:])
        features = student.config.features
        if isinstance(large, RDN):
            large.GFF[0].weight[:, before * features :] = 0
        if isinstance(large, HAN):
            # Layer attention mixes the outputs of all parts; without it they stay apart.
            small.la.gamma.zero_()
            large.la.gamma.zero_()
            new = after - before
            large.last_conv.weight[:, features : (1 + new) * features] = 0
        if isinstance(large, SAN):
            # The source is added after each part.
            small.gamma.zero_()
            large.gamma.zero_()
    low = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(large(low), small(low))


def test_new_parts_keep_their_own_weights(student):
    small, large = student.with_parts(2), student.with_parts(4)
    before = {name: weight.clone() for name, weight in large.state_dict().items()}
    carry_over(small, large)
    new = tuple(f"{part}." for part in large.stages()[2:])
    names = [name for name in before if name.startswith(new)]
    assert names
    assert all(torch.equal(large.state_dict()[name], before[name]) for name in names)
    inputs = {"GFF.0.weight", "last_conv.weight"} & before.keys()
    for name in inputs:
        changed = (large.state_dict()[name] != before[name]).any(dim=0).flatten()
        assert changed.sum() == small.state_dict()[name][0].numel()


def test_the_whole_student_is_the_last_stage(student):
    last = student.with_parts(4)
    assert last.config == student.config and last.scale == student.scale
    carry_over(student, last)
    low = torch.rand(1, 3, 8, 8)
    assert torch.equal(last(low), student(low))


@pytest.mark.parametrize(
    ("stages", "counts"),
    [(1, [18]), (2, [9, 18]), (4, [5, 9, 14, 18]), (18, [*range(1, 19)])],
)
def test_the_body_is_split_evenly(stages, counts):
    assert part_counts(create_model("vdsr-half", 2), stages) == counts


@pytest.mark.parametrize(
    "name", ["rcan-a", "edsr-s", "rdn-s", "san-s", "han-s", "imdn-s", "vdsr-half"]
)
def test_every_built_in_student_grows_in_as_many_stages_as_it_has_parts(name):
    model = create_model(name, 2)
    parts = len(model.stages())
    assert part_counts(model, parts) == [*range(1, parts + 1)]
    with pytest.raises(ValueError, match=f"`stages` {parts + 1}: .* take `stages` {parts}$"):
        part_counts(model, parts + 1)


def test_a_network_of_the_user_has_one_stage():
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    for own in (network, adapt(network, 2, "`student`")):
        assert part_counts(own, 1) == [1]
        with pytest.raises(ValueError, match="`stages` 2: Sequential is your own network"):
            part_counts(own, 2)
    with pytest.raises(ValueError, match="`stages` must be at least 1, got 0"):
        part_counts(network, 0)
