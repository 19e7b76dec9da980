"""Networks in OpenVINO's format, made from ONNX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mkdext._system.alone import Failed, in_one_line
from mkdext.exporting.comparing import Runner

_UNKNOWN = re.compile(r"No conversion rule found for operations: *(\S.*)")


def write_openvino(onnx: Path, path: Path, metadata: Mapping[str, str], half: bool) -> None:
    """Convert an ONNX file.

    Args:
        onnx: What to convert.
        path: File to write, with the suffix .xml; one with .bin is written beside it.
        metadata: Texts by their names, kept as `rt_info` of the model.
        half: Whether weights are kept in half precision.

    Raises:
        Failed: OpenVINO cannot do it; an operator that it lacks is named.
        OSError: The file cannot be written.
    """
    import openvino

    try:
        model = openvino.convert_model(onnx)
    except Exception as error:  # Those of OpenVINO have no common class.
        if found := _UNKNOWN.search(str(error)):
            raise Failed(f"OpenVINO lacks the operators {found[1].strip()}") from None
        raise Failed(f"OpenVINO cannot convert it: {_said(error)}") from None
    for name, text in metadata.items():
        model.set_rt_info(text, [name])
    openvino.save_model(model, path, compress_to_fp16=half)


def run_openvino(path: Path) -> Runner:
    """A file in OpenVINO on the processor, computing what is not of 8 bits in single precision."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        compiled = openvino.Core().compile_model(path, "CPU", settings)
    except Exception as error:
        raise Failed(f"OpenVINO refuses the file: {_said(error)}") from None

    def run(low: Tensor) -> Tensor:
        try:
            return torch.from_numpy(compiled(low.contiguous().numpy())[0].copy())
        except Exception as error:
            raise Failed(_said(error)) from None

    return run


def _said(error: Exception) -> str:
    """The last thing that OpenVINO says, without its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return told[-1] if told else in_one_line(error)
