"""Writing a network as ONNX, and comparing the file with the network."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.alone import Failed, in_one_line, one_line
from mkdext._system.errors import is_out_of_memory
from mkdext.exporting import GRAPH, TRACE
from mkdext.exporting.weights_kept import weights_kept
from mkdext.inference import Network
from mkdext.models import SuperResolver

EXAMPLE = (24, 20)
"""Height and width of the picture that the exporters are given for a file for any size."""

NO_MEMORY = "memory is exhausted"

_TOLERANCE = {torch.float32: 0.1, torch.float16: 1.0}  # levels of 255
_OPSET = 18
_RUNTIME_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_FAILING_OPERATOR = re.compile(r"while running (\w+) node")
_MOST_BYTES = 2_000_000_000  # Protocol buffers hold 2 GiB.
_SIDES = {2: "height", 3: "width"}
_SOME_SIZES = "its graph would hold for some sizes of pictures only"
_KNOWN_REASONS = {
    "Constraints violated": _SOME_SIZES,
    "specialized it to be a constant": _SOME_SIZES,
    "conflicts between user-specified ranges and inferred ranges": _SOME_SIZES,
    "Could not guard on data-dependent": "what it does depends on the values in the picture",
}


def exporters(model: SuperResolver) -> tuple[str, str]:
    """The exporters for a network, the more promising one first."""
    return (TRACE, GRAPH) if model.is_best_traced else (GRAPH, TRACE)


def write_onnx(
    network: Network,
    path: Path,
    exporter: str,
    size: tuple[int, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network as ONNX.

    Args:
        network: What to export; its weights may be laid out anew.
        path: File to write.
        exporter: `GRAPH` or `TRACE`.
        size: Height and width of the pictures that it is for, in low resolution; default: any.
        metadata: Texts by their names, kept in the file.

    Raises:
        Failed: The exporter cannot do it; the message says why, in one line.
        OSError: The file cannot be written.
    """
    import onnx

    tensors = chain(network.model.parameters(), network.model.buffers())
    if (taken := sum(tensor.nbytes for tensor in tensors)) > _MOST_BYTES:
        raise Failed(
            f"its weights take {taken / 1e9:.1f} GB, and an ONNX file without others beside it "
            "holds less than 2 GB"
        )
    example = torch.linspace(0, 1, 3 * math.prod(size or EXAMPLE))
    example = example.view(1, 3, *(size or EXAMPLE))
    try:
        with _quiet(), torch.no_grad():
            # Kernels in another order than that of ONNX are written as views, and reshaped.
            model = network.model.for_export().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            with weights_kept(model, example):
                write = _write_graph if exporter == GRAPH else _write_trace
                write(model, example, size is None, path)
        proto = onnx.load(path)
        onnx.helper.set_model_props(proto, dict(metadata or {}))
        content = proto.SerializeToString()
    except OSError as error:
        if error.errno is None:
            raise Failed(in_one_line(error)) from None
        raise
    except BaseException as error:  # Exporters raise whatever they stumble over, and may exit.
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Failed(_reason(error)) from None
    path.write_bytes(content)


def compare(
    path: Path,
    pictures: Sequence[Tensor],
    expected: Sequence[Tensor],
    precision: torch.dtype = torch.float32,
) -> float:
    """The largest difference between ONNX Runtime and PyTorch, in levels of 255.

    Args:
        path: The file.
        pictures: `[1, 3, h, w]` in [0, 1], to be enlarged by ONNX Runtime, that of the size of the
            exporter's example first.
        expected: What PyTorch makes of each.
        precision: In which the network computes: single or half.

    Raises:
        Failed: It is more than rounding, or ONNX Runtime cannot use the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # What goes wrong is raised as well.
    try:
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # Those of ONNX Runtime have no common class.
        raise Failed(f"ONNX Runtime refuses the file: {_said(error)}") from None
    differences: list[float] = []
    for low, sr in zip(pictures, expected, strict=True):
        try:
            differences.append(_difference(session, low, sr, _TOLERANCE[precision]))
        except Failed as error:
            if not differences:
                raise
            fits = f"the file fits a picture {list(pictures[0].shape)}"
            raise Failed(f"{fits}, as the exporter was given, but {error}") from None
    return max(differences)


def _difference(session: Any, low: Tensor, expected: Tensor, tolerance: float) -> float:
    what = f"on a picture {list(low.shape)} ONNX Runtime"
    try:
        (sr,) = session.run(None, {"lr": low.contiguous().numpy()})
    except Exception as error:
        raise Failed(f"{what} fails: {_said(error)}") from None
    if tuple(sr.shape) != tuple(expected.shape):
        raise Failed(f"{what} gives {list(sr.shape)} where PyTorch gives {list(expected.shape)}")
    difference = 255 * (torch.from_numpy(sr) - expected).abs().max().item()
    if not difference <= tolerance:
        raise Failed(
            f"{what} differs from PyTorch by {difference:.2g} levels, more than {tolerance}"
        )
    return difference


def _said(error: Exception) -> str:
    """What ONNX Runtime says, without its own source files."""
    if operator := _FAILING_OPERATOR.search(str(error)):
        return f"an operator {operator[1]} cannot be computed"
    return one_line(_RUNTIME_PREFIX.sub("", str(error)))


def _write_graph(model: nn.Module, example: Tensor, any_size: bool, path: Path) -> None:
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["lr"],
        output_names=["sr"],
        opset_version=_OPSET,
        dynamic_shapes=(_SIDES,) if any_size else None,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


def _write_trace(model: nn.Module, example: Tensor, any_size: bool, path: Path) -> None:
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["lr"],
        output_names=["sr"],
        dynamic_axes={"lr": _SIDES} if any_size else None,
        opset_version=_OPSET,
        dynamo=False,
    )


def _reason(error: BaseException) -> str:
    while (cause := error.__cause__) is not None:
        error = cause
    if is_out_of_memory(error):
        return NO_MEMORY
    known = (reason for said, reason in _KNOWN_REASONS.items() if said in str(error))
    return next(known, in_one_line(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what the exporter says of its own inner life."""
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
