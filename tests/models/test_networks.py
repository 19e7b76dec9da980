"""What holds for every network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mkdext.models import (
    EDSR,
    HAN,
    IMDN,
    MODEL_NAMES,
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
    check_points,
    create_model,
    default_points,
    features_at,
    forward_with_features,
)
from tests.models.textbook import with_random_weights

SIZES = {
    RCAN: RCANConfig(groups=2, blocks=2, features=4, reduction=2),
    EDSR: EDSRConfig(blocks=2, features=4, residual_scale=0.5),
    RDN: RDNConfig(blocks=2, layers=2, growth=3, features=4),
    SAN: SANConfig(groups=2, blocks=1, features=8, reduction=4, non_local_reduction=4),
    HAN: HANConfig(groups=2, blocks=1, features=4, reduction=2),
    IMDN: IMDNConfig(blocks=2, features=4, kept=1),
    VDSR: VDSRConfig(features=4, blocks=3),
}
STUDENTS = ("rcan-a", "edsr-s", "rdn-s", "san-s", "han-s", "imdn-s", "vdsr-half")

every_network = pytest.mark.parametrize("network", SIZES, ids=lambda network: network.__name__)


def tiny(network: Callable[..., SRNetwork], scale: int = 2, spread: float = 0.2) -> nn.Module:
    return with_random_weights(network(SIZES[network], scale), spread)


def grey(*shape: int) -> Tensor:
    """An image near the mean, so that no softmax inside of a network saturates."""
    generator = torch.Generator().manual_seed(1)
    return 0.44 + 0.01 * torch.randn(*shape, generator=generator, dtype=torch.float64)


@every_network
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 6), (5, 12)])
def test_any_input_size_is_enlarged(network, scale, size):
    model, (h, w) = tiny(network, scale), size
    with torch.no_grad():
        sr = model(grey(2, 3, h, w))
    assert sr.shape == (2, 3, scale * h, scale * w)
    assert sr.isfinite().all()


@every_network
def test_the_output_is_the_same_with_and_without_gradients(network):
    model, lr = tiny(network), grey(2, 3, 5, 7)
    with torch.no_grad():
        expected = model(lr)
    torch.testing.assert_close(model(lr), expected, rtol=1e-12, atol=1e-12)


@every_network
def test_an_image_of_one_colour_has_finite_gradients_of_first_and_second_order(network):
    model = tiny(network).float()
    for size in (1, 4):
        lr = torch.full((1, 3, size, size), 0.5)
        parameters = tuple(model.parameters())
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        first = torch.autograd.grad(model(lr).square().mean(), parameters, **options)
        slope = torch.stack([g.square().sum() for g in first]).sum()
        second = torch.autograd.grad(slope, parameters, **options)
        assert all(g.isfinite().all() for g in first + second)


@every_network
def test_a_network_differentiates_twice_by_its_input_and_all_its_parameters(network):
    model = tiny(network, spread=0.3)
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [parameter.numel() for parameter in parameters]

    def run(image, vector):
        parts = zip(names, vector.split(sizes), parameters, strict=True)
        values = {name: part.view_as(parameter) for name, part, parameter in parts}
        return torch.func.functional_call(model, values, (image,))

    vector = torch.cat([parameter.detach().flatten() for parameter in parameters])
    inputs = (grey(1, 3, 3, 5).requires_grad_(), vector.requires_grad_())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@every_network
def test_all_parameters_take_part_but_those_that_the_official_code_of_san_never_uses(network):
    model = tiny(network)
    names, parameters = zip(*model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(model(grey(1, 3, 4, 4)).sum(), parameters, allow_unused=True)
    unused = {name for name, slope in zip(names, slopes, strict=True) if slope is None}
    expected = {
        *("conv_last.weight", "conv_last.bias", "RG.0.gamma", "RG.1.gamma"),
        *(f"non_local.soca.conv_du.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    }
    assert unused == (expected if network is SAN else set())


@every_network
def test_integer_colours_are_refused(network):
    with pytest.raises(
        TypeError, match=rf"^{network.__name__}: .* got torch\.uint8; divide it by 255"
    ):
        tiny(network)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@every_network
def test_an_empty_batch_is_enlarged(network):
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert tiny(network, scale=3)(grey(0, 3, 4, 4)).shape == (0, 3, 12, 12)


@every_network
def test_channels_last_gives_the_same_numbers(network):
    model, lr = tiny(network, scale=4), grey(2, 3, 6, 5)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    expected = model(lr)
    model.to(memory_format=torch.channels_last)
    actual = model(lr.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@every_network
def test_a_network_moves_to_another_type_and_device(network):
    model = tiny(network).to(torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    sr = model.to("meta")(torch.empty(1, 3, 4, 5, dtype=torch.bfloat16, device="meta"))
    assert (sr.shape, sr.dtype) == ((1, 3, 8, 10), torch.bfloat16)


@every_network
@pytest.mark.parametrize("scale", [0, 1, 5, 16, -2])
def test_a_scale_that_no_network_comes_at_is_refused(network, scale):
    with pytest.raises(ValueError, match=f"`scale` must be one of 2, 3, 4, 8, got {scale}"):
        network(SIZES[network], scale)


@every_network
def test_a_size_below_one_is_refused(network):
    config = SIZES[network]
    for field in vars(config).keys() - {"residual_scale"}:
        with pytest.raises(
            ValueError, match=rf"^{type(config).__name__}: {field} must be at least 1, got 0"
        ):
            type(config)(**vars(config) | {field: 0})


@every_network
def test_the_configuration_and_scale_are_inferred_from_the_weights(network):
    config = SIZES[network]
    if network is EDSR:  # Its residual scale stands in no checkpoint.
        config = EDSRConfig(config.blocks, config.features)
    for scale in (2, 3, 4, 8):
        weights = network(config, scale).state_dict()
        assert network.infer(weights) == (config, None if network is VDSR else scale)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_named_network_has_four_distillation_points_evenly_spaced(name):
    with torch.device("meta"):
        model = create_model(name, scale=4)
    points, stages = default_points(model), model.stages()
    assert all(model.get_submodule(point) for point in points)
    ends = [stages.index(point) + 1 for point in points]
    assert ends == [math.ceil(i * len(stages) / 4) for i in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match=rf"count must be 1\.\.{len(stages)}, got 40"):
        default_points(model, count=40)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_features_of_every_student_are_of_one_size(name):
    with torch.device("meta"):
        model = create_model(name, scale=4)
    points = default_points(model)
    (channels,) = {shape.channels for shape in check_points(model, points)}
    shapes = {f.shape for f in features_at(model, points, torch.empty(1, 3, 6, 5, device="meta"))}
    size = (24, 20) if name == "vdsr-half" else (6, 5)
    assert shapes == {(1, channels, *size)}


@pytest.mark.parametrize("name", STUDENTS)
def test_features_of_every_network_end_a_pass_early_and_are_those_of_a_whole_one(name):
    torch.manual_seed(0)
    model, lr = create_model(name, scale=2), torch.rand(1, 3, 6, 5)
    points = default_points(model, count=2)
    with torch.no_grad():
        _, expected = forward_with_features(model, points, lr)
        assert all(map(torch.equal, features_at(model, points, lr), expected))


def test_an_unknown_name_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r"'rcanc' is unknown, there are .*; did you mean rcan-c"):
        create_model("rcanc", scale=4)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_same_seed_makes_the_same_network(name):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(create_model(name, scale=2).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_name_is_listed():
    assert " ".join(MODEL_NAMES) == (
        "edsr-t edsr-s rcan-t rcan-a rcan-b rcan-c han-t han-s imdn-t imdn-s rdn-t rdn-s san-t "
        "san-s vdsr vdsr-half"
    )
