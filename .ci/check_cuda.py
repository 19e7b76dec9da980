"""Compile the CUDA operators where there is no GPU, and look at what came out.

For three architectures, with warnings as errors. No kernel may keep registers in memory (spills, a
stack frame), and the library may need no C++ symbol of torch. Its module is imported, and asked.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import runpy
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))

import pybind11  # noqa: E402
import torch  # noqa: E402
from cuda_build import CudaBuild, find_nvcc  # noqa: E402
from find_torch import find_torch  # noqa: E402

ARCHITECTURES = ["8.0", "9.0", "10.0+PTX"]
STRICT = ["-Werror", "all-warnings", "-Xcompiler", "-Werror", "-Xptxas", "-v"]


def main() -> None:
    """Compile, and exit with a message if something is wrong."""
    nvcc, torch_folder = find_nvcc(), find_torch()
    if nvcc is None or torch_folder is None:
        sys.exit("check_cuda: nvcc and torch are needed")
    csrc = ROOT / "csrc"
    hashing = runpy.run_path(str(ROOT / "mkdext" / "_system" / "source_hash.py"))
    build = CudaBuild(
        nvcc=nvcc,
        torch=torch_folder,
        csrc=csrc,
        includes=[Path(pybind11.get_include()), Path(sysconfig.get_paths()["include"])],
        architectures=ARCHITECTURES,
        source_hash=hashing["source_hash"](csrc, "cuda"),
    )
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "_C_cuda.so"
        printed = build.build(library, Path(folder), STRICT)
        kernels = check_registers(printed)
        check_symbols(library)
        check_module(library, Path(folder) / "libtorch_cuda.so")
    print(f"{len(kernels)} kernels, at most {max(kernels.values())} registers, none in memory")


def check_registers(printed: str) -> dict[str, int]:
    """Return the registers of every kernel; exit if one spills or has a stack frame."""
    pattern = (
        r"Compiling entry function '(?P<name>\S+)' for '(?P<target>\S+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    )
    kernels = {}
    for match in re.finditer(pattern, printed, re.DOTALL):
        name = f"{match['name']} ({match['target']})"
        if any(int(match[kind]) for kind in ("stack", "stores", "loads")):
            sys.exit(f"check_cuda: {name} keeps registers in memory:\n{match[0]}")
        kernels[name] = int(match["registers"])
    if not kernels:
        sys.exit(f"check_cuda: ptxas reported no kernel\n{printed}")
    return kernels


def check_symbols(library: Path) -> None:
    """Exit if the library needs C++ symbols of torch, or none of its C functions."""
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    symbols = [line.split(maxsplit=1)[1] for line in listing.splitlines()]
    if foreign := [s for s in symbols if re.search(r"\b(at|c10|torch|caffe2)::", s)]:
        sys.exit(f"check_cuda: the library needs C++ symbols of torch: {foreign}")
    if "aoti_torch_get_current_cuda_stream" not in symbols:
        sys.exit("check_cuda: the library does not ask torch for its stream")


def check_module(library: Path, stub: Path) -> None:
    """Import the module, and exit if it does not tell what mkdext asks; no GPU is needed."""
    if not torch.version.cuda:
        ctypes.CDLL(str(stub), ctypes.RTLD_GLOBAL)  # in the place of torch's own
    spec = importlib.util.spec_from_file_location("_C_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.build_info()["architectures"].split() != ARCHITECTURES:
        sys.exit(f"check_cuda: build_info is {module.build_info()}")
    if module.driver_version() < 0:
        sys.exit(f"check_cuda: driver_version is {module.driver_version()}")


if __name__ == "__main__":
    main()
