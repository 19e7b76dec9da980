"""`python -m mkdext.export`: write a trained network as ONNX."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext._command import CommandFailed, exit_status
from mkdext._files import atomic_write
from mkdext._flags import parse_flags
from mkdext._terminal import Terminal
from mkdext.data import BadImageError, builtin_photographs, imresize, read_image
from mkdext.inference import Network, load_network
from mkdext.models import SAN, VDSR, AdaptedNetwork, WeightsMetadata, read_metadata
from mkdext.models.san import RegionNonLocal
from mkdext.models.weights_metadata import METADATA_KEY

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_TOLERANCE = 0.1  # levels of 255
_CHECK_SIZE = (97, 120)  # of the photograph in low resolution, at most; not that of the export
_BICUBIC_REACH = 2
_EXAMPLE = torch.zeros(1, 3, 24, 20)


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a trained network as ONNX, for pictures of any height and width.

    The input is `lr`, float32 [1, 3, height, width], colours from 0 to 1; the output is `sr`,
    float32 [1, 3, scale * height, scale * width], not clipped. The file is run by ONNX Runtime on a
    photograph and compared with PyTorch before it is put in place. SAN is exact up to 1000 pixels a
    side, and its attention takes memory by the square of the pixels there. Needs the packages onnx,
    onnxruntime and onnxscript: pip install onnx onnxruntime onnxscript.
    """

    out: Path
    """File to write."""
    weights: Path | None = None
    """Weights of the network; none: the built-in one, which enlarges four times."""
    model: str | None = None
    """Network that the weights must be of, or what makes a network of yours,
    package.module:factory or file.py:factory; none: whatever they are of."""
    scale: int | None = None
    """Enlargement factor; none: that of the weights."""
    image: Path | None = None
    """Photograph to compare on; none: a built-in one."""
    overwrite: bool = False
    """Replace a file that is there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Flags; none: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, 1 if the file cannot be written or
        the exported network does not give what it should, 130 for Ctrl-C.
    """
    console = Terminal()

    def run() -> None:
        command = parse_flags(ExportCommand, arguments, prog="python -m mkdext.export")
        check_packages()
        if command.out.is_dir():
            raise ValueError(f"--out {command.out} is a folder; name a file in it")
        if command.out.exists() and not command.overwrite:
            raise ValueError(f"{command.out} exists; give another --out, or --overwrite")
        if not command.out.absolute().parent.is_dir():
            raise ValueError(f"--out {command.out}: there is no folder {command.out.parent}")
        network = load_network(command.weights, command.scale, command.model)
        metadata = read_metadata(command.weights) if command.weights else None
        photograph = read_photograph(command.image, network.scale)
        with atomic_write(command.out) as unfinished:
            export(network, metadata, unfinished)
            difference = compare(network, unfinished, photograph)
        height, width = photograph.shape[2:]
        console.say(
            f"{command.out}: {network.architecture} x{network.scale}, "
            f"{command.out.stat().st_size / 1e6:.2f} MB; on a photograph of {width}x{height} "
            f"pixels ONNX Runtime differs from PyTorch by at most {difference:.2g} of 255 levels"
        )

    return exit_status("mkdext.export", run, "interrupted; nothing was written")


class ExportError(CommandFailed):
    """A network could not be exported, or the result is wrong."""


def check_packages() -> None:
    """Check that all that an export needs is installed.

    Raises:
        ValueError: A package is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"an export needs {', '.join(missing)}, not installed: pip install {' '.join(missing)}"
        )


def read_photograph(path: Path | None, scale: int) -> Tensor:
    """A photograph to compare on, reduced by `scale` and cut: `[1, 3, h, w]` in [0, 1].

    Raises:
        ValueError: It cannot be used.
    """
    try:
        image = read_image(path or builtin_photographs("validation")[-1])
    except BadImageError as error:
        raise ValueError(f"--image {path}: {error}") from None
    height, width = (
        min(side // scale, size) for side, size in zip(image.shape[1:], _CHECK_SIZE, strict=True)
    )
    if min(height, width) < 1:
        raise ValueError(f"--image {path} must have at least {scale} pixels a side")
    return imresize(image[None, :, : height * scale, : width * scale], 1 / scale) / 255


def export(network: Network, metadata: WeightsMetadata | None, path: Path) -> None:
    """Write a network as ONNX.

    Args:
        network: What to export.
        metadata: Kept with the file; none: what the network itself tells.
        path: File to write.

    Raises:
        ExportError: The network has something that ONNX has not.
    """
    import onnx

    try:
        with _quiet(), torch.no_grad():
            if isinstance(network.model, SAN):
                _trace(network.model, path)
            else:
                _export(network.model, path)
    except OSError:
        raise
    except Exception as error:  # The exporter raises whatever it stumbles over.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{network.architecture} cannot be exported: {reason[0]}") from None
    proto = onnx.load(path)
    described = dataclasses.replace(
        metadata or WeightsMetadata.of(network.model, {}), scale=network.scale
    )
    onnx.helper.set_model_props(proto, {METADATA_KEY: described.to_json()})
    path.write_bytes(proto.SerializeToString())


def compare(network: Network, path: Path, lr: Tensor) -> float:
    """The largest difference between ONNX Runtime and PyTorch, in levels of 255.

    Raises:
        ExportError: It is more than rounding.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    (sr,) = session.run(None, {"lr": lr.contiguous().numpy()})
    expected = network(lr)
    if tuple(sr.shape) != tuple(expected.shape):
        raise ExportError(
            f"ONNX Runtime gives {list(sr.shape)} where PyTorch gives {list(expected.shape)}"
        )
    difference = 255 * (torch.from_numpy(sr) - expected).abs().max().item()
    if not difference <= _TOLERANCE:
        raise ExportError(
            f"ONNX Runtime differs from PyTorch by {difference:.2g} levels, more than {_TOLERANCE}"
        )
    return difference


