"""ONNX files do what the networks do, at sizes other than that of the export."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mkdext import export as command
from mkdext._system.alone import Failed
from mkdext.export import main
from mkdext.exporting import GRAPH, TRACE
from mkdext.exporting import attempt as attempts
from mkdext.exporting.attempt import EXPORT_KEY, attempt
from mkdext.exporting.comparing import compare
from mkdext.exporting.comparing import difference as levels
from mkdext.exporting.onnx_file import exporters, run_onnx, write_onnx
from mkdext.exporting.pictures import photographs as compared_photographs
from mkdext.exporting.targets import DEFAULT_OPSET, TARGETS, check_packages
from mkdext.inference import Network, load_network
from mkdext.models import (
    EDSR,
    HAN,
    RCAN,
    RDN,
    SAN,
    VDSR,
    AdaptedNetwork,
    EDSRConfig,
    HANConfig,
    RCANConfig,
    RDNConfig,
    SANConfig,
    SRNetwork,
    SuperResolver,
    VDSRConfig,
    WeightsMetadata,
    accelerate,
    save_model,
)
from mkdext.models.user.interface import Interface
from mkdext.models.weights.metadata import METADATA_KEY

pytestmark = pytest.mark.slow  # PyTorch's exporter alone takes seconds to import

# As the students of the papers, only with fewer layers.
torch.manual_seed(0)
STUDENTS: list[SRNetwork] = [
    RCAN(RCANConfig(groups=1, blocks=1, features=16), scale=4),
    EDSR(EDSRConfig(blocks=1, features=16), scale=3),
    RDN(RDNConfig(blocks=1, layers=2, growth=16, features=16), scale=2),
    HAN(HANConfig(groups=1, blocks=1, features=16, reduction=4), scale=2),
    SAN(SANConfig(groups=1, blocks=1, features=16, reduction=4), scale=2),
    VDSR(VDSRConfig(features=32, blocks=1), scale=3),
]

# Those that converters to other formats know. HAN and SAN have attention with matrices besides.
PLAIN = {"Conv", "Relu", "Add", "Sub", "Mul", "Div", "Sigmoid", "DepthToSpace", "Concat"}
PLAIN |= {"Constant", "Identity"}
OPERATORS = {RCAN: PLAIN | {"GlobalAveragePool"}, EDSR: PLAIN, RDN: PLAIN}


def network(model: nn.Module, scale: int = 2) -> Network:
    """With factors that begin at zero set to something, so that every layer counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    model.eval().requires_grad_(False)
    if isinstance(model, SRNetwork):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    name = type(model).__name__
    if not isinstance(model, SuperResolver):
        model = AdaptedNetwork(model, scale, Interface()).eval()
    return Network(name, model, model.scale, torch.device("cpu"))


def difference(network: Network, file: Path, *sizes: tuple[int, int]) -> float:
    """The largest between ONNX Runtime and PyTorch, which is checked to be rounding."""
    pictures = [torch.rand(1, 3, *size) for size in sizes]
    expected = [network(lr) for lr in pictures]
    made = compare("ONNX Runtime", run_onnx(file), pictures, expected, tolerance=0.1)
    return levels(made, expected)


@pytest.mark.parametrize("model", STUDENTS, ids=lambda model: type(model).__name__)
def test_onnx_runtime_gives_what_pytorch_gives_at_any_size(
    model: SRNetwork, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    write_onnx(network(model), file, exporters(model)[0])
    # SAN's softmax of large products makes more of rounding than others do.
    assert difference(network(model), file, (23, 31), (40, 17)) < 0.05
    graph = onnx.load(file).graph
    (lr,) = graph.input
    sizes = [d.dim_param or d.dim_value for d in lr.type.tensor_type.shape.dim]
    assert sizes == [1, 3, "height", "width"]
    if type(model) in OPERATORS:
        assert {node.op_type for node in graph.node} <= OPERATORS[type(model)]


def test_files_hold_plain_convolutions_also_of_an_accelerated_network(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    accelerate(model)
    for exporter in (GRAPH, TRACE):
        file = tmp_path / f"{exporter}.onnx"
        write_onnx(network(model), file, exporter)
        assert difference(network(model), file, (23, 31)) < 0.05
        assert [node.op_type for node in onnx.load(file).graph.node] == ["Conv", "DepthToSpace"]


class Sharpener(nn.Module):
    """Fills what it computes with when it computes, as networks of several branches do."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(3, 12, 3, padding=1)
        self.merged = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        self.merged.weight.data = 2 * self.branch.weight.data.clone()
        self.merged.bias.data = self.branch.bias.data.clone()  # type: ignore[union-attr]
        return nn.functional.pixel_shuffle(self.merged(lr), 2)


class Windows(nn.Module):
    """Attends to windows of 4x4, into which a picture must divide."""

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[2:]
        windows = lr.view(3, int(height) // 4, 4, int(width) // 4, 4).softmax(2)
        return windows.view(1, 3, height, width).repeat_interleave(2, 2).repeat_interleave(2, 3)


class InPlace(nn.Module):
    """Works on the picture that it is given."""

    def forward(self, lr: Tensor) -> Tensor:
        lr *= 255
        return lr.repeat_interleave(2, 2).repeat_interleave(2, 3) / 255


class Traced(nn.Module):
    """Makes of a picture's size a number that a trace holds for ever."""

    def forward(self, lr: Tensor) -> Tensor:
        return nn.functional.pad(lr, (0, int(lr.shape[3]), 0, int(lr.shape[2])))


class Positioned(nn.Module):
    """Knows where a pixel is in pictures of one size."""

    def forward(self, lr: Tensor) -> Tensor:
        return (lr + torch.ones(24, 20)).repeat_interleave(2, 2).repeat_interleave(2, 3)


class Deciding(nn.Module):
    """Does another thing with bright pictures."""

    def forward(self, lr: Tensor) -> Tensor:
        sr = lr.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return sr if lr.mean() > 0.4 else 1 - sr


@pytest.mark.parametrize("exporter", [GRAPH, TRACE])
def test_weights_that_are_filled_in_every_pass_are_filled_once_before(
    exporter: str, tmp_path: Path
) -> None:
    sharpener, file = network(Sharpener()), tmp_path / "model.onnx"
    write_onnx(sharpener, file, exporter)
    assert difference(sharpener, file, (24, 20), (9, 14)) < 0.01
    assert "data" not in vars(Tensor)
    assert {node.op_type for node in onnx.load(file).graph.node} == {"Conv", "DepthToSpace"}


@pytest.mark.parametrize("exporter", [GRAPH, TRACE])
def test_a_network_for_one_size_is_written_for_that(exporter: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    write_onnx(network(Windows()), file, exporter, (8, 12))
    assert difference(network(Windows()), file, (8, 12)) < 0.01
    (lr,) = onnx.load(file).graph.input
    assert [d.dim_value for d in lr.type.tensor_type.shape.dim] == [1, 3, 8, 12]


def test_a_network_that_works_in_place_on_its_picture_is_exported(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    write_onnx(network(InPlace()), file, GRAPH)
    assert difference(network(InPlace()), file, (9, 8)) < 0.01


def test_a_trace_of_one_size_is_told_from_the_network(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    write_onnx(network(Traced()), file, TRACE)
    with pytest.raises(Failed, match=r"fits a picture \[1, 3, 24, 20\], .* on a picture \[1, 3, 9"):
        difference(network(Traced()), file, (24, 20), (9, 8))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Deciding(), "what it does depends on the values in the picture"),
        (Positioned(), "its graph would hold for some sizes of pictures only"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_why_there_is_no_graph_is_one_sentence(
    model: nn.Module, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(Failed) as failure:
        write_onnx(network(model), tmp_path / "model.onnx", GRAPH)
    assert str(failure.value) == reason


def test_weights_beyond_what_a_file_holds_are_refused_before_the_work(tmp_path: Path) -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(600_000_000, device="meta"))

    huge = Network("Huge", AdaptedNetwork(Huge(), 2, Interface()), 2, torch.device("cpu"))
    with pytest.raises(Failed, match=r"take 2\.4 GB, and an ONNX file .* less than 2 GB"):
        write_onnx(huge, tmp_path / "model.onnx", GRAPH)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_vdsr_for_export_enlarges_as_matlab_does_to_the_edge(scale: int) -> None:
    model = VDSR(VDSRConfig(features=8, blocks=1), scale).eval()
    lr = torch.rand(1, 3, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(model.for_export()(lr), model(lr), atol=2e-6, rtol=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights of an EDSR and what the command made of them, not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    weights, out = folder / "edsr.safetensors", folder / "edsr.onnx"
    save_model(weights, EDSR(EDSRConfig(blocks=1, features=8), scale=2), {"steps": 7})
    assert main(["--weights", str(weights), "--out", str(out)]) == 0
    return weights, out


def test_the_file_says_what_it_is_and_needs_no_other(exported: tuple[Path, Path]) -> None:
    content = exported[1].read_bytes()
    said = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    metadata = WeightsMetadata.from_json(said[METADATA_KEY])
    assert (metadata.architecture, metadata.scale, metadata.origin) == ("EDSR", 2, {"steps": 7})
    about = json.loads(said[EXPORT_KEY])
    assert len(about.pop("sha256")) == 64
    assert about == {
        "network": "EDSR",
        "scale": 2,
        "value_range": [0, 1],
        "size": None,
        "precision": "fp32",
        "weights": "edsr.safetensors",
        "exporter": TRACE,
    }
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (sr,) = session.run(None, {"lr": np.zeros((1, 3, 5, 6), np.float32)})
    assert sr.shape == (1, 3, 10, 12)


NETWORKS = """
import os, signal, torch
from torch import nn

class Crashing(nn.Module):
    def forward(self, lr):
        if torch.compiler.is_exporting():
            os.kill(os.getpid(), signal.SIGSEGV)
        return lr.repeat_interleave(2, 2).repeat_interleave(2, 3)

class Broken(nn.Module):
    def forward(self, lr):
        return lr.repeat_interleave(2, 2).repeat_interleave(2, 3) * float("nan")

class OneSize(nn.Module):
    def forward(self, lr):
        sr = lr.view(3, 2, 4, 100, 4).softmax(2).view(lr.shape)
        return sr.repeat_interleave(2, 2).repeat_interleave(2, 3)
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with networks of a user's."""
    file = tmp_path_factory.mktemp("networks") / "networks_of_a_user.py"
    file.write_text(NETWORKS)
    return file


def attempt_in_this_process(out: Path, **given: Any) -> dict[str, Any]:
    names = ("weights", "model", "scale", "image", "size", "calibration_path")
    usual = {"to": "onnx", "precision": "fp32", "opset": DEFAULT_OPSET, "max_loss": 0.1}
    usual |= dict.fromkeys(names) | given
    return attempt([str(out)], **usual, able=(GRAPH, TRACE), tell=lambda stage: None)


def test_a_network_of_the_users_is_exported(own_network: tuple[str, Path], tmp_path: Path) -> None:
    out, (name, weights) = tmp_path / "own.onnx", own_network
    made = attempt_in_this_process(out, model=name, weights=str(weights))
    assert (made["architecture"], made["scale"], made["exporter"]) == ("ESPCN", 4, GRAPH)
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    lr = torch.rand(1, 3, 11, 8)
    (sr,) = session.run(None, {"lr": lr.numpy()})
    expected = load_network(weights, 4, name)(lr)
    torch.testing.assert_close(torch.from_numpy(sr), expected, atol=1e-5, rtol=0)
    said = {p.key: p.value for p in onnx.load(out).metadata_props}
    metadata = WeightsMetadata.from_json(said[METADATA_KEY])
    assert (metadata.architecture, metadata.scale) == (None, 4)


def test_a_network_that_takes_one_size_only_is_exported_for_that(
    networks: Path, tmp_path: Path
) -> None:
    out, name = tmp_path / "own.onnx", f"{networks}:OneSize"
    with pytest.raises(ValueError, match=r"it must take any size.*`shape` HEIGHTxWIDTH$"):
        attempt_in_this_process(out, model=name, scale=2)
    # Larger than the photograph, which is repeated.
    made = attempt_in_this_process(out, model=name, scale=2, size=[8, 400])
    assert (made["height"], made["width"]) == (8, 400)
    said = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(said[EXPORT_KEY])["size"] == [8, 400]


def test_a_network_whose_result_is_not_finite_is_named(networks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Broken gives NaN or infinite numbers"):
        attempt_in_this_process(tmp_path / "x.onnx", model=f"{networks}:Broken", scale=2)


def test_where_one_exporter_crashes_the_other_is_tried(
    networks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own.onnx"
    assert main(["--model", f"{networks}:Crashing", "--scale", "2", "--out", str(out)]) == 0
    said, errors = capfd.readouterr()
    assert "Crashing x2, fp32, 0.00 MB, for pictures of any size; exported" in said
    reason = "exported by tracing, because torch.export failed: its process crashed (SIGSEGV)\n"
    assert f"; {reason}on a photograph of 120x97 pixels ONNX Runtime" in said and not errors
    assert [path.name for path in tmp_path.iterdir()] == ["own.onnx"]


Run = Callable[..., dict[str, Any]]


def exporter_that_fails(reasons: dict[str, str]) -> Run:
    def run(function: str, arguments: dict[str, Any], told: Callable[[str], None], limit: float):
        Path(arguments["outs"][0]).write_bytes(b"half")
        told("loading")
        told(arguments["able"][0])
        raise Failed(reasons[arguments["able"][0]])

    return run


@pytest.mark.parametrize(
    ("trace", "size", "message"),
    [
        ("b", [], f"by {GRAPH}: a; by {TRACE}: b; --shape HEIGHTxWIDTH exports it for pictures of"),
        ("b", ["--shape", "8x8"], f"by {GRAPH}: a; by {TRACE}: b\n"),
        ("a", ["--shape", "8x8"], f"by {GRAPH} or {TRACE}: a\n"),
    ],
)
def test_where_both_exporters_fail_one_sentence_says_why_and_offers_one_size(
    trace: str,
    size: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "run_alone", exporter_that_fails({GRAPH: "a", TRACE: trace}))
    assert main(["--out", str(tmp_path / "x.onnx"), *size]) == 1
    expected = f"mkdext.export: the built-in network cannot be exported, {message}"
    assert capsys.readouterr().err.startswith(expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
        (Failed("its process crashed (SIGSEGV)"), 1, "network cannot be loaded: its process"),
    ],
    ids=["full disk", "Ctrl-C", "crash while loading"],
)
def test_nothing_is_left_of_an_export_that_was_stopped(
    failure: BaseException,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(function: str, arguments: dict[str, Any], *given: object) -> None:
        Path(arguments["outs"][0]).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(command, "run_alone", stopped)
    assert main(["--out", str(tmp_path / "edsr.onnx")]) == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    small = network(EDSR(EDSRConfig(blocks=1, features=8), scale=2))
    with pytest.raises(OSError, match="No such file or directory"):
        write_onnx(small, tmp_path / "nowhere" / "edsr.onnx", GRAPH)


def test_only_a_regular_file_is_replaced_and_only_if_asked_by_a_whole_one(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pipe = tmp_path / "edsr.onnx", tmp_path / "pipe"
    out.write_text("mine")
    os.mkfifo(pipe)
    flags = ["--weights", str(exported[0]), "--out"]
    for arguments, message in (
        ([str(out)], "exists; give another --out, or --overwrite"),
        ([str(pipe), "--overwrite"], f"{pipe} is no regular file"),
        ([str(tmp_path), "--overwrite"], f"--out {tmp_path} is a folder; name a file in it"),
        ([str(exported[0]), "--overwrite"], "is the file of --weights; give another --out"),
        ([str(tmp_path / "no" / "x.onnx")], f"there is no folder {tmp_path / 'no'}"),
        ([str(out), "--overwrite", "--shape", "0x8"], "--shape must be dynamic or HEIGHTxWIDTH"),
    ):
        assert main([*flags, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edsr.onnx", "pipe"]


def test_a_photograph_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    letter, small = tmp_path / "letter.png", tmp_path / "small.png"
    letter.write_text("dear reader")
    with pytest.raises(ValueError, match=f"`image` {letter}: not an image"):
        compared_photographs(letter, 2, None)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is no regular file"):
        compared_photographs(tmp_path / "pipe.png", 2, None)
    Image.fromarray(np.zeros((1, 8, 3), np.uint8)).save(small)
    with pytest.raises(ValueError, match="must have at least 2 pixels a side"):
        compared_photographs(small, 2, None)


def test_a_file_that_gives_something_else_is_told(exported: tuple[Path, Path]) -> None:
    small = network(EDSR(EDSRConfig(blocks=1, features=8), scale=2))
    with pytest.raises(Failed, match=r"differs from PyTorch by .* levels, more than"):
        difference(small, exported[1], (9, 9))
    other = network(EDSR(EDSRConfig(blocks=1, features=8), scale=3))
    with pytest.raises(Failed, match=r"gives \[1, 3, 18, 18\] where PyTorch gives"):
        difference(other, exported[1], (9, 9))
    letter = exported[0].with_name("letter.onnx")
    letter.write_text("dear reader")
    with pytest.raises(Failed, match=r"^ONNX Runtime refuses the file: "):
        difference(small, letter, (9, 9))


def test_exhausted_memory_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "load_network", lambda *given, **named: torch.empty(1 << 50))
    with pytest.raises(Failed, match=r"^memory is exhausted$"):
        attempt_in_this_process(tmp_path / "x.onnx")


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else name
    )
    with pytest.raises(ValueError, match=r"pip install onnx onnxruntime onnxscript$"):
        check_packages("onnx")


def test_a_package_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_for_another_numpy.py").write_text("raise AttributeError('_ARRAY_API')")
    monkeypatch.syspath_prepend(tmp_path)
    target = dataclasses.replace(TARGETS["onnx"], packages=("made_for_another_numpy",))
    monkeypatch.setitem(TARGETS, "onnx", target)
    with pytest.raises(ValueError, match=r"numpy is installed but cannot be imported: Attribute"):
        attempt_in_this_process(tmp_path / "x.onnx")
