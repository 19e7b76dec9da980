"""What a network can be exported to, and what each target takes."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Literal

from mkdext._system.alone import in_one_line
from mkdext.exporting import GRAPH, TRACE

To = Literal["onnx", "openvino", "ncnn", "torchscript"]
Precision = Literal["fp32", "fp16", "int8"]

OPSETS = range(11, 24)
"""Versions of ONNX's operators that a file can have."""

DEFAULT_OPSET = 18

_OPSETS_OF = {GRAPH: range(18, 24), TRACE: range(11, 21)}
_INT8_OPSET = 13  # from which on a convolution has a scale for each channel


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file, and the runtime that reads it."""

    runtime: str
    """Its name in messages."""
    packages: tuple[str, ...]
    """Needed beside PyTorch; each is imported by the name by which it is installed."""
    precisions: tuple[Precision, ...]
    """Those that it can be written in."""
    suffixes: tuple[str, ...] = ()
    """Of its files, the one that the user names first; none: it is one file of any name."""
    through_onnx: bool = True
    """Whether it is made from ONNX, which both exporters write; else by tracing."""

    def files(self, out: Path) -> list[Path]:
        """The files that `out` means."""
        return [out.with_suffix(suffix) for suffix in self.suffixes] or [out]

    def exporters(self, opset: int) -> tuple[str, ...]:
        """Those that can write it."""
        if not self.through_onnx:
            return (TRACE,)
        return tuple(name for name, opsets in _OPSETS_OF.items() if opset in opsets)


_ONNX = ("onnx", "onnxruntime", "onnxscript")
TARGETS: dict[To, Target] = {
    "onnx": Target("ONNX Runtime", _ONNX, ("fp32", "fp16", "int8")),
    "openvino": Target(
        "OpenVINO", (*_ONNX, "openvino"), ("fp32", "fp16", "int8"), (".xml", ".bin")
    ),
    "ncnn": Target("ncnn", ("ncnn", "pnnx"), ("fp32", "fp16"), (".param", ".bin", ".json"), False),
    "torchscript": Target("TorchScript", (), ("fp32", "fp16"), through_onnx=False),
}


def check_target(to: To, out: Path, precision: Precision, opset: int | None) -> None:
    """Check that a target can be written as asked.

    Raises:
        ValueError: It has no such precision or opset, or `out` has another suffix.
    """
    target = TARGETS[to]
    if precision not in target.precisions:
        able = [name for name, other in TARGETS.items() if precision in other.precisions]
        raise ValueError(
            f"`to` {to} takes `precision` {' or '.join(target.precisions)}, got {precision}; "
            f"`to` {' and '.join(able)} take that"
        )
    if target.suffixes and out.suffix != target.suffixes[0]:
        raise ValueError(f"`out` must end in {target.suffixes[0]} for `to` {to}, got {out}")
    if opset is None:
        return
    if to != "onnx":
        raise ValueError(f"`opset` is of ONNX files, got `to` {to}; leave it out")
    lowest = _INT8_OPSET if precision == "int8" else OPSETS[0]
    if not lowest <= opset <= OPSETS[-1]:
        raise ValueError(
            f"`opset` must be from {lowest} to {OPSETS[-1]} for `precision` {precision}, "
            f"got {opset}"
        )


def check_packages(to: To) -> None:
    """Check that all that a target needs is installed.

    Raises:
        ValueError: A package is missing.
    """
    packages = TARGETS[to].packages
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"`to` {to} needs {', '.join(missing)}, not installed: pip install {' '.join(missing)}"
        )


def import_packages(to: To) -> None:
    """Import what a target needs.

    Raises:
        ValueError: A package cannot be imported.
    """
    for package in TARGETS[to].packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # Made for another numpy, they raise more than ImportError.
            raise ValueError(
                f"the package {package} is installed but cannot be imported: {in_one_line(error)}"
            ) from None
