"""Networks as ONNX, and ONNX files in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from mkdext._system.alone import Failed, in_one_line, one_line
from mkdext._system.errors import is_out_of_memory
from mkdext.exporting import GRAPH, TRACE
from mkdext.exporting.comparing import Runner
from mkdext.exporting.targets import DEFAULT_OPSET
from mkdext.exporting.weights_kept import weights_kept
from mkdext.inference import Network
from mkdext.models import SuperResolver

EXAMPLE = (24, 20)
"""Height and width of the picture that the exporters are given for a file for any size."""

NO_MEMORY = "memory is exhausted"

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


def exporters(model: SuperResolver, able: Sequence[str] = (GRAPH, TRACE)) -> tuple[str, ...]:
    """Of the exporters that can write what is wanted, the more promising one first."""
    order = (TRACE, GRAPH) if model.is_best_traced else (GRAPH, TRACE)
    return tuple(name for name in order if name in able)


def write_onnx(
    network: Network,
    path: Path,
    exporter: str,
    size: tuple[int, int] | None = None,
    metadata: Mapping[str, str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Write a network as ONNX, in the precision that it has.

    Args:
        network: What to export; its weights may be laid out anew.
        path: File to write.
        exporter: `GRAPH` or `TRACE`.
        size: Height and width of the pictures that it is for, in low resolution; default: any.
        metadata: Texts by their names, kept in the file.
        opset: Version of ONNX's operators.

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
    with converting():
        model, example = exportable(network, size)
        with weights_kept(model, example):
            write = _write_graph if exporter == GRAPH else _write_trace
            write(model, example, size is None, path, opset)
        proto = onnx.load(path)
        onnx.helper.set_model_props(proto, dict(metadata or {}))
        content = proto.SerializeToString()
    versions = [each.version for each in proto.opset_import if each.domain == ""]
    if versions != [opset]:  # A conversion that did not succeed.
        raise Failed(f"its operators are of opset {versions[0]}, and not to be had in {opset}")
    path.write_bytes(content)


def run_onnx(path: Path) -> Runner:
    """A file in ONNX Runtime, on as many threads as PyTorch has.

    Raises:
        Failed: ONNX Runtime cannot use it.
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

    def run(low: Tensor) -> Tensor:
        try:
            (sr,) = session.run(None, {"lr": low.contiguous().numpy()})
        except Exception as error:
            raise Failed(_said(error)) from None
        return torch.from_numpy(sr)

    return run


def exportable(network: Network, size: tuple[int, int] | None) -> tuple[nn.Module, Tensor]:
    """What exporters are given of a network, and an example of its input `[1, 3, h, w]`."""
    height, width = size or EXAMPLE
    example = torch.linspace(0, 1, 3 * height * width).view(1, 3, height, width)
    # Kernels in another order than that of ONNX are written as views, and reshaped.
    model = network.model.for_export().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model, example


@contextlib.contextmanager
def converting() -> Iterator[None]:
    """Have whatever an exporter raises end as `Failed`, keep it quiet, and compute no gradients."""
    try:
        with _quiet(), torch.no_grad():
            yield
    except OSError as error:
        if error.errno is None:
            raise Failed(in_one_line(error)) from None
        raise
    except BaseException as error:  # Exporters raise whatever they stumble over, and may exit.
        if isinstance(error, KeyboardInterrupt | Failed):
            raise
        raise Failed(_reason(error)) from None


def _said(error: Exception) -> str:
    """What ONNX Runtime says, without its own source files."""
    if operator := _FAILING_OPERATOR.search(str(error)):
        return f"an operator {operator[1]} cannot be computed"
    return one_line(_RUNTIME_PREFIX.sub("", str(error)))


def _write_graph(model: nn.Module, example: Tensor, any_size: bool, path: Path, opset: int) -> None:
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["lr"],
        output_names=["sr"],
        opset_version=opset,
        dynamic_shapes=(_SIDES,) if any_size else None,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


def _write_trace(model: nn.Module, example: Tensor, any_size: bool, path: Path, opset: int) -> None:
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["lr"],
        output_names=["sr"],
        dynamic_axes={"lr": _SIDES} if any_size else None,
        opset_version=opset,
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
