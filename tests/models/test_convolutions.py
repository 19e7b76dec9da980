"""Convolutions by the operator of this package: which ones, the same pictures, nothing left."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mkdext
from mkdext.models import MODEL_NAMES, RCAN, RCANConfig, convolutions, create_model
from mkdext.models.blocks import Conv2d, conv3x3, upsampler
from mkdext.models.convolutions import SubPixelSequential, accelerate, convolutions_on
from mkdext.ops.conv2d import stock_convolutions, winograd_conv2d
from tests.models.textbook import with_random_weights


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Shapes of the kernels that the operator is called with."""
    shapes: list[list[int]] = []

    def noted(operator: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        def call(input: Tensor, weight: Tensor, *others: Tensor | None, **given: int) -> Any:
            shapes.append(list(weight.shape))
            return operator(input, weight, *others, **given)

        return call

    monkeypatch.setattr(convolutions, "winograd_conv2d", noted(winograd_conv2d))
    return shapes


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def assert_same_picture(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


def small(**given: object) -> nn.Sequential:
    """A network whose middle convolution is to be something else than the two around it."""
    torch.manual_seed(0)
    middle = nn.Conv2d(16, 16, **{"kernel_size": 3, "padding": 1, **given})  # type: ignore[arg-type]
    first, last = nn.Conv2d(3, 16, 3, padding="same"), nn.Conv2d(16, 12, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.ReLU(), middle, last, nn.PixelShuffle(2))


def with_weight_norm() -> nn.Module:
    network = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(network[2])
    return network


def with_parametrized_weight_norm() -> nn.Module:
    network = small()
    nn.utils.parametrizations.weight_norm(network[2])
    return network


def with_hooks() -> nn.Module:
    network = small()
    network[2].register_forward_pre_hook(lambda module, given: (2 * given[0],))
    network[2].register_forward_hook(lambda module, given, output: output + 1)
    return network


def with_shared_weights() -> nn.Module:
    network = small()
    network.insert(3, nn.Conv2d(16, 16, 3, padding=1))
    network[3].weight = network[2].weight
    return network


def with_a_shared_module() -> nn.Module:
    network = small()
    network.insert(3, network[2])
    return network


class Doubling(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Rounding(nn.Conv2d):
    """A convolution that convolves in its own way."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input.round(), weight, bias)


class Negative(Conv2d):
    """A convolution of this package with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


def with_middle(layer: Callable[..., nn.Module]) -> nn.Module:
    network = small()
    network[2] = layer(16, 16, 3, padding=1)
    return network


def with_own_forward_of_one() -> nn.Module:
    network = small()
    whole = network[2].forward
    network[2].forward = lambda input: 3 * whole(input)
    return network


def scripted() -> nn.Module:
    network = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network[2] = torch.jit.script(network[2])
    return network


def quantized() -> nn.Module:
    network = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network[2].qconfig = torch.ao.quantization.default_qconfig
        prepared = torch.ao.quantization.QuantWrapper(network[2]).eval()
        torch.ao.quantization.prepare(prepared, inplace=True)
        prepared(picture(1, 16, 8, 8))
        network[2] = torch.ao.quantization.convert(prepared)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (small, 3),
    "groups": (lambda: small(groups=4), 2),
    "dilation": (lambda: small(dilation=2, padding=2), 2),
    "same padding of a dilation": (lambda: small(dilation=2, padding="same"), 2),
    "stride": (lambda: small(stride=2), 2),
    "replicated border": (lambda: small(padding_mode="replicate"), 2),
    "no padding": (lambda: small(padding=0), 2),
    "5x5": (lambda: small(kernel_size=5, padding=2), 2),
    "3x1": (lambda: small(kernel_size=(3, 1), padding=(1, 0)), 2),
    "weight norm": (with_weight_norm, 3),
    "weight norm as a parametrization": (with_parametrized_weight_norm, 3),
    "hooks": (with_hooks, 3),
    "shared weights": (with_shared_weights, 4),
    "a shared module": (with_a_shared_module, 4),
    "a class with a forward": (lambda: with_middle(Doubling), 2),
    "a class that convolves otherwise": (lambda: with_middle(Rounding), 2),
    "a layer with a forward": (with_own_forward_of_one, 2),
    "scripted": (scripted, 2),
    "quantized": (quantized, 2),
    "of this package": (lambda: with_middle(Conv2d), 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_makes_the_same_picture_with_the_operator_and_without(name, calls):
    make, count = NETWORKS[name]
    network, low = make(), picture(2, 3, 24, 20)
    names, layers = list(network.state_dict()), [type(layer) for layer in network.modules()]
    with torch.no_grad(), stock_convolutions():
        expected = network(low)
    calls.clear()
    with accelerate(network), torch.no_grad():
        assert_same_picture(network(low), expected)
        assert len(calls) == count
        assert list(network.state_dict()) == names
        assert [type(layer) for layer in network.modules()] == layers
    with torch.no_grad():
        assert torch.equal(network(low), expected) or name == "of this package"
    assert not any("_conv_forward" in vars(layer) for layer in network.modules())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_networks_here_give_all_3x3_convolutions_to_the_operator(name):
    with torch.device("meta"):
        network = create_model(name, scale=4)
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert found and all(type(m) is Conv2d and convolutions.qualifies(m) for m in found)


@pytest.mark.parametrize(
    "name", ["rcan-a", "edsr-s", "rdn-s", "san-s", "han-s", "imdn-s", "vdsr-half"]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_networks_here_make_the_same_picture_with_the_operator_and_without(name, layout, calls):
    network = create_model(name, scale=4).to(memory_format=layout)
    with_random_weights(network.double(), 0.1).float()
    low = picture(1, 3, 13, 18).to(memory_format=layout)
    with torch.no_grad():
        found = network(low)
        assert calls
        with stock_convolutions():
            assert_same_picture(found, network(low))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_convolution_and_the_pixel_shuffle_after_it_are_one_call(scale, calls):
    layers = upsampler(8, scale, in_features=5)
    assert isinstance(layers, SubPixelSequential)
    plain = nn.Sequential(*layers)
    assert list(layers.state_dict()) == list(plain.state_dict())
    low = picture(1, 5, 31, 33)
    found, whole = layers(low), len(calls)
    assert whole == len(layers) // 2
    assert_same_picture(found, plain(low))


def test_hooks_see_a_convolution_and_the_pixel_shuffle_after_it():
    layers, low, seen = upsampler(4, scale=4), picture(1, 4, 6, 7), []
    expected = layers(low)
    hooks = [
        layers[0].register_forward_hook(lambda module, given, output: seen.append(output.shape)),
        layers[3].register_forward_pre_hook(lambda module, given: seen.append(given[0].shape)),
    ]
    assert_same_picture(layers(low), expected)
    assert seen == [(1, 16, 6, 7), (1, 16, 12, 14)]
    for hook in hooks:
        hook.remove()
    everywhere = nn.modules.module.register_module_forward_hook(
        lambda module, given, output: seen.append(output.shape)
    )
    seen.clear()
    layers(low)
    everywhere.remove()
    assert len(seen) == 5


def test_what_is_put_in_the_place_of_a_convolution_of_an_upsampler_is_run():
    layers, low = upsampler(4, scale=2), picture(1, 4, 6, 7)
    layers[0].forward = lambda x: torch.zeros(1, 16, 6, 7)
    assert not layers(low).any()
    for layer in (nn.Conv2d(4, 16, 3, padding=1, groups=2), Negative(4, 16, 3, padding=1)):
        layers[0] = layer
        assert torch.equal(layers(low), layers[1](layers[0](low)))


def test_errors_of_an_upsampler_are_those_of_pytorch():
    layers, low = upsampler(4, scale=2), picture(1, 3, 32, 32)
    with pytest.raises(RuntimeError) as expected:
        layers[0](low)
    with pytest.raises(RuntimeError) as found:
        layers(low)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.tail.append(nn.Tanh()),
        lambda network: setattr(network, "tail", nn.Sequential(network.tail)),
        lambda network: setattr(network, "add_mean", nn.Identity()),
        lambda network: network.tail.__setitem__(1, Conv2d(16, 3, 3, padding=1, stride=2)),
        lambda network: network.tail.__setitem__(1, Conv2d(16, 3, 3, padding=1, bias=False)),
        lambda network: network.tail.__setitem__(1, Negative(16, 3, 3, padding=1)),
        lambda network: network.tail[1].register_forward_hook(lambda *given: 2 * given[-1]),
        lambda network: network.add_mean.weight.mul_(2),
    ],
    ids=["longer", "nested", "no shift", "stride", "no bias", "subclass", "hook", "other shift"],
)
def test_a_changed_end_of_a_network_is_run_as_it_is(change):
    network, low = RCAN(RCANConfig(1, 1, 16), scale=2), picture(1, 3, 24, 24)
    change(network)
    with torch.no_grad():
        shallow = network.head(network.sub_mean(255 * low))
        deep = network.deep_features(shallow) + shallow
        assert_same_picture(network(low), network.add_mean(network.tail(deep)) / 255)


def test_a_convolution_of_another_sort_is_pytorchs(calls):
    conv = Conv2d(4, 4, 3, padding=1, padding_mode="circular", stride=2)
    stock = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", stride=2)
    stock.load_state_dict(conv.state_dict())
    assert torch.equal(conv(picture(1, 4, 6, 7)), stock(picture(1, 4, 6, 7)))
    assert not calls


def test_to_accelerate_twice_changes_nothing():
    network = small()
    first, second = accelerate(network), accelerate(network)
    second.close()
    assert all("_conv_forward" in vars(network[index]) for index in (0, 2, 3))
    first.close()
    first.close()
    assert not any("_conv_forward" in vars(layer) for layer in network.modules())


def test_a_copy_is_accelerated_and_on_its_own(calls):
    network, low = small(), picture(1, 3, 8, 8)
    with accelerate(network):
        copied = copy.deepcopy(network)
    copied[0].weight.data.zero_()
    copied(low)
    assert len(calls) == 3
    assert network[0].weight.any()
    network(low)
    assert len(calls) == 3


def test_a_parametrized_layer_can_be_copied():
    network, low = with_parametrized_weight_norm(), picture(1, 3, 8, 8)
    with accelerate(network):
        assert_same_picture(copy.deepcopy(network)(low), network(low))


def test_what_was_pickled_makes_the_same_picture():
    network, low, file = small(), picture(1, 3, 8, 8), io.BytesIO()
    with accelerate(network):
        torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert vars(loaded[2])["_conv_forward"] is convolutions.convolve
    assert_same_picture(loaded(low), network(low))
    network.load_state_dict(loaded.state_dict())


def test_a_lazy_layer_is_left_alone_until_it_has_run():
    lazy = nn.LazyConv2d(16, 3, padding=1)
    with accelerate(nn.Sequential(lazy)):
        assert "_conv_forward" not in vars(lazy)
    lazy(picture(1, 3, 8, 8))
    with accelerate(lazy):
        assert "_conv_forward" in vars(lazy)


def test_a_single_image_without_a_batch_is_taken():
    network, low = small(), picture(3, 8, 8)
    with torch.no_grad():
        expected = network(low)
        with accelerate(network):
            assert_same_picture(network(low), expected)


def test_errors_are_those_of_pytorch():
    network, low = small(), picture(1, 4, 8, 8)
    with pytest.raises(RuntimeError) as expected:
        network(low)
    with accelerate(network), pytest.raises(RuntimeError) as found:
        network(low)
    assert str(found.value) == str(expected.value)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match=r"accelerate: module must be a torch\.nn\.Module, got str"):
        mkdext.accelerate("rcan-a")
    assert mkdext.accelerate is accelerate and "accelerate" in dir(mkdext)


def users() -> nn.Module:
    network = small()
    accelerate(network)
    return network


NEW = {"of the user": users, "rcan": lambda: RCAN(RCANConfig(1, 1, 16), scale=2)}


@pytest.mark.parametrize("make", NEW.values(), ids=NEW)
def test_gradients_through_a_whole_network_are_those_of_pytorch_to_second_order(make):
    network, low = make(), picture(2, 3, 12, 10)
    parameters = tuple(network.parameters())

    def gradients() -> tuple[Tensor, ...]:
        loss = network(low).square().mean()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        slope = torch.stack([g.square().sum() for g in first]).sum()
        return (loss, *first, *torch.autograd.grad(slope, parameters))

    found = gradients()
    with stock_convolutions():
        expected = gradients()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.slow
@pytest.mark.parametrize("make", NEW.values(), ids=NEW)
def test_exporters_and_compilers_see_plain_convolutions(make):
    network, low = make().eval(), picture(1, 3, 12, 10)
    exported = torch.export.export(network, (low,)).graph
    called = [str(node.target) for node in exported.nodes if node.op == "call_function"]
    assert "aten.conv2d.default" in called and not any("mkdext" in name for name in called)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, low).inlined_graph
    kinds = {node.kind() for node in traced.nodes()}
    assert "aten::_convolution" in kinds and not any("mkdext" in kind for kind in kinds)
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)(low)
        assert_same_picture(compiled, network(low))


def test_a_gpu_takes_pytorchs_convolutions():
    assert convolutions_on("cuda") == "stock"
    with stock_convolutions():
        assert convolutions_on("cpu") == "stock"


def test_a_3x3_convolution_keeps_the_size():
    assert conv3x3(4, 6)(picture(1, 4, 5, 7)).shape == (1, 6, 5, 7)


def test_an_upsampler_takes_a_single_image_without_a_batch():
    layers, low = upsampler(4, scale=4), picture(4, 6, 7)
    assert_same_picture(layers(low), layers(low[None])[0])
