"""`python -m mkdext.export`: write a trained network for another runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mkdext._cli.flags import parse_flags
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.alone import Failed, run_alone
from mkdext._system.errors import WorkFailed, WorkStopped
from mkdext._system.files import atomic_write, check_replaceable
from mkdext._system.terminal import Terminal, waiting_bar
from mkdext.exporting import COMPARING, CONVERTING, GRAPH, LOADING, QUANTISING, TRACE
from mkdext.exporting.targets import (
    DEFAULT_OPSET,
    TARGETS,
    Precision,
    To,
    check_packages,
    check_target,
)

_LIMIT = 1800.0  # seconds for one exporter; the largest networks here take two minutes
_SHOWN = {
    LOADING: "loading the network",
    GRAPH: f"exporting by {GRAPH}",
    TRACE: f"exporting by {TRACE}",
    CONVERTING: "converting",
    QUANTISING: "quantising",
    COMPARING: "comparing with PyTorch",
}
_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a trained network for another runtime: ONNX Runtime, OpenVINO, ncnn or TorchScript.

    The input is `lr` (in ncnn `in0`), float32 [1, 3, height, width], colours from 0 to 1; the
    output is `sr` (`out0`), float32 [1, 3, scale * height, scale * width], not clipped. The runtime
    enlarges a photograph and is compared with PyTorch before anything is put in place. For ONNX and
    OpenVINO PyTorch has two exporters; where one fails or gives something else, the other is tried.
    SAN is exact up to 1000 pixels a side, where the memory of its attention grows with the square
    of the pixels. Each target needs packages: pip install onnx onnxruntime onnxscript; openvino
    besides these; ncnn pnnx; none for TorchScript.
    """

    out: Path
    """File to write. OpenVINO's ends in .xml, with a .bin beside it; ncnn's in .param, with a .bin
    and a .json; others have any name."""
    weights: Path | None = None
    """Weights of the network; default: the built-in network, which enlarges four times."""
    model: str | None = None
    """Network that the weights must be of, or your own network, as package.module:factory or
    file.py:factory; default: the network that the weights are of."""
    scale: int | None = None
    """Enlargement factor; default: the weights', or the one found by running your network."""
    to: To = "onnx"
    """Runtime that the file is for."""
    precision: Precision = "fp32"
    """Of the numbers. fp16: half precision, of all numbers in ONNX and TorchScript, of the weights
    in OpenVINO and ncnn. int8 (ONNX and OpenVINO): convolutions and matrix products multiply
    integers of 8 bits."""
    shape: str = "dynamic"
    """Pictures that the file is for: 'dynamic' for any height and width, or HEIGHTxWIDTH in low
    resolution. Some networks can be exported or run for one size only."""
    opset: int | None = None
    """Version of ONNX's operators, from 11 to 23; default: 18."""
    calibration: Path | None = None
    """Photographs, in a folder or one file, by which int8 chooses its ranges; at most 32 are taken;
    default: the built-in ones."""
    max_loss: float = 0.1
    """PSNR-Y in dB that fp16 or int8 may lose against the photograph; what loses more is not
    written."""
    image: Path | None = None
    """Photograph to compare on; default: a built-in one."""
    overwrite: bool = False
    """Replace existing files."""

    def __post_init__(self) -> None:
        """Check what stands on its own."""
        if self.shape != "dynamic" and not _SHAPE.fullmatch(self.shape):
            raise ValueError(
                f"`shape` must be dynamic or HEIGHTxWIDTH, such as 180x320, got {self.shape!r}"
            )
        if not self.max_loss >= 0:
            raise ValueError(f"`max_loss` must be at least 0 dB, got {self.max_loss}")
        if self.calibration is not None and self.precision != "int8":
            raise ValueError(f"`calibration` is of `precision` int8, got {self.precision}")
        check_target(self.to, self.out, self.precision, self.opset)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the only pictures that the file is for."""
        sides = _SHAPE.fullmatch(self.shape)
        return (int(sides[1]), int(sides[2])) if sides else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Flags; default: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, 1 if the file cannot be written or
        no exporter gives what it should, 130 for Ctrl-C.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse_flags(ExportCommand, arguments, prog="python -m mkdext.export")
        check_packages(command.to)
        _check_out(command)
        with _stopped_by_signals(), contextlib.ExitStack() as files:
            # The file that names the others is put in place last.
            outs = [files.enter_context(atomic_write(path)) for path in _files(command)]
            made, failures = _export(command, outs, console)
        console.say(_in_words(command, made, failures))

    return exit_status("mkdext.export", run, "interrupted; nothing was written")


def _files(command: ExportCommand) -> list[Path]:
    return TARGETS[command.to].files(command.out)


def _check_out(command: ExportCommand) -> None:
    out = command.out
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    made_by = Path(command.model.rpartition(":")[0]) if command.model else None
    read = {"weights": command.weights, "image": command.image, "model": made_by}
    for file in _files(command):
        if file.exists() and not command.overwrite:
            raise ValueError(f"{file} exists; give another --out, or --overwrite")
        check_replaceable(file)
        for flag, path in read.items():
            if path is not None and path.exists() and file.exists() and path.samefile(file):
                raise ValueError(f"--out {file} is the file of --{flag}; give another --out")


def _export(
    command: ExportCommand, unfinished: list[Path], console: Terminal
) -> tuple[dict[str, Any], dict[str, str]]:
    """Have the exporters try, each in a process of its own, until one gives what it should.

    Returns:
        What the attempt says that succeeded, and why those before it failed.

    Raises:
        ValueError: The network cannot be loaded, or a photograph not be used, or too much is lost.
        WorkFailed: No exporter succeeded, or loading the network ended its process.
    """
    opset = command.opset or DEFAULT_OPSET
    arguments = {
        "outs": [str(path) for path in unfinished],
        "weights": str(command.weights) if command.weights else None,
        "model": command.model,
        "scale": command.scale,
        "to": command.to,
        "precision": command.precision,
        "size": command.size,
        "opset": opset,
        "image": str(command.image) if command.image else None,
        "calibration_path": str(command.calibration) if command.calibration else None,
        "max_loss": command.max_loss,
    }
    able = TARGETS[command.to].exporters(opset)
    failures: dict[str, str] = {}
    with waiting_bar(console) as bar:
        task = bar.add_task("starting", total=None)
        while left := [exporter for exporter in able if exporter not in failures]:
            stages: list[str] = []

            def show(stage: str, stages: list[str] = stages) -> None:
                stages.append(stage)
                bar.update(task, description=_SHOWN[stage])

            try:
                job = {**arguments, "able": left}
                made = run_alone("mkdext.exporting.attempt:attempt", job, show, _LIMIT)
                return made, failures
            except Failed as error:
                exporter = next((stage for stage in stages if stage in able), None)
                if exporter is None:
                    raise WorkFailed(f"{_name(command)} cannot be loaded: {error}") from None
                failures[exporter] = str(error)
    reasons = [f"by {exporter}: {reason}" for exporter, reason in failures.items()]
    if len(set(failures.values())) == 1:
        reasons = [f"by {' or '.join(failures)}: {next(iter(failures.values()))}"]
    text = f"{_name(command)} cannot be exported, {'; '.join(reasons)}"
    if command.size is None:
        text += "; --shape HEIGHTxWIDTH exports it for pictures of one size, where that is possible"
    raise WorkFailed(text)


def _name(command: ExportCommand) -> str:
    return command.model or (str(command.weights) if command.weights else "the built-in network")


def _in_words(command: ExportCommand, made: dict[str, Any], failures: dict[str, str]) -> str:
    files = _files(command)
    sizes = (
        f"height {made['height']} and width {made['width']} only" if command.size else "any size"
    )
    taken = sum(file.stat().st_size for file in files) / 1e6
    text = (
        f"{' and '.join(map(str, files))}: {made['architecture']} x{made['scale']}, "
        f"{command.precision}, {taken:.2f} MB, for pictures of {sizes}"
    )
    if made["ends_kept"]:
        text += "; the first and the last layer stay fp32, without which it would lose too much"
    if made["remark"]:
        text += f"; {made['remark']}"
    for exporter, reason in failures.items():
        text += f"; exported by {made['exporter']}, because {exporter} failed: {reason}"
    loss = made["lost"]
    return (
        f"{text}\non a photograph of {made['width']}x{made['height']} pixels "
        f"{TARGETS[command.to].runtime} differs from PyTorch by at most "
        f"{made['difference']:.2g} of 255 levels, PSNR {made['psnr']:.1f} dB, and has "
        f"{abs(loss):.3f} dB {'less' if loss >= 0 else 'more'} PSNR-Y against the photograph\n"
        f"it takes {1e3 * made['seconds']:.0f} ms, PyTorch {1e3 * made['seconds_torch']:.0f} ms, "
        f"on {made['threads']} thread{'s' if made['threads'] > 1 else ''}"
    )


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the command as Ctrl-C does, so that nothing is left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise WorkStopped(number, "stopped; nothing was written")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [number for number in ending if signal.getsignal(number) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
