"""The command that enlarges pictures, as a user meets it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from mkdext import upscale as command
from mkdext.data import builtin_photographs, imresize, read_image
from mkdext.inference import PNGWriter, Tiling, load_network, read_picture
from mkdext.metrics import to_uint8
from mkdext.models import EDSR, EDSRConfig, accelerate, save_model
from mkdext.upscale import main


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of a photograph, not to be changed."""
    path = tmp_path_factory.mktemp("photographs") / "china.png"
    with Image.open(builtin_photographs("validation")[-1]) as image:
        image.crop((200, 100, 260, 148)).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an EDSR that hardly changes colours."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "edsr.safetensors"
    save_model(path, EDSR(EDSRConfig(blocks=2, features=8), scale=2), {})
    return path


def levels(path: Path) -> np.ndarray:
    return read_picture(path).levels


def test_a_photograph_is_enlarged_by_the_builtin_network(photograph: Path, tmp_path: Path) -> None:
    assert main([str(photograph), "--out", str(tmp_path / "out")]) == 0
    lr = read_image(photograph)
    with torch.inference_mode():
        sr = to_uint8(load_network(None)(lr[None] / 255)[0])
    assert np.array_equal(levels(tmp_path / "out" / "china.png"), sr.permute(1, 2, 0))


def test_a_photograph_is_enlarged_by_a_network_of_the_users(
    photograph: Path, own_network: tuple[str, Path], tmp_path: Path
) -> None:
    name, weights = own_network
    flags = ["--model", name, "--weights", str(weights), "--out", str(tmp_path)]
    assert main([str(photograph), *flags]) == 0
    network = load_network(weights, name=name)
    accelerate(network.model)
    sr = to_uint8(network(read_image(photograph)[None] / 255)[0])
    assert np.array_equal(levels(tmp_path / "china.png"), sr.permute(1, 2, 0))


def test_tiles_of_a_bound_change_less_than_a_level(
    photograph: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(*args: object, **kwargs: object) -> Tiling:
        tiling = plan(*args, **kwargs)
        return Tiling(17, 23, tiling.overlap)

    plan = command.plan_tiles
    flags = [str(photograph), "--weights", str(weights), "--out"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(command, "plan_tiles", few)
    assert main([*flags, str(tmp_path / "tiles")]) == 0
    whole, tiles = (levels(tmp_path / name / "china.png") for name in ("whole", "tiles"))
    difference = np.abs(whole.astype(int) - tiles)
    # What lies at the middle of two levels may be rounded either way.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_a_network_that_looks_at_the_whole_picture_tells_of_its_tiles(
    photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command, "plan_tiles", lambda *args: Tiling(24, 30, 4))
    assert main([str(photograph), "--out", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "60x48 -> 240x192, 4 tiles" in shown and "RCAN looks at the whole picture" in shown


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_kind_and_brightness_stay(tmp_path: Path, weights: Path, channels: int, bits: int) -> None:
    dtype = np.uint8 if bits == 8 else np.uint16
    grey = np.full((20, 24, channels), 0.4 * 2**bits, dtype)
    if channels in (2, 4):
        grey[:10, :, -1] = 2**bits - 1
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    chunks = {"gAMA": bytes(4), "pHYs": bytes(9)}
    with PNGWriter(tmp_path / "in.png", 24, 20, channels, bits, profile, None, chunks) as file:
        file.write(grey)
    out = tmp_path / "out"
    assert main([str(tmp_path / "in.png"), "--weights", str(weights), "--out", str(out)]) == 0
    picture = read_picture(out / "in.png")
    assert picture.levels.shape == (40, 48, channels)
    assert (picture.bits, picture.chunks) == (bits, chunks)
    assert picture.icc_profile == (profile if channels > 2 else None)
    if channels in (2, 4):
        alpha = torch.from_numpy(grey[None, ..., -1].astype(np.float64))
        expected = imresize(alpha, 2).clamp(0, 2**bits - 1)[0].numpy()
        assert np.abs(picture.levels[..., -1] - expected).max() <= 0.51


def test_folders_and_patterns_keep_their_names_and_earlier_results_are_no_input(
    photograph: Path, weights: Path, tmp_path: Path
) -> None:
    album = tmp_path / "album"
    for name in ("a.png", "more/b.png", "more/c.txt"):
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        (album / name).write_bytes(photograph.read_bytes())
    flags = ["--weights", str(weights), "--out", str(album / "large")]
    assert main([str(album), *flags]) == 0
    made = sorted((album / "large").rglob("*.*"))
    assert [str(p.relative_to(album / "large")) for p in made] == ["a.png", "more/b.png"]
    assert main([str(album), *flags, "--existing", "skip"]) == 0
    assert sorted((album / "large").rglob("*.*")) == made
    assert main([str(album / "*.png"), "--weights", str(weights), "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.glob("*.png")] == ["a.png"]


def test_results_are_replaced_only_if_asked(
    photograph: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / "china.png"
    target.write_text("mine")
    flags = [str(photograph), "--weights", str(weights), "--out", str(tmp_path)]
    assert main(flags) == 2
    assert f"{target} exist" in capsys.readouterr().err
    assert main([*flags, "--existing", "skip"]) == 0
    assert target.read_text() == "mine"
    assert main([*flags, "--existing", "overwrite"]) == 0
    assert levels(target).shape == (96, 120, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["china.png"]


@pytest.mark.parametrize("link", [False, True])
def test_an_input_is_never_overwritten(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture, link: bool
) -> None:
    source = tmp_path / "china.png"
    source.write_bytes(photograph.read_bytes())
    out = tmp_path
    if link:
        out = tmp_path / "out"
        out.mkdir()
        os.link(source, out / "china.png")
    assert main([str(source), "--out", str(out), "--existing", "overwrite"]) == 2
    assert "is the picture" in capsys.readouterr().err
    assert source.read_bytes() == photograph.read_bytes()


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; the same command with --existing skip continues"),
    ],
    ids=["full disk", "Ctrl-C"],
)
def test_a_result_is_whole_or_not_there(
    failure: BaseException,
    status: int,
    message: str,
    photograph: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def fails(self: PNGWriter, rows: np.ndarray) -> None:
        write(self, rows[:1])
        raise failure

    write = PNGWriter.write
    monkeypatch.setattr(PNGWriter, "write", fails)
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([str(photograph), *flags]) == status
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_picture_that_is_damaged_inside_does_not_stop_the_others(
    photograph: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = photograph.read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "good.png").write_bytes(whole)
    out = tmp_path / "out"
    assert main([str(tmp_path), "--weights", str(weights), "--out", str(out)]) == 1
    assert "cut.png: cannot be decoded" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["good.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "nowhere.png does not exist"),
        (["*.gif"], "*.gif matches no file"),
        (["letter.png"], "letter.png: not an image"),
        (["a.png", "a.jpg"], "would both become upscaled/a.png"),
        (["a.png", "--memory", "0"], "--memory must be positive, got 0.0"),
        (["a.png", "--overlap", "-1"], "--overlap must be at least 0, got -1"),
        (
            ["a.png", "--memory", "0.001"],
            " MB decoded; --memory 0.001 GB leaves 0 MB for it, as the",
        ),
        (["huge.png", "--memory", "2"], "has 13000x13000 pixels, which take 10,816 MB decoded"),
        (["a.png", "--model", "rcan-b"], "--model rcan-b needs --weights FILE"),
        (["a.png", "--scale", "2"], "for scale 4 only, got --scale 2; give --weights FILE"),
        (["a.png", "--weights", "a.png"], "weights file a.png is neither"),
        (["a.png", "--out", "letter.png"], "--out letter.png cannot be written: letter.png is not"),
        (["a.png", "--device", "gpu"], "--device must be cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_bad_input_gets_a_clear_message_and_nothing_is_written(
    arguments: list[str],
    message: str,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("letter.png").write_text("dear reader", encoding="utf-8")
    for name in ("a.png", "a.jpg"):
        Path(name).write_bytes(photograph.read_bytes())
    with PNGWriter(Path("huge.png"), 13_000, 13_000, 1, 8) as file:
        file.write(np.zeros((1, 13_000, 1), np.uint8))
    try:
        status = main(arguments)
    except SystemExit as exit:  # What the options alone tell.
        status = exit.code
    assert status in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("upscaled").exists()


UPSCALER = """
import sys
import torch
from torch import nn

class Upscaler(nn.Module):
    \"\"\"It looks eight pixels far, and fails in its own way at 40x30 pixels.\"\"\"

    def __init__(self, way):
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 17)
        self.way = way

    def forward(self, image):
        padded = nn.functional.pad(image, (8, 8, 8, 8), mode="reflect")
        large = nn.functional.pixel_shuffle(self.convolution(padded), 2)
        if image.shape[-2:] == (30, 40):
            if self.way == "memory":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")
            if self.way == "exit":
                sys.exit(0)
            return {"nan": large * float("nan"), "two": (large, large), "narrow": large[..., 1:],
                    "whole numbers": large.long()}[self.way]
        return large
"""


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("nan", "make cannot enlarge 40x30 pixels: what it makes is not finite"),
        ("two", "make cannot enlarge 40x30 pixels: it makes no image of floating-point numbers"),
        (
            "narrow",
            "make cannot enlarge 40x30 pixels: it makes [1, 3, 60, 79] of it, not [1, 3, 60, 80]",
        ),
        (
            "whole numbers",
            "make cannot enlarge 40x30 pixels: it makes no image of floating-point numbers, but "
            "torch.int64",
        ),
        (
            "memory",
            "memory is exhausted (DefaultCPUAllocator: can't allocate memory: 8 bytes); lower",
        ),
        ("exit", "make cannot enlarge 40x30 pixels: SystemExit: 0"),
    ],
)
def test_a_picture_that_the_network_cannot_enlarge_is_named_and_the_others_are_done(
    way: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(f"{UPSCALER}\ndef make():\n    return Upscaler({way!r})\n")
    for name, size in (("a.png", (24, 20)), ("b.png", (40, 30)), ("c.png", (12, 6))):
        Image.effect_noise(size, 64).convert("RGB").save(tmp_path / name)
    flags = ["--model", f"{tmp_path / 'mine.py'}:make", "--scale", "2"]
    assert main([str(tmp_path), *flags, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("mkdext.upscale: 2 images cannot be used:\n")
    assert f"b.png: {reason}" in shown
    assert "c.png: make cannot enlarge 12x6 pixels: RuntimeError: " in shown
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_odd_files_among_pictures_are_named_and_the_others_are_done(
    photograph: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    album = tmp_path / "album"
    (album / "folder.png").mkdir(parents=True)
    long = "a" * 249 + ".jpeg"
    for name in ("good.png", "[red]x.png", long):
        (album / name).write_bytes(photograph.read_bytes())
    (album / "text.png").write_text("dear reader")
    (album / "itself.png").symlink_to("itself.png")
    (album / "nowhere.png").symlink_to("missing.png")
    (album / "loop").symlink_to("loop")
    for inputs in ([str(album)], [str(album / "*")]):
        out = tmp_path / f"out{len(str(inputs))}"
        assert main([*inputs, "--weights", str(weights), "--out", str(out)]) == 1
        shown = capsys.readouterr()
        for name in ("text.png", "itself.png", "nowhere.png"):
            assert f"{name}: " in shown.err
        assert f"{album / '[red]x.png'} -> {out / '[red]x.png'}: 60x48" in shown.out
        made = {path.name for path in out.iterdir()}
        assert made == {"good.png", "[red]x.png", "a" * 249 + ".png"}


def test_a_name_that_is_too_long_for_its_result_is_named(
    photograph: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["a" * 254, "good.png"]
    for name in names:
        (tmp_path / name).write_bytes(photograph.read_bytes())
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([*(str(tmp_path / name) for name in names), *flags]) == 1
    assert "aaa.png: File name too long" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_a_disk_that_is_full_midway_stops_and_tells_what_is_kept(
    photograph: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def fails(*given: object) -> None:
        if len(list((tmp_path / "out").glob("*.png"))) == 1:
            raise OSError(28, "No space left on device")
        enlarge(*given)

    enlarge = command._enlarge
    monkeypatch.setattr(command, "_enlarge", fails)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(photograph.read_bytes())
    (tmp_path / "bad.png").write_text("")
    assert main([str(tmp_path), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert (
        "No space left on device; 1 of 3 pictures were tried, and their results are kept" in shown
    )
    assert "--existing skip continues" in shown and "bad.png: is empty (0 bytes)" in shown
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_a_result_whose_folder_is_a_file_does_not_stop_the_others(
    photograph: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("album/more/a.png", "album/z.png", "out/more"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photograph.read_bytes())
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "album"), *flags]) == 1
    assert "more/a.png: cannot become" in capsys.readouterr().err
    assert levels(tmp_path / "out" / "z.png").shape == (96, 120, 3)


def test_a_picture_given_twice_and_by_a_link_is_enlarged_once(
    photograph: Path, weights: Path, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    source = tmp_path / "a" / "x.png"
    source.write_bytes(photograph.read_bytes())
    (tmp_path / "b" / "x.png").symlink_to(source)
    inputs = [source, tmp_path / "b" / ".." / "a" / "x.png", tmp_path / "b" / "x.png"]
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([*map(str, inputs), *flags]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.png"]


def test_folders_of_a_pattern_may_look_like_patterns_themselves(
    photograph: Path, weights: Path, tmp_path: Path
) -> None:
    for folder in ("set [1]", "set 1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder[4]}.png").write_bytes(photograph.read_bytes())
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "set [1]" / "*.png"), *flags]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["[.png"]


def test_what_only_the_output_folder_holds_is_no_input(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(photograph.read_bytes())
    assert main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "there is no picture to enlarge" in capsys.readouterr().err
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    assert main([str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 2
    assert "a.png is a folder; name a file that can be replaced" in capsys.readouterr().err


@pytest.mark.parametrize("taken", ["winograd", "stock"])
def test_the_operator_convolves_for_networks_of_users_too_unless_the_flag_is_given(
    taken: str,
    photograph: Path,
    own_network: tuple[str, Path],
    convolved: list[str],
    tmp_path: Path,
) -> None:
    model, weights = own_network
    flags = ["--model", model, "--weights", str(weights), "--out", str(tmp_path)]
    flags += ["--stock-convolutions"] * (taken == "stock")
    assert main([str(photograph), *flags]) == 0
    assert set(convolved) == {taken}
