"""What PyTorch's own strict loading takes is taken, and what is refused changes nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.fake_quantize import FusedMovingAvgObsFakeQuantize
from torch.ao.quantization.observer import MovingAveragePerChannelMinMaxObserver
from torch.nn.utils import parametrizations

from mkdext.models import check_comes_back, load_weights, load_weights_file, save_model

State = dict[str, Any]


class Net(nn.Module):
    """A network of one convolution and what `add` puts beside it."""

    def __init__(self, add: Callable[[nn.Module], object] = lambda net: None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        add(self)


class Observed(nn.Module):
    """Quantisation-aware, by channels: its buffers get their size from what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fake = FusedMovingAvgObsFakeQuantize(
            MovingAveragePerChannelMinMaxObserver,
            dtype=torch.qint8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fake(self.conv.weight)
        result: Tensor = nn.functional.conv2d(x, weight, self.conv.bias)
        return result


class Remembers(nn.Module):
    """Keeps extra state, and renames what older versions wrote."""

    _version = 3

    def __init__(self, extra: object = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state

    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        if f"{prefix}old" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}old")
        super()._load_from_state_dict(state, prefix, *rest)


def buffer(tensor: Tensor) -> Callable[[nn.Module], object]:
    return lambda net: net.register_buffer("extra", tensor.clone())


def tied(net: nn.Module) -> None:
    net.block, net.again = nn.ModuleList([net.conv]), net.conv
    net.part = nn.Parameter(net.conv.weight.data[:2])
    net.register_buffer("turned", net.conv.weight.data.transpose(0, 1))


def expanded(net: nn.Module) -> None:
    net.register_buffer("row", torch.arange(3.0).expand(4, 3))
    net.register_buffer("one", torch.ones(()).expand(2, 2))


def seen(net: nn.Module) -> nn.Module:
    """The network, after it ran once."""
    net.train()
    net(torch.rand(2, 3, 8, 8))
    return net


def prepared() -> nn.Module:
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = get_default_qat_qconfig_mapping("x86")
        made: nn.Module = prepare_qat_fx(net, mapping, torch.rand(1, 3, 8, 8))
    return made


INF = float("inf")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tied": lambda: Net(tied),
    "expanded": lambda: Net(expanded),
    "batch normalisation": lambda: seen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
    "weight norm": lambda: Net(lambda net: parametrizations.weight_norm(net.conv)),
    "spectral norm": lambda: Net(lambda net: parametrizations.spectral_norm(net.conv)),
    "old weight norm": lambda: Net(lambda net: old_weight_norm(net.conv)),
    "observers": lambda: seen(Observed()),
    "observers unseen": Observed,
    "quantisation-aware": lambda: seen(prepared()),
    "lazy": lambda: seen(nn.Sequential(nn.LazyConv2d(4, 3))),
    "extra state": lambda: nn.Sequential(Remembers({"levels": (1, [None]), "at": torch.ones(2)})),
    "extra state none": lambda: nn.Sequential(Remembers([None])),
    "attention mask": lambda: Net(buffer(torch.full((3, 3), -INF).triu(1))),
    "nan": lambda: Net(buffer(torch.tensor([float("nan"), INF]))),
    "scalar": lambda: Net(buffer(torch.tensor(3.0))),
    "bool": lambda: Net(buffer(torch.tensor([True, False]))),
    "int64": lambda: Net(buffer(torch.tensor([2**60]))),
    "uint8": lambda: Net(buffer(torch.tensor([255], dtype=torch.uint8))),
    "uint16": lambda: Net(buffer(torch.tensor([65535], dtype=torch.uint16))),
    "complex64": lambda: Net(buffer(torch.tensor([1 + 2j]))),
    "complex128": lambda: Net(buffer(torch.tensor([1 + 2j], dtype=torch.complex128))),
    "conjugate": lambda: Net(buffer(torch.tensor([1 + 2j]).conj())),
    "float8": lambda: Net(buffer(torch.ones(2).to(torch.float8_e4m3fn))),
    "sparse": lambda: Net(buffer(torch.eye(3).to_sparse())),
    "empty": lambda: Net(buffer(torch.empty(0, 3))),
    "bfloat16": lambda: Net().bfloat16(),
    "float16": lambda: Net().half(),
    "float64": lambda: Net().double(),
    "channels last": lambda: Net().to(memory_format=torch.channels_last),
    "frozen": lambda: Net().requires_grad_(False),
}


