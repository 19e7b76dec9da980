"""Networks of users: found by name, adapted, or refused in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mkdext.models import (
    VDSR,
    AdaptedNetwork,
    LumaVDSR,
    VDSRConfig,
    adapt,
    create_model,
    load_own,
    make_own,
    resolve_student,
    resolve_teacher,
    save_model,
)
from mkdext.models.handling import copy_with_tensors, evaluation_mode, placed
from mkdext.models.user.trial import check_has_parameters, check_trains

NETS = """
from torch import nn
from sizes import FEATURES

class Tiny(nn.Sequential):
    def __init__(self, features=FEATURES):
        last = nn.Conv2d(features, 12, 3, padding=1)
        super().__init__(nn.Conv2d(3, features, 3, padding=1), last, nn.PixelShuffle(2))

def luma():
    return nn.Conv2d(1, 1, 3, padding=1)

def wide(features):
    return Tiny(features)

def text():
    return "a network"

def fails():
    raise RuntimeError("no licence\\nfor this")

def wrong_scale():
    return nn.Sequential(nn.Conv2d(3, 27, 3, padding=1), nn.PixelShuffle(3))

def four_colours():
    return nn.Conv2d(4, 4, 3, padding=1)

def windows():
    return nn.Sequential(nn.PixelUnshuffle(48), nn.PixelShuffle(96))

made = Tiny()
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "sizes.py").write_text("FEATURES = 6\n")
    path = tmp_path / "nets_of_mine.py"
    path.write_text(NETS)
    return path


@pytest.fixture(autouse=True)
def modules_as_before():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in ("sizes", "nets_of_mine", "broken"):
            del sys.modules[name]


class Doubling(nn.Module):
    """Enlarges a Y image twice by repetition, plus a learnt number."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor) -> Tensor:
        if y.shape[1] != 1:
            raise ValueError("one channel")
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3) + self.bias


def test_a_factory_in_a_file_is_called_and_imports_from_its_own_folder(nets: Path) -> None:
    network = make_own(f"{nets}:Tiny", "`student`")
    assert type(network).__name__ == "Tiny" and network[0].out_channels == 6
    assert str(nets.parent) not in sys.path


def test_a_factory_of_a_module_is_found_by_its_dotted_name(nets: Path, monkeypatch) -> None:
    monkeypatch.chdir(nets.parent)
    assert make_own("nets_of_mine:Tiny", "`student`")[0].out_channels == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{nets}:Tny", r"nets_of_mine has no 'Tny'; did you mean Tiny\?"),
        ("{nets}:zzz", r"nets_of_mine has no 'zzz'; it has Tiny, luma, wide, "),
        ("{nets}:wide", r"must need no arguments, but: missing a required argument: 'features'"),
        ("{nets}:text", r"must return a torch\.nn\.Module, got str"),
        ("{nets}:fails", r"failed: RuntimeError: no licence$"),
        ("{nets}:made", r"must be a function or class that makes a network, got an object Tiny"),
        ("{nets}:", r"must be package\.module:factory or file\.py:factory"),
        ("{folder}/none.py:Tiny", r"there is no file .*none\.py"),
        ("{folder}/broken.py:Tiny", r"cannot be imported: ModuleNotFoundError: No module named"),
        ("no_such_package.nets:Tiny", r"cannot be imported: ModuleNotFoundError: No module named"),
        ("{nets}:wrong_scale", r"into \[1, 3, 34, 38\], .*at scale 2; got \[1, 3, 51, 57\]"),
        ("{nets}:four_colours", r"fails on an image \[1, 3, 17, 19\].*expected input.* 4 channels"),
        ("{nets}:windows", r"must take any size, or multiples .*: RuntimeError"),
        ("nets.py", r"is unknown, there are .*file\.py:factory; name its factory"),
    ],
)
@pytest.mark.parametrize("argument", ["`student`", "`teacher`"])
def test_what_gives_no_usable_network_is_refused(
    argument: str, name: str, message: str, nets: Path
) -> None:
    (nets.parent / "broken.py").write_text("import no_such_thing\n")
    name = name.format(nets=nets, folder=nets.parent)
    with pytest.raises(ValueError, match=message) as refused:
        if argument == "`student`":
            resolve_student(name, scale=2)
        else:
            resolve_teacher(name, None, scale=2)
    assert str(refused.value).startswith(f"{argument} {name}")
    assert "\n" not in str(refused.value)


def test_weights_of_a_network_of_ones_own_load_strictly(nets: Path, tmp_path: Path) -> None:
    trained = make_own(f"{nets}:Tiny", "`teacher`")
    file = tmp_path / "tiny.pt"
    torch.save({"state_dict": trained.state_dict()}, file)
    teacher = resolve_teacher(f"{nets}:Tiny", file, scale=2)
    lr = torch.rand(1, 3, 5, 4)
    assert torch.equal(teacher(lr), trained(lr))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match=r"tiny\.pt: the weights do not fit the network"):
        resolve_teacher(f"{nets}:luma", file, scale=2)


def test_making_a_teacher_draws_nothing_from_the_random_generator(nets: Path) -> None:
    before = torch.random.get_rng_state()
    resolve_teacher(f"{nets}:Tiny", None, scale=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_of_this_package_is_left_as_it_is() -> None:
    network = create_model("rcan-a", scale=2)
    assert adapt(network, 2, "student") is network


class Views(nn.Module):
    """Takes the layout of its image for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 3, 3, 1, 1))

    def forward(self, lr: Tensor) -> Tensor:
        batch, _, height, width = lr.shape
        rows = lr.view(batch, 3, height * width)
        colours = torch.einsum("oi,bip->bop", self.weight[0, :, :, 0, 0], rows)
        colours = colours.view(batch, 3, height, width)
        return colours.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_network_gets_images_in_the_layout_of_pytorch() -> None:
    network = placed(adapt(Views(), 2, "student"), torch.device("cpu"))
    lr = torch.rand(2, 3, 8, 7).to(memory_format=torch.channels_last)
    assert torch.equal(network(lr), network(lr.contiguous()))


