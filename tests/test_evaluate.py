"""The command that measures networks, as a user meets it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mkdext import evaluate as command
from mkdext.data import builtin_photographs, imresize, make_pair, prepare_store, read_image
from mkdext.evaluate import main
from mkdext.inference import Tiling, load_network
from mkdext.metrics import psnr_y, ssim_y, ssim_y_uniform, to_uint8
from mkdext.models import EDSR, VDSR, EDSRConfig, VDSRConfig, save_model


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of photographs, of sides that no scale divides, not to be changed."""
    folder = tmp_path_factory.mktemp("sets") / "Set2"
    folder.mkdir()
    for path in builtin_photographs("validation")[1:]:
        with Image.open(path) as image:
            image.crop((150, 100, 150 + 131, 100 + 103)).save(folder / path.name)
    return folder


@pytest.fixture(scope="module")
def edsr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EDSR]:
    torch.manual_seed(0)
    model = EDSR(EDSRConfig(blocks=1, features=8), scale=4)
    path = tmp_path_factory.mktemp("weights") / "edsr.safetensors"
    save_model(path, model, {})
    return path, model


def report(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


@torch.no_grad()
def upscaled(model: torch.nn.Module, low: Tensor) -> Tensor:
    return model(low[None].float())[0]


def test_networks_and_bicubic_are_measured_as_papers_do(
    photographs: Path, edsr: tuple[Path, EDSR], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, model = edsr
    other = tmp_path / "checkpoints" / "edsr.safetensors"
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    flags = ["--weights", str(path), "--weights", str(other), "--data", str(photographs)]
    assert main([*flags, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "Set2, x4, protocol 8bit" in shown and "peak memory" in shown

    expected = {"bicubic": [], "edsr": []}
    for photograph in sorted(photographs.iterdir()):
        low, high = make_pair(read_image(photograph), 4)
        for way, sr in (
            ("bicubic", imresize(low / 255, 4)),
            ("edsr", upscaled(model, low / 255)),
        ):
            expected[way].append((psnr_y(to_uint8(sr), high, 4), ssim_y(to_uint8(sr), high, 4)))
    scores = report(tmp_path / "out")
    assert (scores["scale"], scores["protocol"], scores["border"]) == (4, "8bit", 4)
    assert scores["networks"] == {"edsr": 6867, str(other.with_suffix("")): 6867}
    means = scores["validation"]["Set2"]
    for way, values in expected.items():
        measured = means[way]["psnr_y"], means[way]["ssim_y"]
        assert measured == pytest.approx(np.mean(values, axis=0), abs=1e-6)
        assert means[way]["ssim_y_uniform"] is None
        assert min(means[way][k] for k in ("seconds", "pixels_per_second", "peak_bytes")) > 0
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["image"], r["way"]) for r in rows[:2]] == [
        ("chelsea.png", "bicubic"),
        ("chelsea.png", "edsr"),
    ]
    assert len(rows) == 6
    assert float(rows[1]["psnr_y"]) == expected["edsr"][0][0]
    assert int(rows[0]["pixels"]) == 128 * 100
    with Image.open(tmp_path / "out" / "contact_sheet_Set2.png") as sheet:
        # Truth, bicubic and two networks, of two photographs.
        assert sheet.width > 1.5 * sheet.height
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])
    assert page["command"].startswith(f"python -m mkdext.evaluate --weights {path} --weights ")
    (table,) = page["tables"]
    assert len(table["rows"]) == 3 and table["rows"][0][0] == "mean"
    pictures = page["scenes"][0]["pictures"]
    ways = ["low resolution", "bicubic", "edsr", str(other.with_suffix("")), "photograph"]
    assert [picture["name"] for picture in pictures] == ways


