from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn

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
    create_model,
    hand_down,
    registry,
)
from mkdext.models.blocks import counterpart
from mkdext.models.channels import space_of

FAMILIES = {
    EDSR: (EDSRConfig(3, 8, residual_scale=0.5), EDSRConfig(2, 4)),
    RCAN: (RCANConfig(3, 3, 8, reduction=4), RCANConfig(2, 2, 4, reduction=2)),
    HAN: (HANConfig(3, 2, 8, reduction=4), HANConfig(2, 1, 4, reduction=2)),
    RDN: (RDNConfig(4, 4, 6, 8), RDNConfig(2, 2, 3, 4)),
    SAN: (SANConfig(3, 2, 16, 4, 4), SANConfig(2, 1, 8, 2, 2)),
    IMDN: (IMDNConfig(3, 8, kept=2), IMDNConfig(2, 6, kept=2)),
    VDSR: (VDSRConfig(8, 3), VDSRConfig(4, 3)),
}


def test_every_network_of_the_package_hands_down() -> None:
    assert {network for network, _ in registry._MODELS.values()} == FAMILIES.keys()


def hidden_in(teacher: SRNetwork, student: SRNetwork) -> None:
    """Put the student's weights into some parts and channels of a teacher, and zeros elsewhere."""
    places: dict[str, Tensor] = {}

    def indices(layer: str, side: int, size: int) -> Tensor:
        given = teacher.channels(counterpart(student, teacher.config, layer))[side]
        begins = dict(zip(given, accumulate(given.values(), initial=0), strict=False))
        found = []
        for slot, count in student.channels(layer)[side].items():
            parts = [counterpart(student, teacher.config, part) for part in slot.split(":")]
            chosen = torch.randperm(given[":".join(parts)])[:count].sort().values
            found.append(begins[":".join(parts)] + places.setdefault(space_of(slot), chosen))
        each = size // sum(given.values())
        return (each * torch.cat(found)[:, None] + torch.arange(each)).flatten()

    state = {name: torch.zeros_like(tensor) for name, tensor in teacher.state_dict().items()}
    for name, tensor in student.state_dict().items():
        place, layer = state[counterpart(student, teacher.config, name)], name.rpartition(".")[0]
        if tensor.shape == place.shape:
            place.copy_(tensor)
        elif tensor.ndim == 1:
            place[indices(layer, 0, len(place))] = tensor
        else:
            rows, columns = (indices(layer, side, place.shape[side]) for side in (0, 1))
            place[rows[:, None], columns] = tensor
    teacher.load_state_dict(state)


@pytest.mark.parametrize("network", FAMILIES, ids=lambda network: network.__name__)
@pytest.mark.parametrize("scale", [3, 4])
def test_a_student_hidden_in_a_teacher_is_found(network: type[SRNetwork], scale: int) -> None:
    """What the channels are called agrees with what the network computes."""
    torch.manual_seed(0)
    large, small = FAMILIES[network]
    teacher, student, found = (network(config, scale).double() for config in (large, small, small))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.normal_(std=0.3)
            # These look at the means over all channels, or at neighbours among them or all parts.
            if (network is SAN and name.endswith("conv_du.0.weight")) or (
                network in (HAN, SAN) and name.endswith("gamma")
            ):
                parameter.zero_()
    hidden_in(teacher, student)
    if isinstance(teacher, EDSR):
        for block in teacher.body[:-1]:
            for parameter in block.body[2].parameters():
                parameter.data /= large.residual_scale
    low = torch.rand(1, 3, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(teacher(low), student(low))
    hand_down(teacher, found)
    torch.testing.assert_close(dict(found.state_dict()), dict(student.state_dict()))


def test_parts_are_those_of_the_distillation_points() -> None:
    teacher, student = create_model("rcan-c", 2), create_model("rcan-a", 2)
    names = [counterpart(student, teacher.config, point) for point in student.distillation_points()]
    assert names == teacher.distillation_points()
    inside = "body.1.body.0.body.0", "body.1.body.1", "body.4", "tail.0.0"
    assert [counterpart(student, teacher.config, name) for name in inside] == [
        *("body.1.body.3.body.0", "body.1.body.4", "body.4", "tail.0.0")
    ]


def test_channels_without_weights_are_left_out_and_norms_stay() -> None:
    torch.manual_seed(0)
    teacher, student = (EDSR(EDSRConfig(2, features), 2) for features in (8, 4))
    teacher.head[0].weight.data[2:6] = 0
    for block in teacher.body[:-1]:
        block.body[2].weight.data[2:6] = 0
    teacher.body[-1].weight.data[2:6] = 0
    hand_down(teacher, student)
    kept = torch.tensor([0, 1, 6, 7])
    assert torch.equal(student.head[0].weight, teacher.head[0].weight[kept])
    given = teacher.body[2].weight
    read = given[:, kept] * (given.norm() / given[:, kept].norm())
    torch.testing.assert_close(student.body[2].weight, read[kept])


def test_a_student_of_the_same_size_is_a_copy() -> None:
    teacher, student = create_model("imdn-s", 2), create_model("imdn-s", 2)
    hand_down(teacher, student)
    torch.testing.assert_close(dict(student.state_dict()), dict(teacher.state_dict()))


@pytest.mark.parametrize(
    ("student", "teacher", "named"),
    [
        ("edsr-s", "rcan-c", ["rcan-a", "rcan-b", "rcan-c"]),
        ("han-s", "rcan-c", ["rcan-a", "rcan-b", "rcan-c"]),
        ("rcan-c", "rcan-b", ["rcan-a", "rcan-b"]),
    ],
)
def test_a_teacher_of_another_family_or_a_smaller_one_is_refused(
    student: str, teacher: str, named: list[str]
) -> None:
    kinds = rf"{student.split('-')[0].upper()}\(.* cannot begin with weights of RCAN\(.*"
    instead = " or ".join(f"`student` {name}" for name in named)
    with pytest.raises(ValueError, match=rf"`student_init` teacher: {kinds} take {instead} or a"):
        hand_down(create_model(teacher, 2), create_model(student, 2))


def test_a_users_network_hands_nothing_down() -> None:
    for teacher, student in (
        (nn.Identity(), create_model("rcan-a", 2)),
        (create_model("rcan-a", 2), nn.Identity()),
    ):
        with pytest.raises(ValueError, match=r"`student_init` teacher: .*Identity.* random"):
            hand_down(teacher, student)
