"""Compiles the CUDA operators with nvcc: host code that launches, and the PTX of the kernels."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
_cuda_build = runpy.run_path(str(ROOT / "build_backend" / "cuda_build.py"))


def find_nvcc() -> Path | None:
    """Locate nvcc as the build does."""
    found = _cuda_build["find_nvcc"]()
    assert found is None or isinstance(found, Path)
    return found


def toolkit_version(nvcc: Path) -> str:
    """Return the version, like ``13.0``. The machine knows the instructions that nvcc 13 emits."""
    return str(_cuda_build["toolkit_version"](nvcc))


def compile_operators(nvcc: Path, folder: Path) -> tuple[Path, str]:
    """Compile csrc/cuda/*.cu with the flags of the build, for PTX alone.

    Args:
        nvcc: The compiler.
        folder: For what it makes.

    Returns:
        A library with the functions of operators.cpp and runtime.cpp, and the text of the PTX.

    Raises:
        subprocess.CalledProcessError: nvcc failed.
    """
    build = _cuda_build["CudaBuild"](
        nvcc=nvcc,
        torch=Path(torch.__file__).parent,
        csrc=ROOT / "csrc",
        includes=[],
        architectures=[],
        source_hash="",
    )
    command = [*build.compiling(), "-gencode", "arch=compute_80,code=compute_80"]
    texts, objects = [], []
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        kept = folder / source.stem
        kept.mkdir()
        made = kept / "host.o"
        keep = ["-keep", "-keep-dir", str(kept)]
        subprocess.run([*command, *keep, "-c", str(source), "-o", str(made)], check=True)
        texts.append((kept / f"{source.stem}.ptx").read_text())
        objects.append(str(made))
    library = folder / "operators.so"
    own = [str(Path(__file__).with_name(name)) for name in ("runtime.cpp", "operators.cpp")]
    link = [str(nvcc), "-std=c++20", "-shared", "-cudart", "none", "-Xcompiler", "-fPIC"]
    link += ["-Xlinker", "--no-undefined", *own, *objects, "-o", str(library)]
    subprocess.run(link, check=True)
    return library, "\n".join(texts)