def exportable(model: nn.Module) -> nn.Module:
    """The network, or one that computes the same with operators that ONNX has for any size."""
    if isinstance(model, VDSR):
        return _ExportableAdapted(AdaptedNetwork(model.luma, model.scale, 1, enlarged=True))
    if isinstance(model, AdaptedNetwork):
        return _ExportableAdapted(model)
    if isinstance(model, SAN):
        model = copy.deepcopy(model)
        model.non_local = _ExportableQuarters(model.non_local)  # type: ignore[assignment]
    return model


def _export(model: nn.Module, path: Path) -> None:
    dim = torch.export.Dim
    sizes = {2: dim("height", min=2, max=16384), 3: dim("width", min=2, max=16384)}
    program = torch.onnx.export(
        exportable(model),
        (_EXAMPLE,),
        input_names=["lr"],
        output_names=["sr"],
        dynamic_shapes=(sizes,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def _trace(model: nn.Module, path: Path) -> None:
    """For halves of a picture, about whose sizes torch.export cannot prove what it must."""
    torch.onnx.export(
        exportable(model),
        (_EXAMPLE,),
        path,
        input_names=["lr"],
        output_names=["sr"],
        dynamic_axes={"lr": {2: "height", 3: "width"}},
        opset_version=18,
        dynamo=False,
    )


class _ExportableAdapted(nn.Module):
    """An adapted network whose bicubic is a convolution: MATLAB's is a matrix made for one size."""

    kernels: Tensor
    to_y: Tensor

    def __init__(self, model: AdaptedNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.network)
        self.scale, self.channels, self.enlarged = model.scale, model.channels, model.enlarged
        # What an impulse in the middle becomes tells what each output pixel takes from it.
        size = 4 * _BICUBIC_REACH + 1
        impulse = torch.zeros(1, 1, size, size, dtype=torch.float64)
        impulse[..., size // 2, size // 2] = 1
        answer = functional.pixel_unshuffle(imresize(impulse, self.scale), self.scale)
        inner = slice(_BICUBIC_REACH, -_BICUBIC_REACH)
        self.register_buffer("kernels", answer[0, :, None, inner, inner].flip(2, 3).float())
        to_y = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
        self.register_buffer("to_y", to_y)

    def forward(self, lr: Tensor) -> Tensor:
        planes = _mirrored(_mirrored(lr, 2), 3).transpose(0, 1)
        enlarged = functional.pixel_shuffle(
            functional.conv2d(planes, self.kernels), self.scale
        ).transpose(0, 1)
        source = enlarged if self.enlarged else lr
        if self.channels == 3:
            sr: Tensor = self.network(source)
            return sr
        change = self.network(self._y(source)) - self._y(enlarged)
        colours: Tensor = enlarged + change * (255 / 219)
        return colours

    def _y(self, image: Tensor) -> Tensor:
        return functional.conv2d(image, self.to_y) + 16 / 255


class _ExportableQuarters(nn.Module):
    """SAN's non-local block on each quarter of a map, which has at least two rows and columns."""

    def __init__(self, quarters: RegionNonLocal) -> None:
        super().__init__()
        self.non_local = quarters.non_local

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        halves = [
            torch.cat((self.non_local(half[..., :width]), self.non_local(half[..., width:])), dim=3)
            for half in (x[:, :, :height], x[:, :, height:])
        ]
        return torch.cat(halves, dim=2)


def _mirrored(image: Tensor, dim: int) -> Tensor:
    """The image with two more pixels at both ends, mirrored, the edge pixel repeated."""
    length = image.shape[dim]
    first = image.narrow(dim, 0, _BICUBIC_REACH).flip(dim)
    last = image.narrow(dim, length - _BICUBIC_REACH, _BICUBIC_REACH).flip(dim)
    return torch.cat((first, image, last), dim)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what the exporter says of its own inner life."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
