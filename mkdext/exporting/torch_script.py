"""Networks as TorchScript, which C++ and older PyTorch read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mkdext._system.alone import Failed, in_one_line
from mkdext.exporting.comparing import Runner
from mkdext.exporting.onnx_file import converting, exportable
from mkdext.exporting.weights_kept import weights_kept
from mkdext.inference import Network


class _InHalf(nn.Module):
    """A network that computes in half precision, between pictures of single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, low: Tensor) -> Tensor:
        sr: Tensor = self.network(low.half())
        return sr.float()


def write_torch_script(
    network: Network,
    path: Path,
    size: tuple[int, int] | None = None,
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write a network as TorchScript, by tracing.

    Args:
        network: What to export; its weights may be laid out anew.
        path: File to write.
        size: Height and width of the pictures that it is for, in low resolution; default: any.
        metadata: Texts by their names, extra files of TorchScript.
        half: Whether weights are in half precision.

    Raises:
        Failed: It cannot be traced; the message says why, in one line.
        OSError: The file cannot be written.
    """
    with converting():
        model, example = exportable(network, size)
        with weights_kept(model, example):
            chosen = _InHalf(model) if half else model
            traced = torch.jit.trace(chosen, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path, _extra_files=dict(metadata or {}))


def run_torch_script(path: Path) -> Runner:
    """A file in PyTorch's TorchScript."""
    with converting():
        network = torch.jit.load(path)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def run(low: Tensor) -> Tensor:
        try:
            sr: Tensor = network(low.clone())
        except Exception as error:  # Whatever the network may stumble over.
            raise Failed(in_one_line(error)) from None
        return sr

    return run
