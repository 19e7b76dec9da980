"""One exporter's attempt at a network, from its name to files that were compared."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkdext._system.alone import Failed, in_one_line
from mkdext._system.errors import is_out_of_memory
from mkdext.exporting import COMPARING, CONVERTING, LOADING, QUANTISING
from mkdext.exporting.comparing import Runner, compare, difference, lost, psnr, seconds
from mkdext.exporting.lower_precision import halve, quantise
from mkdext.exporting.ncnn_files import run_ncnn, write_ncnn
from mkdext.exporting.onnx_file import NO_MEMORY, exporters, run_onnx, write_onnx
from mkdext.exporting.openvino_files import run_openvino, write_openvino
from mkdext.exporting.pictures import calibration, photographs
from mkdext.exporting.targets import TARGETS, Precision, To, import_packages
from mkdext.exporting.torch_script import run_torch_script, write_torch_script
from mkdext.inference import Network, load_network
from mkdext.models import WeightsMetadata, read_metadata
from mkdext.models.weights.metadata import METADATA_KEY, VALUE_RANGE

EXPORT_KEY = "mkdext_export"
"""Name of the JSON object in the file's metadata that says what the file is."""

_TOLERANCE = {torch.float32: 0.1, torch.float16: 1.0}  # levels of 255


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is exported, and how."""

    network: Network
    to: To
    precision: Precision
    size: tuple[int, int] | None
    opset: int
    calibration: Sequence[Tensor]
    metadata: Mapping[str, str]
    tell: Callable[[str], None]


def attempt(
    outs: Sequence[str],
    weights: str | None,
    model: str | None,
    scale: int | None,
    to: To,
    precision: Precision,
    size: Sequence[int] | None,
    opset: int,
    image: str | None,
    calibration_path: str | None,
    max_loss: float,
    able: Sequence[str],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Load a network, export it by the more promising exporter, and compare.

    Args:
        outs: Files to write: as many as the target has.
        weights: As for `load_network`.
        model: As for `load_network`.
        scale: As for `load_network`.
        to: Target.
        precision: Of weights or all numbers.
        size: Height and width of the pictures that the file is for, in low resolution; default:
            any.
        opset: Version of ONNX's operators.
        image: Photograph to compare on; default: a built-in one.
        calibration_path: Photographs to take ranges of numbers from; default: the built-in ones.
        max_loss: PSNR-Y in dB that a precision below the network's may lose.
        able: Exporters to choose from.
        tell: Called with what is being done: `LOADING`, the exporter, `COMPARING`.

    Returns:
        `architecture`, `scale`, `exporter`, `threads`; `height` and `width` of the picture that was
        compared; `difference` from PyTorch in levels of 255, `psnr` to PyTorch's picture and PSNR-Y
        `lost` against the photograph in dB; `seconds` and `seconds_torch` that both took; whether
        `ends_kept` single precision beside integers; `remark` of the network.

    Raises:
        ValueError: The network, a photograph or a package cannot be used, or too much is lost.
        Failed: The exporter failed.
        OSError: A file cannot be written.
    """
    with _memory_watched(), tempfile.TemporaryDirectory() as folder:
        tell(LOADING)
        import_packages(to)
        file = Path(weights) if weights else None
        fixed = (size[0], size[1]) if size else None
        network = _load(file, scale, model, fixed)
        pairs = photographs(Path(image) if image else None, network.scale, fixed)
        given = Path(calibration_path) if calibration_path else None
        ranges = calibration(given, network.scale, fixed) if precision == "int8" else []
        pictures = [low for low, _ in pairs]
        expected = [_enlarged(network, low) for low in pictures]
        exporter = exporters(network.model, able)[0]
        metadata = _metadata(network, file, fixed, exporter, precision)
        work = _Work(network, to, precision, fixed, opset, ranges, metadata, tell)
        files = [Path(folder, name) for name in _names(to)]
        runtime = TARGETS[to].runtime
        half = any(p.dtype == torch.float16 for p in network.model.parameters())
        tolerance = _TOLERANCE[torch.float16 if half else torch.float32]
        is_lower = precision == "int8" or (precision == "fp16" and not half)
        # Of all layers of a network the first and the last bear 8 bits least.
        for keep_ends in (False, True) if precision == "int8" else (False,):
            run = _written(work, files, exporter, keep_ends)
            tell(COMPARING)
            made = compare(runtime, run, pictures, expected, math.inf if is_lower else tolerance)
            loss = lost(made, expected, [high for _, high in pairs], network.scale)
            if not is_lower or loss <= max_loss:
                break
        else:
            raise ValueError(
                f"`precision` {precision} loses {loss:.2g} dB of PSNR-Y in {runtime} on the "
                f"photograph, more than `max_loss` {max_loss:g}: {_remedy(precision)}"
            )
        for source, out in zip(files, outs, strict=True):
            shutil.copyfile(source, out)
        low = pictures[-1]
        return {
            "architecture": network.architecture,
            "scale": network.scale,
            "exporter": exporter,
            "threads": torch.get_num_threads(),
            "height": low.shape[2],
            "width": low.shape[3],
            "difference": difference(made, expected),
            "psnr": psnr(made, expected),
            "lost": loss,
            "ends_kept": keep_ends,
            "remark": network.remark,
            "seconds": seconds(lambda: run(low)),
            "seconds_torch": seconds(lambda: network(low)),
        }


