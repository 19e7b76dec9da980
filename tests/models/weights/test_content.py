"""Files of weights that are damaged, or made to harm: one sentence, at once, and nothing is run."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mkdext.models import EDSR, EDSRConfig, load_model, read_weights

WEIGHTS = EDSR(EDSRConfig(blocks=1, features=8), scale=2).state_dict()
HEAD = WEIGHTS["head.0.weight"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def refusal(file: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_model(file)
    message = str(caught.value)
    assert message.startswith(f"weights file {file}")
    assert "\n" not in message and len(message) < len(str(file)) + 1200
    return message


def holds_itself() -> Any:
    content: dict[str, Any] = {"epoch": 3}
    content["state_dict"] = content
    return content


def deep(levels: int) -> Any:
    content: Any = {"a": torch.ones(1)}
    for _ in range(levels):
        content = {"model": content}
    return content


def laughing(levels: int) -> Any:
    content: Any = {"epoch": 1}
    for _ in range(levels):
        content = {"a": content, "b": content, "c": [content, content]}
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (holds_itself(), "must hold a state dict"),
        (deep(300), "must hold a state dict"),
        (laughing(80), "must hold a state dict"),
        ({"k" * 10**6: 3}, "must hold a state dict"),
        ({f"{'k' * 10**6}{i}": torch.ones(1) for i in range(3)}, "no architecture"),
        (WEIGHTS | {"k" * 10**6: torch.ones(1)}, "1 unexpected (kkk"),
        (WEIGHTS | {"head.0.weight": HEAD.to_sparse()}, "sparse_coo, must be dense"),
        (WEIGHTS | {"head.0.weight": HEAD.to("meta")}, "head.0.weight is a meta tensor"),
        (WEIGHTS | {"head.0.weight": HEAD * 1j}, "complex64, must be torch.float32"),
        (
            WEIGHTS | {"head.0.weight": torch.zeros(1).expand(10**5, 10**5, 3, 3)},
            "tensors of 360,000 MB and more, head.0.weight of [100000, 100000, 3, 3]",
        ),
        (
            {f"{layer}": torch.zeros(1).expand(1024, 1024, 3, 3) for layer in range(3)},
            "tensors of 75 MB and more",
        ),
        (
            {f"body.{i}.body.{i}.body.0.weight": torch.zeros(8, 8, 3, 3) for i in range(500)}
            | {"body.0.body.0.body.3.conv_du.0.weight": torch.ones(2, 8, 1, 1)}
            | {"tail.0.0.weight": torch.ones(32, 8, 3, 3), "head.0.weight": torch.ones(1)},
            "RCANConfig(groups=500, blocks=500, features=8, reduction=4) are not all there",
        ),
    ],
)
def test_a_pickle_that_is_made_to_harm_is_refused_at_once(
    file: Path, content: Any, message: str
) -> None:
    torch.save(content, file)
    assert message in refusal(file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(file: Path, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    torch.save(WEIGHTS | {"head.0.weight": nested}, file)
    assert "head.0.weight is a nested tensor" in refusal(file)


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_refused_by_a_network_of_plain_ones(file: Path) -> None:
    quantised = torch.quantize_per_tensor(HEAD, 0.1, 0, torch.qint8)
    torch.save(WEIGHTS | {"head.0.weight": quantised}, file)
    assert "head.0.weight is quantised dense, must be dense" in refusal(file)


def repacked(content: Any) -> bytes:
    """A file of `torch.save`, compressed."""
    saved, packed = io.BytesIO(), io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def test_a_compressed_archive_is_read_unless_it_is_a_bomb(file: Path) -> None:
    file.write_bytes(repacked(WEIGHTS))
    assert load_model(file).config == EDSRConfig(1, 8)
    file.write_bytes(repacked({"a": torch.zeros(20_000_000)}))
    assert "would unpack to 80 MB, more than weights can be packed" in refusal(file)


def test_a_flipped_bit_is_noticed(file: Path) -> None:
    torch.save(WEIGHTS, file)
    whole = file.read_bytes()
    for place in range(len(whole) // 2, len(whole) // 2 + 2000, 400):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert "is damaged" in refusal(file)


def test_an_archive_without_checksums_is_read(file: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_model(file).config == EDSRConfig(1, 8)


def test_other_archives_are_told_apart(file: Path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), str(file))
    assert "TorchScript, which is not run; save its weights alone: torch.save(" in refusal(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/edsr.pth", b"")
    assert "torch.save did not make: it holds weights/edsr.pth; unpack it" in refusal(file)


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (b"{}", 1 << 31, "damaged or cut off (Error while deserializing header"),
        (b'{"a":' * 5000, None, "recursion limit"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, None, "F99"),
        ({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, None, "damaged"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            None,
            "invalid offset",
        ),
        ({"__metadata__": {"mkdext": 5}}, None, "expected a string"),
    ],
)
def test_a_safetensors_file_that_cannot_be_is_refused(
    file: Path, header: Any, length: int | None, message: str
) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(4))
    assert message in refusal(file)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refusal(tmp_path / "pipe")
    assert "is no regular file" in refusal(Path("/dev/zero"))
    assert "is a directory" in refusal(tmp_path)


def test_a_name_that_is_no_text_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"weights\xff.pt")
    for save in (torch.save, save_file):
        file.write_bytes(b"")
        if save is torch.save:
            with file.open("wb") as opened:
                torch.save(WEIGHTS, opened)
        else:
            save_file(WEIGHTS, tmp_path / "plain")
            (tmp_path / "plain").rename(file)
        assert read_weights(file).keys() == WEIGHTS.keys()
