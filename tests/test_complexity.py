from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mkdext.complexity import complexity, main
from mkdext.models import adapt, create_model, make_own

# Of MKD's Tables 1 and 5: parameters and FLOPs as printed; then parameters of the convolutions that
# run, all numbers of a checkpoint, and FLOPs in G, counted by thop 0.0.31 on the official code.
TABLES = {
    "rcan-t": ("15.6M", 4183.36, 15_592_355, 15_592_379, 4183.3612),
    "rcan-a": ("49.8K", 22.03, 49_799, 49_823, 22.0285),
    "rcan-b": ("106.1K", 36.68, 106_067, 106_091, 36.6750),
    "rcan-c": ("420.5K", 142.19, 420_515, 420_539, 142.1911),
    "edsr-t": ("43.1M", 13179.19, 43_089_923, 43_089_947, 13179.1868),
    "edsr-s": ("40.3K", 19.58, 40_323, 40_347, 19.5790),
    "rdn-t": ("22.3M", 5961.20, 22_271_107, 22_271_107, 5961.2091),
    "rdn-s": ("122.7K", 41.18, 122_723, 122_723, 41.1797),
    "san-t": ("15.8M", 4268.24, 15_822_443, 15_860_512, 4268.2496),
    "san-s": ("48.0K", 21.48, 48_025, 50_456, 21.4822),
    "han-t": ("16.1M", 4309.49, 16_071_743, 16_071_769, 4309.4923),
    "han-s": ("123.9K", 41.03, 123_839, 123_865, 41.0287),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_the_networks_are_as_large_as_the_tables_of_mkd_say(name: str) -> None:
    printed, printed_flops, convolutions, numbers, flops = TABLES[name]
    with torch.device("meta"):
        model = create_model(name, scale=4)
    counted = complexity(model)
    shifts = 0 if name.startswith("rdn") else 24
    assert counted.paper_parameters == convolutions + shifts
    assert counted.parameters + shifts == numbers
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == numbers
    unit = {"K": 1e3, "M": 1e6}[printed[-1]]
    assert f"{counted.paper_parameters / unit:.1f}{printed[-1]}" == printed
    assert round(counted.paper_flops / 1e9, 4) == flops
    # The tables round and cut off.
    assert abs(counted.paper_flops / 1e9 - printed_flops) < 0.01


def test_vdsr_has_the_parameters_of_its_paper() -> None:
    with torch.device("meta"):
        models = [create_model(name, scale=2) for name in ("vdsr", "vdsr-half")]
    assert [complexity(model, size=8).parameters for model in models] == [664_704, 166_464]


def test_macs_are_those_of_convolutions_and_matrix_products() -> None:
    height = width = 6
    convolutions = 9 * (3 * 16 + 2 * 4 * 16 * 16 + 16 * 16 + 16 * 64) * height * width
    convolutions += 9 * (16 * 64 * 4 + 16 * 3 * 16) * height * width  # at x2 and x4
    shifts = 9 * height * width + 9 * 16 * height * width
    with torch.device("meta"):
        counted = complexity(create_model("edsr-s", scale=4), size=6)
    assert counted.macs == convolutions + shifts

    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.transpose(2, 3)

    counted = complexity(Square(), size=5)
    assert (counted.macs, counted.paper_flops, counted.parameters) == (3 * 5**3, 0, 0)


def test_counting_leaves_the_network_as_it_was() -> None:
    model = create_model("rcan-a", scale=2).train()
    complexity(model, size=8)
    assert model.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert not any(module._forward_hooks for module in model.modules())


def test_the_command_prints_a_row_for_each_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edsr-s", "vdsr-half", "--scale", "3", "--size", "32"]) == 0
    out = capsys.readouterr().out
    assert "x3, low-resolution image of 32x32 pixels" in out
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert list(rows) == ["edsr-s", "vdsr-half"]
    # 166,464 weights without bias, once for each of 96x96 pixels.
    assert " 166,464 " in rows["vdsr-half"] and " 1.53 G " in rows["vdsr-half"]
    assert "thop 0.0.31" in out


def test_a_network_of_the_users_is_counted(
    own_network: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([own_network[0], "--size", "16"]) == 0
    out = capsys.readouterr().out
    weights = 25 * 8 + 9 * 8 * 6 + 9 * 6 * 16
    # Bicubic enlargement of three colours: rows, then columns.
    bicubic = 3 * (64 * 16 * 16 + 64 * 16 * 64)
    network = adapt(make_own(own_network[0], "network"), 4, "network")
    counted = complexity(network, size=16)
    assert (counted.parameters, counted.paper_parameters) == (weights + 30, weights + 30)
    assert counted.paper_flops == (weights + 30) * 16 * 16
    assert counted.macs == weights * 16 * 16 + bicubic
    assert f" {weights + 30:,} " in out and "0.00 G" in out


def test_convolutions_that_enlarge_count_once_for_each_output() -> None:
    counted = complexity(nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1), size=6)
    assert counted.paper_parameters == 3 * 5 * 16 + 5
    assert counted.paper_flops == (3 * 5 * 16 + 5) * 12 * 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edsr"], "mkdext.complexity: network 'edsr' is unknown, there are edsr-t, "),
        (["edsr-s", "--scale", "5"], "mkdext.complexity: --scale must be one of 2, 3, 4, 8, got 5"),
        (["torch.nn:Idntity"], "mkdext.complexity: network torch.nn:Idntity: torch.nn has no "),
        (["edsr-s", "--size", "0"], "mkdext.complexity: size must be at least 1, got 0"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1
    assert not captured.out
