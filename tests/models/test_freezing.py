from __future__ import annotations

import pytest
from torch import nn

from mkdext.models import adapt, create_model, freeze


def frozen(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def test_parameters_are_named_alone_by_sub_module_and_by_pattern() -> None:
    model = create_model("edsr-s", scale=2)
    assert freeze(model, ["head", "body.[01].body.2.bias", "tail.1.*"]) == frozen(model)
    assert frozen(model) == [
        *("head.0.weight", "head.0.bias", "body.0.body.2.bias", "body.1.body.2.bias"),
        *("tail.1.weight", "tail.1.bias"),
    ]


def test_names_of_a_users_network_are_his_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
    assert freeze(adapt(network, 2, "`student`"), ["0"]) == ["0.weight", "0.bias"]
    assert frozen(network) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("patterns", "match"),
    [
        (["head", "boby.0"], r"`freeze` boby\.0 is neither .* did you mean body\.0"),
        (["body.*.conv"], r"`freeze` body\.\*\.conv is neither .* did you mean body\.\*"),
        (
            ["sub_mean"],
            "`freeze` sub_mean is neither a parameter of EDSR nor a sub-module that has",
        ),
        (["head", "body", "tail"], "`freeze` head body tail leaves nothing of EDSR to train"),
    ],
)
def test_patterns_that_mean_nothing_or_all_are_refused(patterns: list[str], match: str) -> None:
    model = create_model("edsr-s", scale=2)
    with pytest.raises(ValueError, match=match):
        freeze(model, patterns)
    assert not frozen(model)
