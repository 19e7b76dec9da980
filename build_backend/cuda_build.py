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
"""Environment variable: what to build for, like ``8.0 9.0+PTX``; commas and semicolons do too."""

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
    """List what to build for: what the user says, else the default as far as nvcc knows it.

    Raises:
        ValueError: The user says what is no list of architectures.
    """
    if wanted := re.findall(r"[^,;\s]+", os.environ.get(ARCHITECTURES, "")):
        for name in wanted:
            if not re.fullmatch(r"\d+\.\d(\+PTX)?", name):
                raise ValueError(
                    f'{ARCHITECTURES} takes compute capabilities like "8.0 9.0+PTX", got "{name}"'
                )
        return wanted
    known = [name for name in DEFAULT_ARCHITECTURES if _number(name) in known_architectures(nvcc)]
    # Newer GPUs than nvcc knows take the PTX of the newest that it does.
    return [*known[:-1], known[-1].removesuffix("+PTX") + "+PTX"]


def architecture_for(capability: tuple[int, int], nvcc: Path) -> str:
    """Return what to build for one GPU; for one that nvcc does not know, PTX that it can take."""
    older = [known for known in known_architectures(nvcc) if known <= capability]
    major, minor = max(older, default=capability)
    return f"{major}.{minor}+PTX"


def known_architectures(nvcc: Path) -> list[tuple[int, int]]:
    """List the compute capabilities that nvcc compiles for."""
    answer = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^compute_(\d+)(\d)$", answer, re.MULTILINE)
    return [(int(major), int(minor)) for major, minor in found]


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
            compile_one = [[*self.compiling(), *extra, "-c", str(source)] for source in sources]
            commands = (
                [*command, "-o", str(target)]
                for command, target in zip(compile_one, objects, strict=True)
            )
            printed = list(pool.map(_run, commands))
        stub = self._make_stub(scratch)
        printed.append(_run([*self._linking(), *map(str, [*objects, stub]), "-o", str(library)]))
        return "".join(printed)

    def _make_stub(self, scratch: Path) -> Path:
        """Make a library of the name of torch's CUDA side.

        Linked with it, the operators find the real one in the process. The PyTorch that they are
        built with may have none.
        """
        source, stub = scratch / "stub.cpp", scratch / "libtorch_cuda.so"
        source.write_text(
            'extern "C" void aoti_torch_get_current_cuda_stream() {}\n', encoding="utf-8"
        )
        shared = [str(self.nvcc), "-shared", "-Xcompiler", "-fPIC", "-cudart", "none"]
        _run([*shared, "-Xlinker", "-soname", "-Xlinker", stub.name, str(source), "-o", str(stub)])
        return stub

    def compiling(self) -> list[str]:
        """Return what compiles a source, but for the source.

        The host compiler takes the flags of compile_flags.txt that nvcc does not know.
        """
        command = [str(self.nvcc), "-Xcompiler", "-fPIC"]
        for flag in (self.csrc / "compile_flags.txt").read_text(encoding="utf-8").split():
            known = flag.startswith(("-std", "-O", "-D"))
            command += [flag] if known else ["-Xcompiler", flag]
        # USE_CUDA: torch declares the functions of its CUDA side.
        command += ["-DUSE_CUDA", f'-DMKDEXT_SOURCE_HASH="{self.source_hash}"']
        command += [f'-DMKDEXT_CUDA_TOOLKIT="{toolkit_version(self.nvcc)}"']
        command += [f'-DMKDEXT_CUDA_ARCHITECTURES="{" ".join(self.architectures)}"']
        # torch comes last: its copy of pybind11 refuses, in some versions, code for the stable ABI.
        for include in (*self.includes, self.torch / "include"):
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
        libraries = ["-ltorch_cpu", "-Xlinker", "--no-as-needed"]
        return [str(self.nvcc), "-shared", "-cudart", "static", *folders, *libraries]


def _digits(architecture: str) -> str:
    return architecture.removesuffix("+PTX").replace(".", "")


def _number(architecture: str) -> tuple[int, int]:
    major, minor = architecture.removesuffix("+PTX").split(".")
    return int(major), int(minor)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout
