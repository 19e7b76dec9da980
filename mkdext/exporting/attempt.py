"""One exporter's attempt at a network, from its name to a file that was compared."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkdext._system.alone import Failed, in_one_line
from mkdext._system.errors import is_out_of_memory
from mkdext._system.reading import require_file
from mkdext.data import BadImageError, builtin_photographs, imresize, read_image
from mkdext.exporting import COMPARING, LOADING, PACKAGES
from mkdext.exporting.onnx_file import EXAMPLE, NO_MEMORY, compare, exporters, write_onnx
from mkdext.inference import Network, load_network
from mkdext.models import WeightsMetadata, read_metadata
from mkdext.models.weights.metadata import METADATA_KEY, VALUE_RANGE

EXPORT_KEY = "mkdext_export"
"""Name of the JSON object in the file's metadata that says what the file is."""

_LARGEST = (97, 120)  # of the photograph in low resolution; no multiple of what graphs divide by


def attempt(
    out: str,
    weights: str | None,
    model: str | None,
    scale: int | None,
    image: str | None,
    size: Sequence[int] | None,
    tried: Sequence[str],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Load a network, export it by the first exporter that was not tried, and compare.

    Args:
        out: File to write.
        weights: As for `load_network`.
        model: As for `load_network`.
        scale: As for `load_network`.
        image: Photograph to compare on; default: a built-in one.
        size: Height and width of the pictures that the file is for, in low resolution; default:
            any.
        tried: Exporters that failed.
        tell: Called with what is being done: `LOADING`, the exporter, `COMPARING`.

    Returns:
        `architecture`, `scale`, `exporter`, `height` and `width` of the picture that was compared,
        `difference` in levels of 255, `remark` of the network.

    Raises:
        ValueError: The network, the photograph or a package cannot be used.
        Failed: The exporter failed.
        OSError: The file cannot be written.
    """
    with _memory_watched():
        tell(LOADING)
        _import_packages()
        file = Path(weights) if weights else None
        fixed = (size[0], size[1]) if size else None
        network = _load(file, scale, model, fixed)
        pictures = photographs(Path(image) if image else None, network.scale, fixed)
        expected = [_enlarged(network, low) for low in pictures]
        exporter = next(name for name in exporters(network.model) if name not in tried)
        tell(exporter)
        metadata = _metadata(network, file, fixed, exporter)
        write_onnx(network, Path(out), exporter, fixed, metadata)
        tell(COMPARING)
        half = any(p.dtype == torch.float16 for p in network.model.parameters())
        precision = torch.float16 if half else torch.float32
        difference = compare(Path(out), pictures, expected, precision)
        height, width = pictures[-1].shape[2:]
        return {
            "architecture": network.architecture,
            "scale": network.scale,
            "exporter": exporter,
            "height": height,
            "width": width,
            "difference": difference,
            "remark": network.remark,
        }


def photographs(path: Path | None, scale: int, size: tuple[int, int] | None) -> list[Tensor]:
    """A photograph reduced by `scale`: `[1, 3, h, w]` in [0, 1].

    Args:
        path: Its file; none: a built-in one.
        scale: Enlargement factor.
        size: Height and width wanted, for which it is repeated; none: cuts of three sizes, that of
            the exporters' example first, and one of them a negative.

    Raises:
        ValueError: It cannot be used.
    """
    if path is not None:
        require_file(path, f"`image` {path}")
    try:
        image = read_image(path or builtin_photographs("validation")[-1])
    except BadImageError as error:
        raise ValueError(f"`image` {path}: {error}") from None
    wanted = size or _LARGEST
    height, width = (
        min(side // scale, most) for side, most in zip(image.shape[1:], wanted, strict=True)
    )
    if min(height, width) < 1:
        raise ValueError(f"`image` {path} must have at least {scale} pixels a side")
    low = imresize(image[None, :, : height * scale, : width * scale], 1 / scale) / 255
    if size is None:
        cuts = EXAMPLE, (height - height // 8, width - width // 6), (height, width)
        example, negative, whole = (low[..., :rows, :columns] for rows, columns in cuts)
        return [example, 1 - negative, whole]
    times = (-(-size[0] // height), -(-size[1] // width))
    return [low.repeat(1, 1, *times)[..., : size[0], : size[1]]]


def _load(
    weights: Path | None, scale: int | None, model: str | None, size: tuple[int, int] | None
) -> Network:
    try:
        return load_network(weights, scale, model, size=size)
    except ValueError as error:
        if "any size" not in str(error):
            raise
        hint = "where it takes one size only, give that as `size` HEIGHT WIDTH"
        raise ValueError(f"{error}; {hint}") from None


@contextlib.contextmanager
def _memory_watched() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise Failed(NO_MEMORY) from None


def _import_packages() -> None:
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except Exception as error:  # Made for another numpy, they raise more than ImportError.
            raise ValueError(
                f"the package {package} is installed but cannot be imported: {in_one_line(error)}"
            ) from None


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
    network: Network, weights: Path | None, size: tuple[int, int] | None, exporter: str
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