def test_buffers_that_a_network_makes_when_it_runs_first_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Lazy(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 3, 1)\n"
        "    def forward(self, x):\n"
        "        if not hasattr(self, 'gain'):\n"
        "            self.register_buffer('gain', torch.ones(1))\n"
        "        return self.conv(x) * self.gain\n"
    )
    name = f"{tmp_path / 'lazy.py'}:Lazy"
    network = make_own(name, "`model`")
    network(torch.rand(1, 3, 4, 4))
    network.gain += 1
    save_model(tmp_path / "weights.safetensors", network, {})
    loaded = load_own(name, tmp_path / "weights.safetensors", 2, "--model")
    assert torch.equal(loaded.network.gain, torch.full((1,), 2.0))
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: the weights do not fit the network"):
        load_own(name, tmp_path / "other.pt", 2, "--model")


class InPlace(nn.Conv2d):
    """Changes its image, as networks do that multiply it by their range."""

    def forward(self, image: Tensor) -> Tensor:
        image *= 2
        return super().forward(image)


def test_a_network_that_works_in_place_does_not_change_the_image_of_others() -> None:
    network = adapt(InPlace(3, 3, 1), 2, "student")
    lr = torch.rand(1, 3, 8, 7, requires_grad=True)
    before = lr.detach().clone()
    first, again = network(lr), network(lr)
    assert torch.equal(lr, before) and torch.equal(first, again)
    first.sum().backward()
    assert lr.grad is not None and lr.grad.any()


def test_weights_of_the_network_itself_load_into_the_adapted_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))
    weights = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    adapted = nn.ModuleDict({"decoder": adapt(network, 2, "student")})
    adapted.load_state_dict({f"decoder.{name}": tensor for name, tensor in weights.items()})
    assert all(torch.equal(t, weights[name]) for name, t in network.state_dict().items())
    adapted.load_state_dict(adapted.state_dict())


