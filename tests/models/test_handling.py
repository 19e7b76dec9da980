from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mkdext.models import SuperResolver, adapt, create_model
from mkdext.models.handling import loss_of


def users(channels: int) -> SuperResolver:
    return adapt(nn.Conv2d(channels, channels, 3, padding=1), 2, "it")


@pytest.mark.parametrize(
    ("network", "is_of_luma"),
    [
        (create_model("rcan-a", 2), False),
        (create_model("vdsr-half", 2), True),
        (create_model("vdsr-half", 2).at_scale(3), True),
        (users(1), True),
        (users(1).at_scale(3), True),
        (users(3), False),
        (nn.Conv2d(3, 3, 1), False),
    ],
)
def test_losses_are_over_y_where_a_network_changes_y_alone(network, is_of_luma):
    picture = torch.rand(1, 3, 6, 7)
    of_same_luma = picture + torch.tensor([0.128553, -0.065481, 0]).view(3, 1, 1)
    gap = loss_of(network, functional.l1_loss)(of_same_luma, picture).item()
    assert gap == pytest.approx(0 if is_of_luma else 0.194034 / 3, abs=1e-6)