def old_weight_norm(conv: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(conv)


def make(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NETWORKS[name]()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        if one.layout != torch.strided:
            one, other = one.to_dense(), other.to_dense()
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(
            *(
                t.contiguous().reshape(-1).view(torch.uint8)
                for t in (one.detach().resolve_conj(), other.detach().resolve_conj())
            )
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def changed(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    return net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_comes_back_from_its_file_and_from_its_state_dict(
    name: str, tmp_path: Path
) -> None:
    network = changed(make(name))
    state = copy.deepcopy(network.state_dict())
    check_comes_back(network, {})
    assert same(dict(network.state_dict()), dict(state))
    save_model(tmp_path / "w.safetensors", network, {})
    fresh = make(name)
    load_weights_file(fresh, tmp_path / "w.safetensors")
    assert same(dict(fresh.state_dict()), dict(state))
    torch.save(state, tmp_path / "w.pt")
    fresh = make(name)
    load_weights_file(fresh, tmp_path / "w.pt")
    assert same(dict(fresh.state_dict()), dict(state))
    torch.save({"state_dict": {f"model.{n}": t for n, t in state.items()}}, tmp_path / "w.ckpt")
    if name != "quantisation-aware":  # its modules read no file without their versions
        fresh = make(name)
        load_weights_file(fresh, tmp_path / "w.ckpt")
        assert same(dict(fresh.state_dict()), dict(state))


def test_a_network_that_has_seen_nothing_takes_what_another_saw(tmp_path: Path) -> None:
    trained = seen(Observed())
    save_model(tmp_path / "w.safetensors", trained, {})
    fresh = Observed()
    load_weights_file(fresh, tmp_path / "w.safetensors")
    assert same(dict(fresh.state_dict()), dict(trained.state_dict()))
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(fresh.eval()(image), trained.eval()(image))


def test_tied_weights_stay_tied_and_one_of_their_names_is_enough() -> None:
    trained, fresh = Net(tied), Net(tied)
    weights = dict(trained.state_dict())
    for name in ("block.0.weight", "block.0.bias", "again.weight"):
        del weights[name]
    load_weights(fresh, weights)
    assert fresh.again is fresh.conv and torch.equal(fresh.conv.weight, trained.conv.weight)


LEFT_OUT = object()


def tied_to(weight: Tensor) -> State:
    return dict.fromkeys(("conv.weight", "block.0.weight", "again.weight"), weight)


def without_batches(state: State) -> State:
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("network", "weights"),
    [
        (Net(buffer(torch.tensor(0.0))), {"extra": torch.tensor([3.0])}),
        (Net(buffer(torch.tensor([0]))), {"extra": torch.tensor([2.0])}),
        (Net(buffer(torch.tensor([0.0]))), {"extra": torch.tensor([2])}),
        (Net(buffer(torch.tensor([False]))), {"extra": torch.tensor([1.0])}),
        (Net(buffer(torch.ones(2))), {"extra": torch.ones(2, dtype=torch.float64)}),
        (Net(buffer(torch.ones(2, dtype=torch.complex64))), {"extra": torch.ones(2)}),
        (Net(), {"conv.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)}),
        (Net(), {"conv.weight": torch.ones(4, 3, 3, 3).to(torch.float8_e5m2)}),
        (Net().half(), {"conv.bias": torch.ones(4, dtype=torch.float64)}),
        (nn.Sequential(Remembers()), {"0.old": torch.zeros(2), "0.weight": LEFT_OUT}),
    ],
)
def test_what_pytorch_takes_is_taken_as_pytorch_takes_it(
    network: nn.Module, weights: State
) -> None:
    state = dict(network.state_dict()) | weights
    state = {name: value for name, value in state.items() if value is not LEFT_OUT}
    expected, ours = copy.deepcopy(network), copy.deepcopy(network)
    expected.load_state_dict(copy.deepcopy(state), strict=True)
    load_weights(ours, state)
    assert same(dict(ours.state_dict()), dict(expected.state_dict()))


def test_files_of_old_versions_without_counts_of_batches_are_taken() -> None:
    trained = seen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    state = without_batches(dict(trained.state_dict()))
    for weights in (state, {f"net.{name}": tensor for name, tensor in state.items()}):
        fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        load_weights(fresh, weights)
        assert torch.equal(fresh[1].running_mean, trained[1].running_mean)


class Fails(nn.Module):
    """Loads half of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.state = ["new"]
        self.register_load_state_dict_post_hook(self._fail)

    @staticmethod
    def _fail(module: Fails, keys: object) -> None:
        module.state.append("loaded")
        module.first.weight = nn.Parameter(torch.zeros(1))
        raise KeyError("calibration")


@pytest.mark.parametrize(
    ("network", "weights", "message"),
    [
        (Net(), {"conv.bias": torch.ones(3)}, r"conv\.bias is \[3\], must be \[4\]"),
        (Net(), {"conv.bias": torch.ones(4).to_sparse()}, "sparse_coo, must be dense"),
        (Net(), {"conv.bias": torch.ones(4) * 1j}, "complex64, must be torch.float32"),
        (Net(), {"conv.bias": "ones"}, "conv.bias is a str, must be dense"),
        (Net(), {"conv.bias": torch.full((4,), INF)}, r"1 weights hold NaN or inf.*conv\.bias"),
        (Net(), {"conv.bias": torch.full((4,), 1e300, dtype=torch.float64)}, "NaN or infinite"),
        (Net().half(), {"conv.bias": torch.full((4,), 1e5)}, "NaN or infinite"),
        (Net(tied), tied_to(torch.full((4, 3, 3, 3), INF)), "NaN or infinite"),
        (seen(Observed()), {"conv.bias": torch.full((4,), INF)}, "NaN or infinite"),
        (Fails(), {}, "KeyError: 'calibration'"),
    ],
)
def test_what_is_refused_changes_nothing(network: nn.Module, weights: State, message: str) -> None:
    before = copy.deepcopy(network.state_dict())
    tensors = [*network.parameters(), *network.buffers()]
    attributes = copy.copy(getattr(network, "state", None))
    others = {n: t + 1 if t.is_floating_point() else t for n, t in before.items()}
    with pytest.raises(ValueError, match=message):
        load_weights(network, others | weights)
    assert same(dict(network.state_dict()), dict(before))
    after = [*network.parameters(), *network.buffers()]
    assert all(a is b for a, b in zip(after, tensors, strict=True))
    assert getattr(network, "state", None) == attributes


def test_a_lazy_network_is_lazy_again_after_a_refusal_and_takes_weights_otherwise() -> None:
    weights = nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match="NaN"):
        load_weights(lazy, weights | {"0.bias": torch.full((4,), INF)})
    assert nn.parameter.is_lazy(lazy[0].weight)
    load_weights(lazy, weights)
    assert torch.equal(lazy[0].weight, weights["0.weight"])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.LazyConv2d(4, 3)), "0.weight has no size yet, because its module is a"),
        (nn.Conv2d(1, 1, 1, device="meta"), "weight has no numbers, it is on the meta device"),
        (nn.Sequential(Remembers(nn.ReLU())), "0._extra_state, of type ReLU, cannot be kept as"),
    ],
)
def test_what_cannot_be_written_is_told_before(
    network: nn.Module, message: str, tmp_path: Path
) -> None:
    for act in (
        lambda: check_comes_back(network, {}),
        lambda: save_model(tmp_path / "w.safetensors", network, {}),
    ):
        with pytest.raises(ValueError, match=f"cannot be saved: {message}"):
            act()
    assert not list(tmp_path.iterdir())


def test_a_network_that_reads_other_numbers_than_it_writes_is_told() -> None:
    def calibrate(module: Net, keys: object) -> None:
        module.conv.bias.data.add_(1)

    network = Net()
    network.register_load_state_dict_post_hook(calibrate)
    with pytest.raises(ValueError, match=r"Net does not read what it writes: conv\.bias come back"):
        check_comes_back(network, {})


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    network = nn.Sequential(Remembers({"a": 1}), nn.BatchNorm2d(3), Net(tied))
    for index in range(8):
        save_model(tmp_path / str(index), network, {"x": 1})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