def test_a_published_vdsr_sharpens_the_enlarged_luma_as_ours_does() -> None:
    torch.manual_seed(0)
    ours = VDSR(VDSRConfig(features=4, blocks=2), scale=3)
    network = LumaVDSR(ours.config)
    network.load_state_dict(ours.luma.state_dict())
    adapted = adapt(network, 3, "teacher")
    assert isinstance(adapted, AdaptedNetwork) and adapted.interface.enlarged
    assert adapted.interface.channels == 1
    lr = torch.rand(2, 3, 7, 6)
    torch.testing.assert_close(adapted(lr), ours(lr), rtol=1e-5, atol=1e-6)


def test_a_luma_network_that_enlarges_keeps_the_colours_of_the_enlarged_image() -> None:
    adapted = adapt(Doubling(), 2, "student")
    assert isinstance(adapted, AdaptedNetwork) and not adapted.interface.enlarged
    flat = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 5, 4)
    torch.testing.assert_close(
        adapted(flat), flat.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=1e-5, atol=1e-6
    )
    with torch.no_grad():
        adapted.network.bias += 0.1
    change = adapted(flat)[0, :, 0, 0] - flat[0, :, 0, 0]
    torch.testing.assert_close(change, torch.full((3,), 0.1 * 255 / 219))


def test_a_colour_network_of_enlarged_images_is_given_them() -> None:
    adapted = adapt(nn.Conv2d(3, 3, 1), 4, "student")
    assert isinstance(adapted, AdaptedNetwork) and adapted.interface.enlarged
    assert adapted.interface.channels == 3
    assert adapted(torch.rand(1, 3, 5, 6)).shape == (1, 3, 20, 24)


def test_probing_leaves_modes_and_running_statistics_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.PixelShuffle(2))
    network[0].eval()
    adapt(network, 2, "student")
    assert network.training and network[1].training and not network[0].training
    assert network[1].num_batches_tracked == 0


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Once(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return OnlyOnce.apply(super().forward(x))


def test_a_student_must_be_differentiable_twice_and_have_something_to_train() -> None:
    check_trains(nn.Conv2d(3, 3, 1), [], twice=True)
    with pytest.raises(ValueError, match="student Once cannot be differentiated twice, which the"):
        check_trains(Once(3, 3, 1), [], twice=True)
    with pytest.raises(ValueError, match=r"Conv2d has no .* to train; all its 2 are frozen"):
        check_has_parameters(nn.Conv2d(3, 3, 1).requires_grad_(False))
    with pytest.raises(ValueError, match=r"student Identity has no parameter to train$"):
        check_has_parameters(nn.Identity())


def test_a_copy_can_share_its_tensors_and_has_hooks_and_modes_of_its_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    copy = copy_with_tensors(network, lambda tensor: tensor)
    assert copy is not network and copy[0].weight is network[0].weight
    assert copy[1].running_mean is network[1].running_mean
    copy.eval()
    copy[0].register_forward_hook(lambda *_: None)
    assert network.training and not network[0]._forward_hooks


def test_the_evaluation_mode_ends_also_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluation_mode(network):
        assert not network[0].training
        raise KeyError
    assert network.training and network[0].training and not network[1].training


def test_a_network_for_one_size_is_run_on_that() -> None:
    windows = nn.Sequential(nn.Unflatten(3, (-1, 10)), nn.Flatten(3))
    adapted = adapt(windows, 2, "`model` windows", size=(5, 20))
    assert adapted(torch.rand(1, 3, 5, 20)).shape == (1, 3, 10, 40)
    with pytest.raises(ValueError, match=r"^`model` windows fails on an image \[1, 3, 5, 3\]: "):
        adapt(windows, 3, "`model` windows", size=(5, 3))
