"""ONNX files do what the networks do, at sizes other than that of the export."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from mkdext import export as command
from mkdext.export import ExportError, check_packages, compare, export, exportable, main
from mkdext.inference import Network, load_network
from mkdext.models import (
    EDSR,
    HAN,
    RCAN,
    RDN,
    SAN,
    VDSR,
    EDSRConfig,
    HANConfig,
    RCANConfig,
    RDNConfig,
    SANConfig,
    SRNetwork,
    VDSRConfig,
    WeightsMetadata,
    save_model,
)

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


def network(model: SRNetwork) -> Network:
    """With factors that begin at zero set to something, so that every layer counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    model.eval().requires_grad_(False)
    return Network(type(model).__name__, model, model.scale, torch.device("cpu"))


@pytest.mark.parametrize("model", STUDENTS, ids=lambda model: type(model).__name__)
def test_onnx_runtime_gives_what_pytorch_gives_at_any_size(
    model: SRNetwork, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    export(network(model), None, file)
    for height, width in ((23, 31), (40, 17)):
        # SAN's softmax of large products makes more of rounding than others do.
        assert compare(network(model), file, torch.rand(1, 3, height, width)) < 0.05
    (lr,) = onnx.load(file).graph.input
    sizes = [d.dim_param or d.dim_value for d in lr.type.tensor_type.shape.dim]
    assert sizes == [1, 3, "height", "width"]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_vdsr_for_export_enlarges_as_matlab_does_to_the_edge(scale: int) -> None:
    model = VDSR(VDSRConfig(features=8, blocks=1), scale).eval()
    lr = torch.rand(1, 3, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(exportable(model)(lr), model(lr), atol=2e-6, rtol=0)


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
    (said,) = onnx.load_from_string(content).metadata_props
    metadata = WeightsMetadata.from_json(said.value)
    assert (metadata.architecture, metadata.scale, metadata.origin) == ("EDSR", 2, {"steps": 7})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (sr,) = session.run(None, {"lr": np.zeros((1, 3, 5, 6), np.float32)})
    assert sr.shape == (1, 3, 10, 12)


@pytest.mark.parametrize("name", ["ESPCN", "Identity"])
def test_a_network_of_the_users_is_exported(
    name: str, own_network: tuple[str, Path], tmp_path: Path
) -> None:
    out, own, weights = tmp_path / "own.onnx", "torch.nn:Identity", []
    if name == "ESPCN":
        own, weights = own_network[0], ["--weights", str(own_network[1])]
    assert main(["--model", own, "--scale", "4", *weights, "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    lr = torch.rand(1, 3, 11, 8)
    (sr,) = session.run(None, {"lr": lr.numpy()})
    network = load_network(own_network[1] if weights else None, 4, own)
    torch.testing.assert_close(torch.from_numpy(sr), network(lr), atol=1e-5, rtol=0)
    (said,) = onnx.load(out).metadata_props
    metadata = WeightsMetadata.from_json(said.value)
    assert (metadata.architecture, metadata.scale) == (None, 4)


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
    ],
    ids=["full disk", "Ctrl-C"],
)
@pytest.mark.parametrize("step", ["export", "compare"])
def test_nothing_is_left_of_an_export_that_was_stopped(
    step: str,
    failure: BaseException,
    status: int,
    message: str,
    exported: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def export_half(network: Network, metadata: WeightsMetadata | None, path: Path) -> None:
        path.write_bytes(b"half")
        if step == "export":
            raise failure

    def compare_half(*arguments: object) -> float:
        raise failure

    monkeypatch.setattr(command, "export", export_half)
    monkeypatch.setattr(command, "compare", compare_half)
    out = tmp_path / "edsr.onnx"
    assert main(["--weights", str(exported[0]), "--out", str(out)]) == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    small = network(EDSR(EDSRConfig(blocks=1, features=8), scale=2))
    with pytest.raises(OSError, match="No such file or directory"):
        export(small, None, tmp_path / "nowhere" / "edsr.onnx")


def test_a_file_is_replaced_only_if_asked_and_only_by_a_whole_one(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "edsr.onnx"
    out.write_text("mine")
    flags = ["--weights", str(exported[0]), "--out", str(out)]
    assert main(flags) == 2
    assert "exists; give another --out, or --overwrite" in capsys.readouterr().err
    Image.fromarray(np.zeros((1, 8, 3), np.uint8)).save(tmp_path / "small.png")
    assert main([*flags, "--overwrite", "--image", str(tmp_path / "small.png")]) == 2
    assert "must have at least 2 pixels a side" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edsr.onnx", "small.png"]


def test_a_folder_as_output_and_a_broken_photograph_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mkdext.export.check_packages", lambda: None)
    assert main(["--out", str(tmp_path), "--overwrite"]) == 2
    assert f"--out {tmp_path} is a folder; name a file in it" in capsys.readouterr().err
    letter = tmp_path / "letter.png"
    letter.write_text("dear reader")
    assert main(["--out", str(tmp_path / "x.onnx"), "--image", str(letter)]) == 2
    assert f"--image {letter}: not an image" in capsys.readouterr().err


def test_a_file_that_gives_something_else_is_told(exported: tuple[Path, Path]) -> None:
    lr = torch.rand(1, 3, 9, 9)
    small = network(EDSR(EDSRConfig(blocks=1, features=8), scale=2))
    with pytest.raises(ExportError, match=r"differs from PyTorch by .* levels, more than"):
        compare(small, exported[1], lr)
    other = network(EDSR(EDSRConfig(blocks=1, features=8), scale=3))
    with pytest.raises(ExportError, match=r"gives \[1, 3, 18, 18\] where PyTorch gives"):
        compare(other, exported[1], lr)


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else name
    )
    with pytest.raises(ValueError, match=r"pip install onnx onnxruntime onnxscript$"):
        check_packages()
