"""ONNX files in half precision and in integers of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mkdext.exporting.onnx_file import converting

_MULTIPLYING = ["Conv", "ConvTranspose", "MatMul", "Gemm"]


def halve(path: Path) -> None:
    """Have an ONNX file compute in half precision; its input and output stay float32.

    Raises:
        Failed: ONNX Runtime's converter cannot do it.
    """
    with converting():
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def quantise(
    path: Path, quantised: Path, pictures: Sequence[Tensor], keep_ends: bool = False
) -> None:
    """Write an ONNX file that multiplies integers of 8 bits (static quantisation).

    The kernels of convolutions and matrix products have a scale for each channel, their inputs one
    for the whole tensor, from the least and the largest number in it that `pictures` lead to. All
    else, such as what skips a block, stays float32.

    Args:
        path: The file in single precision.
        quantised: File to write.
        pictures: `[1, 3, h, w]` in [0, 1], to calibrate on.
        keep_ends: Leave the first and the last of these layers as they are.

    Raises:
        Failed: ONNX Runtime cannot quantise it.
    """
    with converting():
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        nodes = onnx.load(path).graph.node
        layers = [node.name for node in nodes if node.op_type in _MULTIPLYING]
        quantize_static(
            path,
            quantised,
            _reader(pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_MULTIPLYING,
            nodes_to_exclude=layers[:1] + layers[-1:] if keep_ends else [],
        )


def _reader(pictures: Sequence[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = iter([{"lr": low.contiguous().numpy()} for low in pictures])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._inputs, None)

    return Reader()
