from __future__ import annotations

import pytest
import torch

from mkdext.models import EDSR, EDSRConfig, create_model
from tests.models.textbook import Weights, conv, frame, with_random_weights

TINY = EDSRConfig(blocks=2, features=4, residual_scale=0.25)


def textbook_body(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """The residual blocks of Lim et al. 2017, section 3."""
    for block in range(TINY.blocks):
        y = conv(weights, f"body.{block}.body.0", x).clamp(min=0)
        x = x + 0.25 * conv(weights, f"body.{block}.body.2", y)
    return conv(weights, f"body.{TINY.blocks}", x)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_edsr_is_what_the_paper_says(scale: int) -> None:
    model = with_random_weights(EDSR(TINY, scale))
    lr, weights = torch.rand(2, 3, 5, 7, dtype=torch.float64), model.state_dict()
    expected = frame(weights, scale, lr, lambda x: textbook_body(weights, x))
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "tail"), [(2, {0: 16}), (3, {0: 36}), (4, {0: 16, 2: 16}), (8, {0: 16, 2: 16, 4: 16})]
)
def test_the_names_and_shapes_are_those_of_the_official_code(
    scale: int, tail: dict[int, int]
) -> None:
    layers = {"sub_mean": (3, 3, 1), "add_mean": (3, 3, 1), "head.0": (4, 3, 3)}
    layers |= {f"body.{i}.body.{j}": (4, 4, 3) for i in (0, 1) for j in (0, 2)}
    layers |= {"body.2": (4, 4, 3), "tail.1": (3, 4, 3)}
    layers |= {f"tail.0.{i}": (width, 4, 3) for i, width in tail.items()}
    expected = {f"{name}.weight": (o, i, k, k) for name, (o, i, k) in layers.items()}
    expected |= {f"{name}.bias": (o,) for name, (o, _, _) in layers.items()}
    state = EDSR(TINY, scale).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_the_teacher_scales_its_residuals_and_the_student_does_not() -> None:
    with torch.device("meta"):
        models = [create_model(name, scale=4) for name in ("edsr-t", "edsr-s")]
    assert [model.config.residual_scale for model in models] == [0.1, 1.0]
    # As it is inferred from weights of the same widths.
    assert [EDSR.infer(model.state_dict())[0] for model in models] == [m.config for m in models]