def test_vdsr_is_measured_without_rounding_and_with_the_ssim_of_its_table(
    photographs: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = VDSR(VDSRConfig(features=8, blocks=1), scale=3)
    save_model(tmp_path / "vdsr.safetensors", model, {})
    flags = ["--weights", str(tmp_path / "vdsr.safetensors"), "--data", str(photographs)]
    assert main([*flags, "--border", "5", "--out", str(tmp_path)]) == 0
    expected = []
    for photograph in sorted(photographs.iterdir()):
        high = read_image(photograph)[:, :102, :129]
        sr = upscaled(model, imresize(high.double() / 255, 1 / 3))
        expected.append([metric(sr, high, 5) for metric in (psnr_y, ssim_y, ssim_y_uniform)])
    scores = report(tmp_path)
    assert (scores["protocol"], scores["border"]) == ("float", 5)
    mean = scores["validation"]["Set2"]["vdsr"]
    measured = [mean[name] for name in ("psnr_y", "ssim_y", "ssim_y_uniform")]
    assert measured == pytest.approx(np.mean(expected, axis=0), abs=1e-5)
    assert main([*flags, "--protocol", "8bit", "--out", str(tmp_path)]) == 0
    rounded = report(tmp_path)["validation"]["Set2"]["vdsr"]["psnr_y"]
    assert rounded != pytest.approx(measured[0], abs=1e-3)


def test_a_network_of_the_users_is_measured(
    photographs: Path, own_network: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = own_network
    flags = ["--model", name, "--weights", str(weights), "--data", str(photographs)]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    network = load_network(weights, name=name)
    expected = []
    for photograph in sorted(photographs.iterdir()):
        low, high = make_pair(read_image(photograph), 4)
        expected.append(psnr_y(to_uint8(network(low[None] / 255)[0]), high, 4))
    mean = report(tmp_path)["validation"]["Set2"]["espcn"]
    assert mean["psnr_y"] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "whole picture", "too little"])
def test_a_photograph_that_does_not_fit_is_enlarged_in_tiles_and_that_is_told(
    kind: str,
    photographs: Path,
    edsr: tuple[Path, EDSR],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    flags = [] if kind == "whole picture" else ["--weights", str(edsr[0])]
    flags += ["--data", str(photographs), "--out"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    assert "tiles" not in capsys.readouterr().out
    network = load_network(None if kind == "whole picture" else edsr[0])
    few = 0.9 if kind != "too little" else 1e-3
    needed = network.costs.of(25, 32) + 25 * 32 * 16 * 64
    monkeypatch.setattr(command, "available_bytes", lambda: int(few * needed))
    if kind != "too little":
        # Smaller tiles than any that would be planned.
        def planned(size: object, costs: object, overlap: int, *rest: object) -> Tiling:
            return Tiling(12, 16, min(overlap, 12))

        monkeypatch.setattr(command, "plan_tiles", planned)
    status = main([*flags, str(tmp_path / "tiles")])
    shown = capsys.readouterr()
    if kind == "too little":
        assert status == 1
        assert "chelsea.png: does not fit into memory in edsr: tiles of" in shown.err
        assert report(tmp_path / "tiles")["validation"]["Set2"]["bicubic"]["photographs"] == 2
        return
    out = " ".join(shown.out.split())
    assert "2 photographs, such as chelsea.png, were enlarged in tiles" in out
    assert ("RCAN looks at the whole picture" in out) == (kind == "whole picture")
    whole, tiles = (report(tmp_path / name) for name in ("whole", "tiles"))
    assert {s["tiles"] for s in whole["images"] if s["way"] != "bicubic"} == {1}
    assert min(s["tiles"] for s in tiles["images"] if s["way"] != "bicubic") > 1
    assert {s["tiles"] for s in tiles["images"] if s["way"] == "bicubic"} == {1}
    (before, after) = (r["validation"]["Set2"][network.name]["psnr_y"] for r in (whole, tiles))
    assert after == pytest.approx(before, abs=0.02 if kind == "local" else 0.5)


def test_scores_that_cannot_be_written_are_told_before_any_work(
    photographs: Path, edsr: tuple[Path, EDSR], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "scores.csv").mkdir()
    flags = ["--weights", str(edsr[0]), "--data", str(photographs), "--out", str(tmp_path)]
    assert main(flags) == 2
    assert "scores.csv is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["", "x4", "_x4"])
def test_low_resolution_photographs_that_are_given_are_taken(
    photographs: Path, tmp_path: Path, suffix: str
) -> None:
    given = tmp_path / "LR"
    given.mkdir()
    for photograph in photographs.iterdir():
        low, _ = make_pair(read_image(photograph), 4)
        dark = Image.fromarray((low // 2).permute(1, 2, 0).numpy())
        dark.save(given / f"{photograph.stem}{suffix}.png")
    flags = ["--data", str(photographs), "--lr-dir", str(given), "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    assert 5 < report(tmp_path / "out")["validation"]["Set2"]["bicubic"]["psnr_y"] < 20


@pytest.mark.parametrize("protocol", ["8bit", "float"])
def test_a_store_is_measured_on_as_the_folder_that_it_was_made_of(
    photographs: Path, edsr: tuple[Path, EDSR], tmp_path: Path, protocol: str
) -> None:
    prepare_store(photographs, tmp_path / "store", scale=4, workers=1)
    means = []
    for data in (photographs, tmp_path / "store"):
        flags = ["--weights", str(edsr[0]), "--data", str(data), "--protocol", protocol]
        assert main([*flags, "--out", str(tmp_path / "out")]) == 0
        scores = report(tmp_path / "out")
        assert [score["image"] for score in scores["images"][::2]] == ["chelsea.png", "coffee.png"]
        (ways,) = scores["validation"].values()
        means.append([(ways[way]["psnr_y"], ways[way]["ssim_y"]) for way in ("bicubic", "edsr")])
    assert means[0] == means[1]


def test_low_resolution_versions_that_a_store_was_given_are_taken(
    photographs: Path, tmp_path: Path
) -> None:
    dark = tmp_path / "LR"
    dark.mkdir()
    for photograph in photographs.iterdir():
        low, _ = make_pair(read_image(photograph), 4)
        Image.fromarray((low // 2).permute(1, 2, 0).numpy()).save(dark / photograph.name)
    prepare_store(photographs, tmp_path / "store", scale=4, lr=dark, workers=1)
    flags = ["--data", str(tmp_path / "store"), "--protocol", "float"]
    assert main([*flags, "--out", str(tmp_path / "out")]) == 0
    assert 5 < report(tmp_path / "out")["validation"]["store"]["bicubic"]["psnr_y"] < 20


def broken(case: str, folder: Path, photographs: Path, edsr: Path) -> list[str]:
    """Make what a case needs and return its flags."""
    data = ["--data", str(photographs)]
    bad = folder / "bad"
    bad.mkdir()
    if case == "no folder":
        return ["--data"]
    if case == "missing folder":
        return ["--data", str(folder / "nowhere")]
    if case == "output among photographs":
        Image.new("RGB", (40, 40)).save(folder / "black.png")
        return ["--data", str(folder)]
    if case == "same name":
        (folder / "Set2").mkdir()
        Image.new("RGB", (40, 40)).save(folder / "Set2" / "black.png")
        return [*data, str(folder / "Set2")]
    if case == "text":
        (bad / "letter.png").write_text("dear reader")
    if case == "store of another scale":
        prepare_store(photographs, folder / "store", scale=2, workers=1)
        return ["--data", str(folder / "store")]
    if case == "small":
        Image.new("RGB", (40, 18)).save(bad / "small.png")
    if case == "tiny":
        Image.new("RGB", (40, 3)).save(bad / "tiny.png")
    if case == "all":
        (bad / "a.png").write_text("dear reader")
        Image.new("RGB", (40, 18)).save(bad / "b.png")
    if case == "file as output":
        (folder / "out").touch()
        return data
    if case in ("text", "small", "tiny", "all"):
        return ["--data", str(bad)]
    if case.startswith("low"):
        Image.new("RGB", (32, 24)).save(bad / "chelsea.png")
        if case == "low of another size":
            Image.new("RGB", (32, 24)).save(bad / "coffee.png")
        return [*data, "--lr-dir", str(bad), *([str(bad)] if case == "low too many" else [])]
    if case == "scales":
        save_model(folder / "x2.safetensors", EDSR(EDSRConfig(1, 8), scale=2), {})
        return [*data, "--weights", str(edsr), str(folder / "x2.safetensors")]
    if case == "twice":
        return [*data, "--weights", str(edsr), str(edsr), str(edsr)]
    if case == "vdsr without scale":
        torch.save(VDSR(VDSRConfig(features=8), scale=2).state_dict(), folder / "vdsr.pt")
        return [*data, "--weights", str(folder / "vdsr.pt")]
    return [*data, "--model", "edsr-s", "--weights", str(edsr)]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no folder", "--data must name at least one folder"),
        ("missing folder", "does not exist"),
        ("store of another scale", "store is for scale 2, not 4: prepare another with --scale 4"),
        ("output among photographs", "among whose photographs its pictures would count"),
        ("same name", "--data has two folders called 'Set2'"),
        ("text", "letter.png: not an image"),
        ("small", "small.png: is too small for SSIM inside a border of 4 pixels"),
        ("all", "b.png: is too small for SSIM inside a border of 4 pixels"),
        ("file as output", "out is not a directory"),
        ("tiny", "tiny.png: has 40x3 pixels, too few for x4"),
        ("low missing", "none of coffee, coffeex4, coffee_x4"),
        ("low of another size", "must be 32x25 pixels in low resolution"),
        ("low too many", "--lr-dir must name one folder for each of the 1 of --data, got 2"),
        ("scales", "networks must be for one scale, got [2, 4]; give --scale"),
        ("twice", "edsr.safetensors is given twice"),
        ("vdsr without scale", "say for which one, by --scale"),
        ("other network", "the network is EDSRConfig(blocks=4"),
    ],
)
def test_bad_input_gets_a_clear_message(
    case: str,
    message: str,
    photographs: Path,
    edsr: tuple[Path, EDSR],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    flags = broken(case, tmp_path, photographs, edsr[0])
    try:
        status = main([*flags, "--out", str(out)])
    except SystemExit as exit:  # What the options alone tell.
        status = exit.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (out / "scores.json").exists()


def noise(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((width, height), 64).convert("RGB").save(path)


def strictly(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise ValueError(f"not JSON: {constant}")

    content: dict = json.loads(text, parse_constant=refuse)
    return content


def test_a_photograph_that_is_met_exactly_is_named_and_left_out_of_the_mean(
    edsr: tuple[Path, EDSR], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    noise(tmp_path / "set" / "noise.png", 64, 60)
    for colour in ("black", "white"):
        Image.new("RGB", (64, 60), colour).save(tmp_path / "set" / f"{colour}.png")
    flags = ["--weights", str(edsr[0]), "--data", str(tmp_path / "set")]
    assert main([*flags, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "bicubic: 2 photographs met exactly (black.png, white.png), left out" in shown
    scores = strictly((tmp_path / "out" / "scores.json").read_text())
    mean = scores["validation"]["set"]["bicubic"]
    by_name = {s["image"]: s["psnr_y"] for s in scores["images"] if s["way"] == "bicubic"}
    assert by_name["black.png"] is None and by_name["white.png"] is None
    assert mean["psnr_y"] == by_name["noise.png"] > 0
    assert (mean["photographs"], mean["exact"]) == (3, 2)
    assert scores["validation"]["set"]["edsr"]["exact"] == 0


def test_nothing_breaks_where_every_photograph_is_met_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (64, 60)).save(tmp_path / "set" / "black.png")
    flags = ["--data", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    scores = strictly((tmp_path / "out" / "scores.json").read_text())
    assert scores["validation"]["set"]["bicubic"]["psnr_y"] is None
    assert "inf / 1.0000" in capsys.readouterr().out


UPSCALER = """
import torch
from torch import nn

class Upscaler(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, image):
        large = nn.functional.pixel_shuffle(self.convolution(image), 2)
        if image.shape[-1] == 40:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return large * float("nan") if image.shape[-1] == 36 else large
"""


def test_photographs_that_cannot_be_measured_are_named_and_the_scores_of_the_others_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(UPSCALER)
    for name, width in (("a", 64), ("memory", 80), ("nan", 72), ("small", 10), ("z", 60)):
        noise(tmp_path / "set" / f"{name}.png", width, 60)
    (tmp_path / "set" / "text.png").write_text("dear reader")
    model = ["--model", f"{tmp_path / 'mine.py'}:Upscaler", "--scale", "2"]
    flags = [*model, "--data", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert main(flags) == 1
    shown = capsys.readouterr()
    assert "4 images cannot be used" in shown.err
    for reason in (
        "memory.png: memory is exhausted (DefaultCPUAllocator: can't allocate memory); measure a",
        "nan.png: Upscaler cannot enlarge 36x30 pixels: what it makes is not finite",
        "small.png: is too small for SSIM inside a border of 2 pixels",
        "text.png: not an image of a known format",
    ):
        assert reason in shown.err
    assert "Upscaler: the means are of 2 photographs only" in shown.out
    assert shown.out.count("failed") == 2
    scores = report(tmp_path / "out")
    assert scores["photographs"] == {"set": 6}
    mean = scores["validation"]["set"]
    assert (mean["bicubic"]["photographs"], mean["Upscaler"]["photographs"]) == (4, 2)
    assert {Path(f["image"]).stem for f in scores["failed"]} == {"memory", "nan", "small", "text"}
    assert (tmp_path / "out" / "contact_sheet_set.png").exists()


def test_an_interruption_keeps_what_was_measured(
    photographs: Path,
    edsr: tuple[Path, EDSR],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def interrupted(*given: object) -> object:
        if given[1].path.name != "chelsea.png":
            raise KeyboardInterrupt
        return measure(*given)

    measure = command.measure
    monkeypatch.setattr(command, "measure", interrupted)
    flags = ["--weights", str(edsr[0]), "--data", str(photographs), "--out", str(tmp_path)]
    assert main(flags) == 130
    assert "the scores of what was measured are written" in capsys.readouterr().err
    scores = report(tmp_path)
    assert {s["image"] for s in scores["images"]} == {"chelsea.png"}
    assert scores["photographs"] == {"Set2": 2}


def test_if_no_photograph_can_be_measured_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    noise(tmp_path / "set" / "small.png", 12, 12)
    assert main(["--data", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 2
    assert "small.png: is too small" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_are_shown_as_they_are_and_any_name_of_a_set_has_its_sheet(
    edsr: tuple[Path, EDSR], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = tmp_path / "student[ema].safetensors"
    weights.write_bytes(edsr[0].read_bytes())
    names = ["set [old]", "x" * 250]
    for name in names:
        noise(tmp_path / name / "photo[bold].png", 64, 60)
        noise(tmp_path / name / "$\\frac$.png", 64, 60)
    out = tmp_path / "[red]out"
    flags = ["--weights", str(weights), "--out", str(out), "--data"]
    assert main([*flags, *(str(tmp_path / name) for name in names)]) == 0
    shown = capsys.readouterr().out
    for text in ("set [old], x4", "photo[bold].png", "$\\frac$.png", "student[ema]", str(out)):
        assert text in shown
    assert len(list(out.glob("contact_sheet_*.png"))) == 2


@pytest.mark.parametrize("taken", ["winograd", "stock"])
def test_the_operator_convolves_for_networks_of_users_too_unless_the_flag_is_given(
    taken: str,
    photographs: Path,
    own_network: tuple[str, Path],
    convolved: list[str],
    tmp_path: Path,
) -> None:
    model, weights = own_network
    flags = ["--model", model, "--weights", str(weights), "--out", str(tmp_path)]
    flags += ["--stock-convolutions"] * (taken == "stock")
    assert main(["--data", str(photographs), *flags]) == 0
    assert set(convolved) == {taken}
