"""`python -m mkdext.export`: write a trained network as ONNX."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
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
from mkdext.exporting import COMPARING, GRAPH, LOADING, PACKAGES, TRACE

_LIMIT = 1800.0  # seconds for one exporter; the largest networks here take two minutes
_SHOWN = {
    LOADING: "loading the network",
    GRAPH: f"exporting by {GRAPH}",
    TRACE: f"exporting by {TRACE}",
    COMPARING: "comparing ONNX Runtime with PyTorch",
}


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a trained network as ONNX, for pictures of any height and width or of one.

    The input is `lr`, float32 [1, 3, height, width], colours from 0 to 1; the output is `sr`,
    float32 [1, 3, scale * height, scale * width], not clipped. ONNX Runtime runs the file on a
    photograph and is compared with PyTorch before the file is put in place. PyTorch has two
    exporters; where one fails or gives something else, the other is tried. SAN is exact up to 1000
    pixels a side, where the memory of its attention grows with the square of the pixels. Needs the
    packages onnx, onnxruntime and onnxscript: pip install onnx onnxruntime onnxscript.
    """

    out: Path
    """File to write; its name need not end in .onnx."""
    weights: Path | None = None
    """Weights of the network; default: the built-in network, which enlarges four times."""
    model: str | None = None
    """Network that the weights must be of, or your own network, as package.module:factory or
    file.py:factory; default: the network that the weights are of."""
    scale: int | None = None
    """Enlargement factor; default: the weights', or the one found by running your network."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures that the file is for, in low resolution; default: any. Some
    networks can be exported or run for one size only."""
    image: Path | None = None
    """Photograph to compare on; default: a built-in one."""
    overwrite: bool = False
    """Replace an existing file."""


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
        check_packages()
        _check_out(command)
        if command.size is not None and min(command.size) < 1:
            raise ValueError(f"--size must be two numbers of at least 1, got {command.size}")
        with _stopped_by_signals(), atomic_write(command.out) as unfinished:
            made, failures = _export(command, unfinished, console)
        console.say(_in_words(command, made, failures))

    return exit_status("mkdext.export", run, "interrupted; nothing was written")


def check_packages() -> None:
    """Check that all that an export needs is installed.

    Raises:
        ValueError: A package is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"an export needs {', '.join(missing)}, not installed: pip install {' '.join(missing)}"
        )


def _check_out(command: ExportCommand) -> None:
    out = command.out
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it")
    if out.exists() and not command.overwrite:
        raise ValueError(f"{out} exists; give another --out, or --overwrite")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    check_replaceable(out)
    made_by = Path(command.model.rpartition(":")[0]) if command.model else None
    for flag, read in (("weights", command.weights), ("image", command.image), ("model", made_by)):
        if read is not None and read.exists() and out.exists() and read.samefile(out):
            raise ValueError(f"--out {out} is the file of --{flag}; give another --out")


def _export(
    command: ExportCommand, unfinished: Path, console: Terminal
) -> tuple[dict[str, Any], dict[str, str]]:
    """Have the exporters try, each in a process of its own, until one gives what it should.

    Returns:
        What the attempt says that succeeded, and why those before it failed.

    Raises:
        ValueError: The network cannot be loaded, or the photograph not be used.
        WorkFailed: No exporter succeeded, or loading the network ended its process.
    """
    arguments = {
        "out": str(unfinished),
        "weights": str(command.weights) if command.weights else None,
        "model": command.model,
        "scale": command.scale,
        "image": str(command.image) if command.image else None,
        "size": command.size,
    }
    failures: dict[str, str] = {}
    with waiting_bar(console) as bar:
        task = bar.add_task("starting", total=None)
        while len(failures) < len((GRAPH, TRACE)):
            stages: list[str] = []

            def show(stage: str, stages: list[str] = stages) -> None:
                stages.append(stage)
                bar.update(task, description=_SHOWN[stage])

            job = {**arguments, "tried": list(failures)}
            try:
                made = run_alone("mkdext.exporting.attempt:attempt", job, show, _LIMIT)
                return made, failures
            except Failed as error:
                exporter = next((stage for stage in stages if stage in (GRAPH, TRACE)), None)
                if exporter is None:
                    raise WorkFailed(f"{_name(command)} cannot be loaded: {error}") from None
                failures[exporter] = str(error)
    reasons = [f"by {exporter}: {reason}" for exporter, reason in failures.items()]
    if len(set(failures.values())) == 1:
        reasons = [f"by {' or '.join(failures)}: {failures[GRAPH]}"]
    text = f"{_name(command)} cannot be exported, {'; '.join(reasons)}"
    if command.size is None:
        text += "; --size HEIGHT WIDTH exports it for pictures of one size, where that is possible"
    raise WorkFailed(text)


def _name(command: ExportCommand) -> str:
    return command.model or (str(command.weights) if command.weights else "the built-in network")


def _in_words(command: ExportCommand, made: dict[str, Any], failures: dict[str, str]) -> str:
    sizes = (
        f"height {made['height']} and width {made['width']} only" if command.size else "any size"
    )
    text = (
        f"{command.out}: {made['architecture']} x{made['scale']}, "
        f"{command.out.stat().st_size / 1e6:.2f} MB, for pictures of {sizes}; on a "
        f"photograph of {made['width']}x{made['height']} pixels ONNX Runtime differs from PyTorch "
        f"by at most {made['difference']:.2g} of 255 levels"
    )
    if made["remark"]:
        text += f"; {made['remark']}"
    for exporter, reason in failures.items():
        text += f"; exported by {made['exporter']}, because {exporter} failed: {reason}"
    return text


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the command as Ctrl-C does, so that nothing is left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise WorkStopped(number, "stopped; nothing was written")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
