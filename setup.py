"""Build of the C++ operators; everything else about the package stands in pyproject.toml."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

import cuda_build  # noqa: E402
from find_torch import TORCH_REQUIREMENT, find_torch  # noqa: E402

CSRC = Path("csrc")
HASHING = runpy.run_path(str(ROOT / "mkdext" / "_system" / "source_hash.py"))
REQUIRED = os.environ.get("MKDEXT_REQUIRE_EXT", "0") not in {"", "0"}


_GCC_FLAGS = (CSRC / "compile_flags.txt").read_text(encoding="utf-8").split()


def clang_cl_flags() -> list[str]:
    """Return the flags of compile_flags.txt in the words of clang-cl."""
    words = {"-std=c++20": "/std:c++20", "-O3": "/clang:-O3"}
    known = [words.get(flag, flag) for flag in _GCC_FLAGS if flag in words or flag[:2] == "-D"]
    return [*known, "/EHsc", "/W3"]


class BuildOperators(build_ext):
    """Compiles the operators with the headers of the torch that ``find_torch`` locates."""

    def _use_clang_cl(self, ext: Extension) -> str:
        """Have clang-cl compile on Windows: the kernels are in vectors, which MSVC does not know.

        Returns:
            The flag before a folder of other people's headers.
        """
        clang = shutil.which("clang-cl")
        if clang is None:
            raise CompileError(
                f"{ext.name} needs clang-cl: install Visual Studio's C++ Clang tools, or LLVM"
            )
        self.compiler.initialize()
        self.compiler.cc = clang
        ext.extra_compile_args = clang_cl_flags()
        # What asks the processor for its instructions is in clang's own library.
        ask = [clang, "/clang:--rtlib=compiler-rt", "/clang:-print-libgcc-file-name"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        if Path(answer.stdout.strip()).is_file():
            ext.extra_link_args.append(answer.stdout.strip())
        return "-imsvc"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension module.

        Raises:
            CompileError: There is no usable torch, or the compiler failed. Unless
                ``MKDEXT_REQUIRE_EXT=1``, setuptools reports it and goes on without the module.
        """
        torch = find_torch()
        if torch is None:
            raise CompileError(f"{ext.name} needs the headers of {TORCH_REQUIREMENT}: install it")
        if ext.name == cuda_operators.name:
            self._build_cuda(torch)
            return
        # -isystem: the warnings of other people's headers are not ours. pybind11 comes first: torch
        # has a copy, which in some versions refuses code for the stable ABI.
        on_windows = self.compiler.compiler_type == "msvc"
        system = self._use_clang_cl(ext) if on_windows else "-isystem"
        for include in (Path(pybind11.get_include()), torch / "include"):
            ext.extra_compile_args += [system, str(include)]
        ext.library_dirs.append(str(torch / "lib"))
        with ParallelCompile(default=os.cpu_count() or 1, needs_recompile=lambda *_: True):
            super().build_extension(ext)

    def _build_cuda(self, torch: Path) -> None:
        nvcc = cuda_build.find_nvcc()
        if nvcc is None:
            raise CompileError(f"{cuda_build.SWITCH}=1 needs nvcc: install the CUDA toolkit")
        build = cuda_build.CudaBuild(
            nvcc=nvcc,
            torch=torch,
            csrc=CSRC,
            includes=[Path(pybind11.get_include()), Path(sysconfig.get_paths()["include"])],
            architectures=cuda_build.architectures(nvcc),
            source_hash=HASHING["source_hash"](CSRC, "cuda"),
        )
        print(f"building mkdext._C_cuda with {nvcc} for {' '.join(build.architectures)}")
        try:
            library = Path(self.get_ext_fullpath(cuda_operators.name))
            build.build(library, Path(self.build_temp) / "cuda")
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error


operators = Extension(
    "mkdext._C",
    sources=[str(path) for path in HASHING["source_files"](CSRC) if path.suffix == ".cpp"],
    depends=[str(path) for path in HASHING["source_files"](CSRC)],
    define_macros=[("MKDEXT_SOURCE_HASH", f'"{HASHING["source_hash"](CSRC)}"')],
    extra_compile_args=[*_GCC_FLAGS, "-g0"],
    # Named so that the loader finds the libtorch_cpu which "import torch" has loaded; there is no
    # rpath, so the binary is tied to no particular torch.
    libraries=["torch_cpu"],
    language="c++",
    optional=not REQUIRED,
)

# Built by a rule of its own, so that setuptools knows the name alone.
cuda_operators = Extension(
    "mkdext._C_cuda", sources=[], optional=not (REQUIRED or cuda_build.is_forced())
)
extensions = [operators]
if cuda_build.is_wanted(find_torch()):
    extensions.append(cuda_operators)

options = {}
if "mkdext_backend" in sys.modules:
    # pip builds in the clone itself, where leftovers of an earlier build would enter the wheel.
    scratch = tempfile.TemporaryDirectory()
    options = {"build": {"build_base": scratch.name}, "egg_info": {"egg_base": scratch.name}}

setup(ext_modules=extensions, cmdclass={"build_ext": BuildOperators}, options=options)
