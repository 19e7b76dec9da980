"""Build ``mkdext._C_cuda`` with nvcc; torch's CUDAExtension refuses where torch has no CUDA.

Only the standard library is used. The build needs no GPU, and no PyTorch with CUDA either.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SWITCH = "MKDEXT_CUDA"
"""Environment variable: 1 builds the CUDA operators or fails, 0 does not build them."""

ARCHITECTURES = "MKDEXT_CUDA_ARCHITECTURES"
"""Environment variable: what to build for, like ``8.0 9.0+PTX``."""

DEFAULT_ARCHITECTURES = ("8.0", "8.9", "9.0", "10.0+PTX")


def is_forced() -> bool:
    """Tell whether the user asked for the CUDA operators, so that they are never left out."""
    return os.environ.get(SWITCH, "") not in {"", "0"}


def is_wanted(torch: Path | None) -> bool:
    """Tell whether to build: as the user says, or where nvcc is and torch has CUDA."""
    if os.environ.get(SWITCH):
        return is_forced()
    return torch is not None and (torch / "lib" / "libtorch_cuda.so").exists() and bool(find_nvcc())


def find_nvcc() -> Path | None:
    """Locate nvcc: of ``CUDA_HOME``, on the ``PATH``, or in the toolkit's usual folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    found = found or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def toolkit_version(nvcc: Path) -> str:
    """Return the toolkit's version, like ``13.0``."""
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", answer)
    return match[1] if match else "0.0"


def architectures(nvcc: Path) -> list[str]:
    """List what to build for: what the user says, else the default as far as nvcc knows it."""
    if os.environ.get(ARCHITECTURES):
        return os.environ[ARCHITECTURES].replace(",", " ").split()
    answer = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    known = [name for name in DEFAULT_ARCHITECTURES if f"compute_{_digits(name)}" in answer.split()]
    # Newer GPUs than nvcc knows take the PTX of the newest that it does.
    return [*known[:-1], known[-1].removesuffix("+PTX") + "+PTX"]


@dataclass(frozen=True)
class CudaBuild:
    """What is built, from what, and for which GPUs."""

    nvcc: Path
    torch: Path
    csrc: Path
    includes: Sequence[Path]
    architectures: Sequence[str]
    source_hash: str

    def build(self, library: Path, scratch: Path, extra: Sequence[str] = ()) -> str:
        """Compile and link.

        Args:
            library: The file to make.
            scratch: A folder for object files.
            extra: More options for nvcc.

        Returns:
            What the compiler printed.

        Raises:
            RuntimeError: nvcc failed; the message holds what it printed.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        sources = sorted([*self.csrc.glob("cuda/*.cu"), *self.csrc.glob("cuda/*.cpp")])
        objects = [scratch / f"{source.name}.o" for source in sources]
        with ThreadPoolExecutor() as pool:
            compile_one = [[*self._compiling(), *extra, "-c", str(source)] for source in sources]
            commands = (
                [*command, "-o", str(target)]
                for command, target in zip(compile_one, objects, strict=True)
            )
            printed = list(pool.map(_run, commands))
        printed.append(_run([*self._linking(), *map(str, objects), "-o", str(library)]))
        return "".join(printed)

    def _compiling(self) -> list[str]:
        """The flags of the C++ sources; the host compiler takes those that nvcc does not know."""
        command = [str(self.nvcc), "-Xcompiler", "-fPIC"]
        for flag in (self.csrc / "compile_flags.txt").read_text().split():
            known = flag.startswith(("-std", "-O", "-D"))
            command += [flag] if known else ["-Xcompiler", flag]
        # USE_CUDA: torch declares the functions of its CUDA side.
        command += ["-DUSE_CUDA", f'-DMKDEXT_SOURCE_HASH="{self.source_hash}"']
        command += [f'-DMKDEXT_CUDA_TOOLKIT="{toolkit_version(self.nvcc)}"']
        command += [f'-DMKDEXT_CUDA_ARCHITECTURES="{" ".join(self.architectures)}"']
        for include in (self.torch / "include", *self.includes):
            command += ["-isystem", str(include)]
        for name in self.architectures:
            digits = _digits(name)
            codes = [f"sm_{digits}"] + ([f"compute_{digits}"] if name.endswith("+PTX") else [])
            command += ["-gencode", f"arch=compute_{digits},code=[{','.join(codes)}]"]
        return command

    def _linking(self) -> list[str]:
        # No rpath, as for `_C`. The CUDA runtime is linked into the library, so that it is tied to
        # no version of the one that torch brings.
        # nvcc knows where it lies in a toolkit, but not in one that pip installed.
        folders = [f"-L{self.torch / 'lib'}", f"-L{self.nvcc.resolve().parent.parent / 'lib'}"]
        libraries = ["-ltorch_cpu"]
        if (self.torch / "lib" / "libtorch_cuda.so").exists():
            libraries += ["-Xlinker", "--no-as-needed", "-ltorch_cuda"]
        return [str(self.nvcc), "-shared", "-cudart", "static", *folders, *libraries]


def _digits(architecture: str) -> str:
    return architecture.removesuffix("+PTX").replace(".", "")


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout
