"""Every target gives in its own runtime what PyTorch gives, in every precision that it has."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mkdext._system.alone import Failed
from mkdext.export import main
from mkdext.exporting import GRAPH, TRACE
from mkdext.exporting.attempt import EXPORT_KEY, attempt
from mkdext.exporting.comparing import compare, difference, lost, psnr
from mkdext.exporting.lower_precision import halve, quantise
from mkdext.exporting.ncnn_files import run_ncnn, write_ncnn
from mkdext.exporting.onnx_file import run_onnx, write_onnx
from mkdext.exporting.openvino_files import run_openvino, write_openvino
from mkdext.exporting.pictures import calibration, photographs
from mkdext.exporting.targets import TARGETS, check_target
from mkdext.exporting.torch_script import run_torch_script, write_torch_script
from mkdext.inference import Network
from mkdext.models import EDSR, AdaptedNetwork, EDSRConfig, WeightsMetadata, save_model
from mkdext.models.user.interface import Interface
from mkdext.models.weights.metadata import METADATA_KEY

pytestmark = pytest.mark.slow  # PyTorch's exporter alone takes seconds to import

METADATA = {"mkdext": '{"origin": "here"}'}


class Enlarger(nn.Module):
    """Repeats pixels, by convolutions of two kinds, as a network that has learned nothing else."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.up = nn.Conv2d(16, 12, 3, padding=1)
        for conv in (self.wide, self.up):
            conv.weight.data = 0.05 * torch.randn(conv.weight.shape, generator=generator)

    def forward(self, low: Tensor) -> Tensor:
        change = nn.functional.pixel_shuffle(self.up(torch.relu(self.wide(low))), 2)
        return nn.functional.interpolate(low, scale_factor=2) + change


class Spectrum(nn.Module):
    """Does what few runtimes know."""

    def forward(self, low: Tensor) -> Tensor:
        low = torch.fft.irfft2(torch.fft.rfft2(low), s=low.shape[2:])
        return low.repeat_interleave(2, 2).repeat_interleave(2, 3)


def of_a_user(model: nn.Module) -> Network:
    adapted = AdaptedNetwork(model, 2, Interface()).eval().requires_grad_(False)
    return Network(type(model).__name__, adapted, 2, torch.device("cpu"))


@pytest.fixture(scope="module")
def network() -> Network:
    return of_a_user(Enlarger())


@pytest.fixture
def onnx_file(network: Network, tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    write_onnx(network, path, TRACE, metadata=METADATA)
    return path


def check(network: Network, run, least: float, runtime: str = "it") -> None:
    """Compare at two sizes; `least` is in dB."""
    pictures = [torch.rand(1, 3, *size) for size in ((24, 20), (31, 42))]
    expected = [network(low) for low in pictures]
    assert psnr(compare(runtime, run, pictures, expected), expected) > least


def test_openvino_keeps_what_the_file_says_of_itself(
    network: Network, onnx_file: Path, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    sizes = {}
    for half, least in ((False, 100), (True, 60)):
        path = tmp_path / f"{half}.xml"
        write_openvino(onnx_file, path, METADATA, half)
        check(network, run_openvino(path), least)
        sizes[half] = path.with_suffix(".bin").stat().st_size
        kept = openvino.Core().read_model(path).get_rt_info(["mkdext"]).astype(str)
        assert kept == METADATA["mkdext"]
    assert sizes[True] < 0.6 * sizes[False]


def test_ncnn_takes_pictures_of_any_size(network: Network, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    script, param, binary = (tmp_path / name for name in ("n.pt", "n.param", "n.bin"))
    write_torch_script(network, script)
    for half, least in ((False, 90), (True, 50)):
        write_ncnn(script, param, binary, None, half)
        check(network, run_ncnn(param, binary, half), least)


def test_an_operator_that_a_target_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    script = tmp_path / "n.pt"
    write_torch_script(of_a_user(Spectrum()), script, (24, 20))
    with pytest.raises(Failed, match=r"^ncnn lacks the operators .*fft"):
        write_ncnn(script, tmp_path / "n.param", tmp_path / "n.bin", (24, 20), False)
    with pytest.raises(Failed, match=r"operator 'aten::fft_rfft2' to ONNX"):
        write_onnx(of_a_user(Spectrum()), tmp_path / "n.onnx", TRACE)


def test_openvino_names_operators_that_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    import onnx

    low, sr = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8])
        for name in ("lr", "sr")
    )
    node = onnx.helper.make_node("Unheard", ["lr"], ["sr"], domain="somewhere")
    graph = onnx.helper.make_graph([node], "g", [low], [sr])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("somewhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "n.onnx")
    with pytest.raises(Failed, match=r"^OpenVINO lacks the operators somewhere\.Unheard"):
        write_openvino(tmp_path / "n.onnx", tmp_path / "n.xml", {}, False)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torch_script_holds_metadata_and_half_of_the_bytes(
    network: Network, tmp_path: Path
) -> None:
    for half, least in ((False, 100), (True, 50)):
        path = tmp_path / "n.pt"
        write_torch_script(network, path, None, METADATA, half)
        check(network, run_torch_script(path), least)
        said = dict.fromkeys(METADATA, "")
        weights = torch.jit.load(path, _extra_files=said).state_dict().values()
        assert {weight.dtype for weight in weights} == {torch.float16 if half else torch.float32}
        assert {name: bytes(text).decode() for name, text in said.items()} == METADATA
    assert next(network.model.parameters()).dtype == torch.float32


def test_half_precision_in_onnx_keeps_input_and_output(network: Network, onnx_file: Path) -> None:
    import onnx

    halve(onnx_file)
    check(network, run_onnx(onnx_file), 50)
    kept = onnx.load(onnx_file)
    assert {w.data_type for w in kept.graph.initializer if len(w.dims) == 4} == {
        onnx.TensorProto.FLOAT16
    }
    assert {p.key: p.value for p in kept.metadata_props} == METADATA


def test_quantised_convolutions_multiply_integers(network: Network, onnx_file: Path) -> None:
    import onnx

    quantised = onnx_file.with_name("quantised.onnx")
    for keep_ends, kind in ((True, onnx.TensorProto.FLOAT), (False, onnx.TensorProto.INT8)):
        quantise(onnx_file, quantised, calibration(None, 2, None), keep_ends)
        kept = onnx.load(quantised)
        assert METADATA.items() <= {p.key: p.value for p in kept.metadata_props}.items()
        kernels = [w for w in kept.graph.initializer if len(w.dims) == 4]
        assert len(kernels) == 2 and {w.data_type for w in kernels} == {kind}
    pairs = photographs(None, 2, None)
    pictures, true = [low for low, _ in pairs], [high for _, high in pairs]
    expected = [network(low) for low in pictures]
    made = compare("it", run_onnx(quantised), pictures, expected)
    assert 30 < psnr(made, expected) < 60
    assert 0 < lost(made, expected, true, border=2) < 0.1


def test_opsets_are_those_asked_for(network: Network, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "n.onnx"
    write_onnx(network, path, TRACE, opset=13)
    assert [each.version for each in onnx.load(path).opset_import if not each.domain] == [13]
    check(network, run_onnx(path), 100)
    assert TARGETS["onnx"].exporters(13) == (TRACE,)
    assert TARGETS["onnx"].exporters(21) == (GRAPH,)


def test_what_is_lost_is_psnr_of_y_against_the_photograph() -> None:
    true = torch.rand(1, 3, 16, 16)
    expected, made = true * 0.9, true * 0.8  # twice the error: 6.02 dB
    found = lost([made], [expected], [true], border=2)
    assert found == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert lost([expected], [expected], [true], border=2) == 0
    assert lost([true], [true], [true], border=2) == 0
    assert lost([made], [true], [true], border=2) == math.inf
    assert difference([made], [made + 0.5]) == pytest.approx(127.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("ncnn", "x.param", "int8", None), r"`to` ncnn takes `precision` fp32 or fp16, got int8"),
        (("openvino", "x.onnx", "fp32", None), r"`out` must end in \.xml for `to` openvino"),
        (("torchscript", "x.pt", "fp32", 17), "`opset` is of ONNX files, got `to` torchscript"),
        (("onnx", "x", "fp32", 10), "`opset` must be from 11 to 23 for `precision` fp32, got 10"),
        (("onnx", "x", "int8", 12), "`opset` must be from 13 to 23 for `precision` int8, got 12"),
    ],
)
def test_what_a_target_does_not_take_is_refused_before_any_work(given, message: str) -> None:
    to, out, precision, opset = given
    with pytest.raises(ValueError, match=message):
        check_target(to, Path(out), precision, opset)


def test_what_loses_too_much_is_not_written(tmp_path: Path) -> None:
    dark = tmp_path / "dark"
    dark.mkdir()
    for number in range(2):  # Ranges of such pictures cut all others off.
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(dark / f"{number}.png")
    file = tmp_path / "edsr.safetensors"
    torch.manual_seed(0)
    save_model(file, EDSR(EDSRConfig(blocks=1, features=8), scale=2), {})
    given = {"weights": str(file), "scale": 2, "calibration_path": str(dark), "size": None}
    usual = {"to": "onnx", "precision": "int8", "opset": 18, "model": None, "image": None}
    out = tmp_path / "n.onnx"
    with pytest.raises(ValueError, match=r"^`precision` int8 loses .* more than `max_loss` 0\.1"):
        attempt([str(out)], **given, **usual, max_loss=0.1, able=[TRACE], tell=lambda stage: None)
    assert not out.exists()


def test_ncnn_files_are_written_together_and_say_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    out = tmp_path / "n.param"
    assert main(["--out", str(out), "--to", "ncnn", "--shape", "24x32"]) == 0
    said = capsys.readouterr().out
    assert "ncnn differs from PyTorch by at most" in said and " ms, PyTorch " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.bin", "n.json", "n.param"]
    about = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    assert about[EXPORT_KEY]["size"] == [24, 32]
    metadata = WeightsMetadata.from_json(json.dumps(about[METADATA_KEY]))
    assert (metadata.architecture, metadata.scale) == ("RCAN", 4)
    assert main(["--out", str(out), "--to", "ncnn"]) == 2
    assert f"{out} exists; give another --out, or --overwrite" in capsys.readouterr().err