def _names(to: To) -> list[str]:
    return [f"network{suffix}" for suffix in TARGETS[to].suffixes or (f".{to}",)]


def _remedy(precision: Precision) -> str:
    if precision == "int8":
        return "give photographs like those to be enlarged by `calibration`, or `precision` fp16"
    return "give `precision` fp32"


def _written(work: _Work, files: Sequence[Path], exporter: str, keep_ends: bool) -> Runner:
    """Write the files of a target, and load them into its runtime."""
    if TARGETS[work.to].through_onnx:
        return _through_onnx(work, files, exporter, keep_ends)
    work.tell(exporter)
    half = work.precision == "fp16"
    network, size, metadata = work.network, work.size, work.metadata
    if work.to == "torchscript":
        write_torch_script(network, files[0], size, metadata, half)
        return run_torch_script(files[0])
    script = files[0].with_name("script.pt")
    write_torch_script(network, script, size)
    work.tell(CONVERTING)
    param, binary, about = files
    write_ncnn(script, param, binary, size, half)
    said = {name: json.loads(text) for name, text in metadata.items()}
    about.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return run_ncnn(param, binary, half)


def _through_onnx(work: _Work, files: Sequence[Path], exporter: str, keep_ends: bool) -> Runner:
    onnx = files[0].with_name("single.onnx")
    if not onnx.exists():
        work.tell(exporter)
        write_onnx(work.network, onnx, exporter, work.size, work.metadata, work.opset)
    if work.precision == "int8":
        work.tell(QUANTISING)
        onnx, single = files[0].with_name("quantised.onnx"), onnx
        quantise(single, onnx, work.calibration, keep_ends)
    if work.to == "openvino":
        work.tell(CONVERTING)
        write_openvino(onnx, files[0], work.metadata, half=work.precision == "fp16")
        return run_openvino(files[0])
    if work.precision == "fp16":
        work.tell(CONVERTING)
        halve(onnx)
    shutil.copyfile(onnx, files[0])
    return run_onnx(files[0])


def _load(
    weights: Path | None, scale: int | None, model: str | None, size: tuple[int, int] | None
) -> Network:
    try:
        return load_network(weights, scale, model, size=size)
    except ValueError as error:
        if "any size" not in str(error):
            raise
        hint = "where it takes one size only, give that as `shape` HEIGHTxWIDTH"
        raise ValueError(f"{error}; {hint}") from None


@contextlib.contextmanager
def _memory_watched() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise Failed(NO_MEMORY) from None


def _enlarged(network: Network, low: Tensor) -> Tensor:
    what = f"on a picture {list(low.shape)} of the photograph {network.architecture}"
    try:
        sr = network(low)
    except Exception as error:  # Whatever a network of another code base may raise.
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{what} fails: {in_one_line(error)}") from None
    if not torch.isfinite(sr).all():
        raise ValueError(f"{what} gives values that are not finite")
    return sr


def _metadata(
    network: Network,
    weights: Path | None,
    size: tuple[int, int] | None,
    exporter: str,
    precision: Precision,
) -> dict[str, str]:
    """What the file says of itself."""
    known = read_metadata(weights) if weights else None
    described = dataclasses.replace(
        known or WeightsMetadata.of(network.model, {}), scale=network.scale
    )
    about = {
        "network": network.architecture,
        "scale": network.scale,
        "value_range": VALUE_RANGE,
        "size": size,
        "precision": precision,
        "weights": weights.name if weights else None,
        "sha256": _sha256(weights) if weights else None,
        "exporter": exporter,
    }
    return {METADATA_KEY: described.to_json(), EXPORT_KEY: json.dumps(about)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
