"""The command that shows attributions, as a user meets it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mkdext.attribution import main
from mkdext.data import builtin_photographs, imresize, read_image
from mkdext.inference import load_network
from mkdext.metrics import (
    Window,
    attribution_map,
    diffusion_index,
    path_attribution,
    psnr_y,
    to_uint8,
)
from mkdext.models import EDSR, EDSRConfig, save_model

NUMBERS = ["network", "parameters", "diffusion_index", "psnr_y"]


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of a photograph, of sides that no scale divides, not to be changed."""
    path = tmp_path_factory.mktemp("photographs") / "cup.png"
    with Image.open(builtin_photographs("validation")[2]) as image:
        image.crop((150, 100, 150 + 75, 100 + 61)).save(path)
    return path


def small_edsr(folder: Path, scale: int, name: str = "edsr.safetensors") -> tuple[Path, EDSR]:
    torch.manual_seed(scale)
    model = EDSR(EDSRConfig(blocks=1, features=4), scale=scale)
    save_model(folder / name, model, {})
    return folder / name, model.requires_grad_(False)


def report(folder: Path) -> dict:
    return json.loads((folder / "attribution.json").read_text())


@pytest.mark.slow
def test_networks_are_shown_beside_bicubic_and_the_built_in_one(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, model = small_edsr(tmp_path, 4)
    flags = ["--weights", str(path), "--image", str(photograph), "--steps", "3"]
    flags += ["--window", "60", "0", "--window-size", "8", "--size", "43"]
    assert main([*flags, "--batch-size", "2", "--out", str(tmp_path / "out")]) == 0

    # 40 pixels is the multiple of 4 next to 43; the part ends at the right and at the top border.
    hr = read_image(photograph)[:, :40, 35:]
    lr = imresize(hr, 1 / 4) / 255
    expected = []
    for name, network, parameters in (
        ("bicubic", lambda images: imresize(images, 4), 0),
        ("edsr", model, sum(p.numel() for p in model.parameters())),
    ):
        pixels = attribution_map(path_attribution(network, lr, Window(25, 0, 8), steps=3))
        quality = psnr_y(to_uint8(network(lr[None])[0]), hr, border=4)
        expected.append((name, parameters, diffusion_index(pixels), quality))
    found = report(tmp_path / "out")
    assert found["image"] == str(photograph)
    assert (found["scale"], found["steps"]) == (4, 3)
    assert found["window"] == {"left": 60, "top": 0, "size": 8}
    assert found["part"] == {"left": 35, "top": 0, "width": 40, "height": 40}
    rows = [tuple(row[name] for name in NUMBERS) for row in found["networks"]]
    assert [row[0] for row in rows] == ["bicubic", "built-in", "edsr"]
    for row, values in zip((rows[0], rows[2]), expected, strict=True):
        assert row[:2] == values[:2]
        assert row[2:] == pytest.approx(values[2:], rel=1e-4)

    with (tmp_path / "out" / "attribution.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == NUMBERS
    assert [float(line["diffusion_index"]) for line in lines] == [row[2] for row in rows]
    shown = capsys.readouterr().out
    assert "cup.png, x4, window of 8x8 pixels at 60, 0" in shown
    assert all(f"{row[2]:.2f}" in shown for row in rows)
    with Image.open(tmp_path / "out" / "attribution.png") as picture:
        # The photograph and three networks, in two rows.
        assert picture.width > 1.6 * picture.height


def test_without_arguments_there_is_something_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--steps", "1", "--size", "40"]) == 0
    found = report(tmp_path / "runs" / "attribution")
    assert Path(found["image"]).name == "astronaut.png"
    assert [row["network"] for row in found["networks"]] == ["bicubic", "built-in"]


def test_the_window_is_put_where_the_most_detail_is(tmp_path: Path) -> None:
    noise = torch.zeros(50, 60, dtype=torch.uint8)
    noise[31:41, 22:32] = torch.randint(0, 2, (10, 10)) * 255
    Image.fromarray(noise.numpy()).save(tmp_path / "noise.png")
    path, _ = small_edsr(tmp_path, 2)
    flags = ["--weights", str(path), "--image", str(tmp_path / "noise.png"), "--steps", "1"]
    assert main([*flags, "--window-size", "12", "--out", str(tmp_path)]) == 0
    window = report(tmp_path)["window"]
    # All edges of the noise, those on its left and above included, are inside.
    assert 19 <= window["left"] <= 21 and 28 <= window["top"] <= 30
    # The built-in network is for another scale.
    assert [row["network"] for row in report(tmp_path)["networks"]] == ["bicubic", "edsr"]


def test_a_network_of_the_users_is_shown(
    photograph: Path, own_network: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = own_network
    flags = ["--model", name, "--weights", str(weights), "--image", str(photograph)]
    flags += ["--window", "10", "8", "--size", "24", "--steps", "2", "--out", str(tmp_path)]
    assert main(flags) == 0
    part = report(tmp_path)["part"]
    top, left = part["top"], part["left"]
    lr = imresize(read_image(photograph)[:, top : top + 24, left : left + 24], 1 / 4) / 255
    network = load_network(weights, name=name).model
    pixels = attribution_map(path_attribution(network, lr, Window(10 - left, 8 - top, 16), steps=2))
    rows = {row["network"]: row for row in report(tmp_path)["networks"]}
    assert rows["espcn"]["diffusion_index"] == pytest.approx(diffusion_index(pixels), rel=1e-4)


NETWORK = """
import torch
from torch import nn

class Own(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))
{forward}
"""
NUMBERS_ONLY = "    def forward(self, lr): return super().forward(lr) * float(lr.max().item() > 0)"
NO_GRADIENT = "    @torch.no_grad()\n    def forward(self, lr): return super().forward(lr)"


@pytest.mark.parametrize("forward", [NUMBERS_ONLY, NO_GRADIENT])
def test_code_of_the_users_need_not_run_without_numbers_but_must_pass_a_gradient(
    forward: str, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "own.py").write_text(NETWORK.format(forward=forward))
    flags = ["--model", f"{tmp_path / 'own.py'}:Own", "--scale", "4", "--image", str(photograph)]
    flags += ["--size", "24", "--steps", "1", "--out", str(tmp_path)]
    passes = forward == NUMBERS_ONLY
    assert main(flags) == (0 if passes else 2)
    told = "Own: path_attribution: the network passes no gradient to its input"
    assert (told in capsys.readouterr().err) != passes


def broken(case: str, folder: Path, photograph: Path) -> list[str]:
    """Make what a case needs and return its flags."""
    flags = ["--image", str(photograph)]
    if case == "missing":
        return ["--image", str(folder / "nowhere.png")]
    if case == "file as output":
        (folder / "out").touch()
        return flags
    if case == "text":
        (folder / "letter.png").write_text("dear reader")
        return ["--image", str(folder / "letter.png")]
    if case == "small":
        Image.new("RGB", (19, 40)).save(folder / "small.png")
        return ["--image", str(folder / "small.png")]
    if case == "black":
        Image.new("RGB", (40, 40)).save(folder / "black.png")
        return ["--image", str(folder / "black.png")]
    if case == "scales":
        files = [str(small_edsr(folder, scale, f"x{scale}.safetensors")[0]) for scale in (2, 4)]
        return [*flags, "--weights", *files]
    if case == "twice":
        path = str(small_edsr(folder, 4)[0])
        return [*flags, "--weights", path, "--weights", path, path]
    if case == "weights":
        (folder / "weights.safetensors").write_bytes(b"nothing")
        return [*flags, "--weights", str(folder / "weights.safetensors")]
    if case == "model":
        return [*flags, "--model", "rcan-q", "--weights", str(small_edsr(folder, 4)[0])]
    if case == "blind":
        path, model = small_edsr(folder, 4)
        torch.nn.init.zeros_(model.tail[-1].weight)
        save_model(path, model, {})
        return [*flags, "--weights", str(path), "--steps", "1"]
    return [*flags, *case.split()]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("--window 59 0", "--window must be 0 to 58 from the left and 0 to 44 from the top, so"),
        ("--window -1 0", "--window must be 0 to 58 from the left"),
        ("--size 19", "--size must be at least 20 for x4 and a window of 16, got 19"),
        ("--window-size 70", "is 75x61 pixels, needs at least 72 on each side"),
        ("--scale 2", "the built-in networks are for scale 4 only, got --scale 2; give --weights"),
        ("--device tpu", "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        ("file as output", "out is not a directory"),
        ("missing", "nowhere.png: cannot be read (No such file or directory)"),
        ("text", "letter.png: not an image of a known format"),
        ("small", "small.png: is 19x40 pixels, needs at least 20 on each side"),
        ("black", "black.png has a single colour around the window"),
        ("scales", "networks must be for one scale, got [2, 4]; give --scale"),
        ("twice", "edsr.safetensors is given twice"),
        ("weights", "weights.safetensors"),
        ("model", "rcan-q"),
        ("blind", "edsr: attribution_map: no pixel contributes anything"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    case: str, message: str, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = broken(case, tmp_path, photograph)
    out = tmp_path / "out"
    assert main([*flags, "--out", str(out)]) == 2
    answer = capsys.readouterr().err
    assert answer.startswith("mkdext.attribution: ") and message in answer
    assert not list(out.glob("*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--window-size 0", "--window-size must be at least 1, got 0"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--size 16", "--size must be more than --window-size"),
    ],
)
def test_numbers_out_of_range_are_refused(
    flags: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(flags.split()) == 2
    assert capsys.readouterr().err.startswith(f"mkdext.attribution: {message}")


def test_too_little_memory_is_told_before_any_work(
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mkdext.attribution.available_bytes", lambda: 1_000_000)
    assert main(["--image", str(photograph), "--out", str(tmp_path / "out")]) == 2
    answer = capsys.readouterr().err
    assert "built-in needs about" in answer and "lower --size or --batch-size" in answer
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    flags = ["--image", str(photograph), "--steps", "1", "--out", str(tmp_path / "file")]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("mkdext.attribution: --out ") and "is not a directory" in error


def test_a_result_that_cannot_be_written_is_told_before_any_work(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "attribution.json").mkdir()
    assert main(["--image", str(photograph), "--steps", "1", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mkdext.attribution: ") and "attribution.json is a folder" in error


def test_an_interruption_is_told(
    photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mkdext.attribution.attribute", interrupted)
    assert main(["--image", str(photograph), "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.startswith("mkdext.attribution: interrupted; the same command")
