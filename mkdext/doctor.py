"""``python -m mkdext.doctor``: what is installed, compiled and missing, and how to mend it.

It imports nothing beyond the standard library until it has looked for it, so that it runs where
something is missing, PyTorch included. It exits with 0 if mkdext is usable and 1 if it is not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mkdext import __version__
from mkdext._system import extension
from mkdext._system.errors import first_line
from mkdext._system.processors import processors
from mkdext._system.streams import printable, replace_unencodable

MINIMUM_TORCH = (2, 10)
REQUIRED_PACKAGES = {
    "numpy": "numpy",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scipy": "scipy",
    "tifffile": "tifffile",
    "safetensors": "safetensors",
    "rich": "rich",
    "tyro": "tyro",
    "docstring-parser": "docstring_parser",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "typing-extensions": "typing_extensions",
    "matplotlib": "matplotlib",
    "psutil": "psutil",
    "filelock": "filelock",
}
"""Distribution name and import name of every dependency besides PyTorch."""

OPTIONAL_PACKAGES = {
    "tensorboard": ("tensorboard", "curves of a training in a browser"),
    "onnx": ("onnx", "mkdext.export"),
    "onnxruntime": ("onnxruntime", "mkdext.export"),
    "onnxscript": ("onnxscript", "mkdext.export"),
    "openvino": ("openvino", "mkdext.export --to openvino"),
    "ncnn": ("ncnn", "mkdext.export --to ncnn"),
    "pnnx": ("pnnx", "mkdext.export --to ncnn"),
}
"""Distribution name, import name and use of what mkdext takes when it is there."""


_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Finding:
    """One row of the report."""

    name: str
    value: str
    level: Literal["ok", "note", "problem"] = "ok"
    """``note``: mkdext works without it; ``problem``: it does not."""
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything, in the order of the report."""
    torch = _import_torch()
    return [
        Finding("mkdext", f"{__version__} in {Path(__file__).parent}"),
        Finding(
            "python", f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
        ),
        _torch(torch),
        *_required_packages(),
        _compiler(),
        *(_operators() if not isinstance(torch, Exception) else ()),
        *(_hardware(torch) if not isinstance(torch, Exception) else ()),
        *_optional_packages(),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report.

    Returns:
        The exit status: 1 if there is a problem, else 0.
    """
    replace_unencodable()
    parser = argparse.ArgumentParser(prog="python -m mkdext.doctor", description=_summary())
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    options = parser.parse_args(arguments)
    findings = examine()
    usable = all(finding.level != "problem" for finding in findings)
    if options.json:
        print(json.dumps({"usable": usable, "findings": [*map(asdict, findings)]}, indent=2))
    else:
        _print(findings, usable)
    return 0 if usable else 1


def _summary() -> str:
    return "Show what is installed, compiled and missing, and the fix for each problem."


def _import_torch() -> Any:
    """Return the module, or the exception that importing it raised."""
    try:
        import torch
    except Exception as error:  # a broken PyTorch raises OSError, RuntimeError and others
        return error
    return torch


def _torch(torch: Any) -> Finding:
    oldest = ".".join(map(str, MINIMUM_TORCH))
    fix = f"pip install 'torch>={oldest}'"
    if isinstance(torch, ModuleNotFoundError):
        return Finding("torch", "not installed", "problem", fix)
    if isinstance(torch, Exception):
        return Finding("torch", f"does not import: {first_line(torch)}", "problem", fix)
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    value = f"{torch.__version__} ({kind} build)"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        return Finding("torch", f"{value}, older than {oldest}", "problem", fix)
    return Finding("torch", value)


def _required_packages() -> Iterator[Finding]:
    missing = [name for name, module in REQUIRED_PACKAGES.items() if not _is_installed(module)]
    if missing:
        listed = ", ".join(missing)
        yield Finding(
            "packages", f"missing: {listed}", "problem", f"pip install {' '.join(missing)}"
        )
    else:
        versions = (f"{name} {importlib.metadata.version(name)}" for name in REQUIRED_PACKAGES)
        yield Finding("packages", ", ".join(versions))


def _optional_packages() -> Iterator[Finding]:
    for name, (module, use) in OPTIONAL_PACKAGES.items():
        if _is_installed(module):
            yield Finding(name, importlib.metadata.version(name))
        else:
            yield Finding(name, f"not installed (optional: {use})", "note", f"pip install {name}")


def _compiler() -> Finding:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for command in wanted:
        if path := shutil.which(command.split()[0]):
            answer = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False
            )
            return Finding("compiler", f"{(answer.stdout.splitlines() or ['?'])[0]} at {path}")
    return Finding(
        "compiler",
        f"none of {', '.join(wanted)} found",
        "note",
        "needed to build: `apt install g++`, `dnf install gcc-c++` or `xcode-select --install`",
    )


def _operators() -> Iterator[Finding]:
    status = extension.status()
    if status.state != "loaded":
        # Without a binary the operators run on plain PyTorch by design; a wrong one is a mistake.
        tolerated = status.state == "missing" and not extension.is_required()
        yield Finding("operators", status.reason, "note" if tolerated else "problem", status.fix)
        return
    build = status.build
    yield Finding("operators", f"compiled, {status.path}")
    yield Finding(
        "built with",
        f"{build['compiler']}, headers of torch {build['torch_headers']}, "
        f"stable ABI of torch {build['abi_target']}",
    )
    try:
        yield Finding("instruction set", _instruction_set())
    except RuntimeError as error:
        yield Finding(
            "instruction set", first_line(error), "problem", "unset MKDEXT_INSTRUCTION_SET"
        )
    else:
        yield _trial()


def _instruction_set() -> str:
    operators = extension.module()
    return f"{operators.instruction_set()} (available: {', '.join(operators.cpu_features())})"


def _trial(device: str = "cpu") -> Finding:
    """Run the operators on known numbers: what loads may still compute nonsense."""
    import torch

    from mkdext.ops import _dispatch

    operators = torch.ops.mkdext
    name = "trial run" if device == "cpu" else f"trial run, {device}"
    # As many channels as Winograd's kernels want, which are for float32 alone.
    features = torch.linspace(-1, 1, 16 * 8 * 8, dtype=torch.float64).view(1, 16, 8, 8)
    weight = torch.linspace(-1, 1, 16 * 16 * 9, dtype=torch.float64).view(1, 16, 16, 3, 3).sin()
    convolved = torch.nn.functional.conv2d(features, weight[0], padding=1)
    pooled = features.mean((2, 3)).view(1, 1, 16, 1, 1)
    for dtype in (torch.float64, torch.float32):
        try:
            x, w = (t.to(device, dtype) for t in (features, weight))
        except RuntimeError as error:  # no memory, a GPU that is busy, or one that has failed
            return Finding(name, first_line(error), "problem", _LOOK)
        try:
            results = (
                _dispatch.call(operators.dynamic_conv2d, x.device, x, w).cpu(),
                _dispatch.call(operators.texture_kernels, x.device, x, 1, 1).cpu(),
            )
        except torch.OutOfMemoryError as error:
            return Finding(name, first_line(error), "problem", _LOOK)
        except RuntimeError as error:
            return Finding(name, first_line(error), "problem", _REPORT)
        for result, expected in zip(results, (convolved, pooled), strict=True):
            if (result - expected).abs().max() > _TOLERANCE * expected.abs().max():
                wrong = f"the compiled operators give wrong numbers in {dtype}"
                return Finding(name, wrong, "problem", _REPORT)
    return Finding(name, "right")


_REPORT = "please report it with the output of `python -m mkdext.doctor --json`"
_LOOK = "see in `nvidia-smi` what uses the GPU and its memory, and run this again when it is free"


def _hardware(torch: Any) -> Iterator[Finding]:
    yield Finding("threads", f"{torch.get_num_threads()} of {processors()} processors")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        for index in range(count):
            yield _gpu(torch, index)
        yield from _cuda_operators(count)
    elif torch.version.cuda:
        yield Finding("cuda", _why_no_cuda(torch), "note")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "cuda",
            "an NVIDIA driver is installed, but this torch is a CPU build",
            "note",
            "install a CUDA build of torch: https://pytorch.org/get-started/locally",
        )
    else:
        yield Finding("cuda", "no device", "note")


def _gpu(torch: Any, index: int) -> Finding:
    try:
        device = torch.cuda.get_device_name(index)
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
    except RuntimeError as error:
        return Finding("cuda", f"cuda:{index}: {first_line(error)}", "problem", _LOOK)
    return Finding("cuda", f"cuda:{index}: {device}, {free:.1f} of {total:.1f} GiB are free")


def _why_no_cuda(torch: Any) -> str:
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # no driver, one that is too old, no device
        return f"no device: {first_line(error)}"
    return "no device"


def _cuda_operators(device_count: int) -> Iterator[Finding]:
    from mkdext._system import cuda

    status = cuda.status()
    if status.state != "loaded":
        tolerated = status.state == "missing" and not extension.is_required()
        fix = status.fix
        if tolerated and shutil.which("nvcc"):
            fix = "nvcc is here: run `MKDEXT_CUDA=1 pip install .` in the root of the clone"
        yield Finding("cuda operators", status.reason, "note" if tolerated else "problem", fix)
        return
    yield Finding(
        "cuda operators",
        f"compiled with CUDA {status.build['toolkit']} for {status.build['architectures']}, "
        f"{status.path}",
    )
    for index in range(device_count):
        try:
            obstacle = cuda.find_obstacle(index)
        except RuntimeError:  # the GPU does not answer, which its own row tells
            continue
        if obstacle is None:
            yield _trial(f"cuda:{index}")
        else:
            reason, fix = obstacle
            yield Finding(f"cuda:{index}", reason, "problem", fix)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _print(findings: Sequence[Finding], usable: bool) -> None:
    verdict = "mkdext is usable." if usable else "mkdext is not usable: see the problems above."
    if not _is_installed("rich"):
        for finding in findings:
            fix = f"  -> {finding.fix}" if finding.fix else ""
            print(printable(f"{finding.level:<8} {finding.name}: {finding.value}{fix}"))
        print(verdict)
        return

    from rich.table import Table
    from rich.text import Text

    from mkdext._system.terminal import Terminal

    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = styles[finding.level]
        text = Text(printable(finding.value))
        if finding.fix:
            text.append(printable(f"\nfix: {finding.fix}"), style)
        table.add_row(Text(finding.level, style), finding.name, text)
    console = Terminal()
    console.print(table)
    console.print(verdict, style=styles["ok" if usable else "problem"])


if __name__ == "__main__":
    sys.exit(main())
