from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pybind11
import pytest

from mkdext import doctor
from mkdext._system import extension

ROOT = Path(__file__).parent.parent
BACKEND = ROOT / "build_backend"
BUILD_INPUTS = [
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"),
    *("CMakeLists.txt", ".clang-format", "build_backend", "mkdext", "csrc"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources to build in."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def call_backend(
    hook: str, folder: Path, out: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Call one PEP 517 hook as an installer does: in a process of its own, in the source root."""
    out.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in {"CC", "CXX"}}
    environment.pop(extension.REQUIRE_VARIABLE, None)
    environment |= {"PYTHONPATH": str(folder / "build_backend"), "MKDEXT_CUDA": "0", **variables}
    script = f"import mkdext_backend; print(mkdext_backend.{hook}({str(out)!r}))"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_failing_compiler_leaves_a_pure_python_wheel(tree: Path, tmp_path: Path) -> None:
    built = call_backend("build_wheel", tree, tmp_path / "out", CC="false", CXX="false")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "mkdext/_system/extension.py" in names
    assert "mkdext/py.typed" in names
    assert not [name for name in names if name.startswith("mkdext/_C")]
    assert not [name for name in names if name.startswith(("csrc", "tests", "build_backend"))]


def test_failing_compiler_is_an_error_where_operators_are_required(
    tree: Path, tmp_path: Path
) -> None:
    built = call_backend(
        "build_wheel", tree, tmp_path / "out", CC="false", CXX="false", MKDEXT_REQUIRE_EXT="1"
    )
    assert built.returncode != 0
    assert re.search(r"error: command \S*\bfalse\b", built.stderr, re.IGNORECASE), built.stderr
    assert not list((tmp_path / "out").glob("*.whl"))


def test_pybind11_is_taken_and_not_the_copy_in_torch(tree: Path, tmp_path: Path) -> None:
    # That of PyTorch 2.11 is an error in code for the stable ABI.
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit 1\n')
    compiler.chmod(0o755)
    call_backend("build_wheel", tree, tmp_path / "out", CC=str(compiler), CXX=str(compiler))
    call = (tmp_path / "calls").read_text().splitlines()[0]
    assert 0 < call.index(pybind11.get_include()) < call.index("torch/include")


def test_a_build_neither_takes_from_the_tree_what_is_no_source_nor_leaves_anything_there(
    tree: Path, tmp_path: Path
) -> None:
    leftover = tree / "build" / f"lib.{sys.platform}" / "mkdext"
    leftover.mkdir(parents=True)
    (leftover / "removed_long_ago.py").write_text("")
    before = {path for path in tree.rglob("*") if "__pycache__" not in path.parts}
    built = call_backend("build_wheel", tree, tmp_path / "out", CC="false", CXX="false")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert "mkdext/removed_long_ago.py" not in zipfile.ZipFile(wheel).namelist()
    assert {path for path in tree.rglob("*") if "__pycache__" not in path.parts} == before


def test_sdist_holds_everything_that_a_build_reads(tree: Path, tmp_path: Path) -> None:
    built = call_backend("build_sdist", tree, tmp_path / "out")
    assert built.returncode == 0, built.stderr
    (archive,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in BUILD_INPUTS
        for path in [ROOT / name, *(ROOT / name).rglob("*")]
        if path.is_file() and path.suffix not in {".pyc", ".so"}
    }
    assert expected <= names


def make_interpreter(folder: Path, torch_version: str | None) -> Path:
    """A virtual environment with a ``torch`` package of that version, or with none."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    if torch_version is not None:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").write_text(
            "raise ImportError('the build must not run me')"
        )
        (site / "torch" / "version.py").write_text(
            f"__version__ = '{torch_version}'\ndebug = False\n"
        )
    return python


@pytest.mark.parametrize(
    ("version", "found"),
    [(None, False), ("2.9.1", False), ("2.10.0", True), ("2.13.0+cpu", True), ("3.0.0a0", True)],
)
def test_build_finds_the_torch_that_pip_hides(
    tmp_path: Path, version: str | None, found: bool
) -> None:
    python = make_interpreter(tmp_path / "env", version)
    # What pip's build isolation does: PYTHONPATH names a sitecustomize that empties sys.path.
    isolation = tmp_path / "isolation"
    isolation.mkdir()
    (isolation / "sitecustomize.py").write_text(
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
    )
    answer = subprocess.run(
        [python, BACKEND / "find_torch.py"],
        env={"PYTHONPATH": str(isolation), "PYTHONNOUSERSITE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    location = answer.stdout.strip()
    if found:
        assert Path(location).parent.parent.parent.parent == tmp_path / "env"
    else:
        assert location == "none"


@pytest.mark.parametrize(
    "hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"]
)
@pytest.mark.parametrize("there", [True, False])
def test_build_asks_for_torch_only_where_there_is_none(hook: str, there: bool) -> None:
    answer = "Path('torch')" if there else "None"
    script = (
        "from pathlib import Path; import find_torch;"
        f"find_torch.find_torch = lambda: {answer};"
        f"import mkdext_backend; print(mkdext_backend.{hook}())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(BACKEND)},
        capture_output=True,
        text=True,
        check=True,
    )
    requirements = result.stdout.splitlines()[-1]
    assert ("torch>=2.10" in requirements) is not there


def test_every_place_that_names_the_oldest_torch_names_the_same() -> None:
    major, minor = doctor.MINIMUM_TORCH
    flags = (ROOT / "csrc" / "compile_flags.txt").read_text().split()
    assert f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000" in flags
    assert f"MINIMUM_TORCH = ({major}, {minor})" in (BACKEND / "find_torch.py").read_text()
    assert f'"torch>={major}.{minor}"' in (ROOT / "pyproject.toml").read_text()


def test_library_needs_no_cxx_symbol_of_torch(library: Path) -> None:
    """One binary for every torch: only the C functions of the stable ABI are left to resolve."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    symbols = [line.split(maxsplit=1)[1] for line in listing.splitlines()]
    assert [s for s in symbols if re.match(r"(aoti_)?torch_\w+$", s)], (
        "not linked with torch at all"
    )
    assert not [s for s in symbols if re.search(r"\b(at|c10|torch|caffe2)::", s)]


def test_library_is_tied_to_no_directory(library: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    dynamic = subprocess.run(
        ["readelf", "--dynamic", library], capture_output=True, text=True, check=True
    ).stdout
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert (
        "libtorch.so" not in dynamic
        and "libc10" not in dynamic
        and "libtorch_python" not in dynamic
    )


def test_one_library_works_under_a_second_torch(library: Path, tmp_path: Path) -> None:
    """MKDEXT_SECOND_PYTHON names an interpreter with another torch, and nothing of mkdext."""
    python = os.environ.get("MKDEXT_SECOND_PYTHON")
    if not python:
        pytest.skip("MKDEXT_SECOND_PYTHON names no interpreter with another torch")
    installed = tmp_path / "site-packages" / "mkdext"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "mkdext", installed, ignore=ignore)
    shutil.copy(library, installed)
    answer = subprocess.run(
        [python, "-c", SECOND_TORCH],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed.parent), "MKDEXT_REQUIRE_EXT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    import torch

    assert answer.stdout.split()[-1] != torch.__version__


SECOND_TORCH = """
import torch
from mkdext._system import extension
from mkdext.ops import dynamic_conv2d, texture_kernels

assert extension.available()
torch.manual_seed(0)
x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
w = torch.randn(2, 4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
expected = torch.stack(
    [torch.nn.functional.conv2d(a[None], b, padding=1)[0] for a, b in zip(x, w)]
)
torch.testing.assert_close(dynamic_conv2d(x, w), expected)
assert torch.autograd.gradgradcheck(dynamic_conv2d, (x, w))
with torch.no_grad():
    torch.testing.assert_close(dynamic_conv2d(x, w), expected)
slope = torch.func.grad(lambda x: dynamic_conv2d(x, w.detach()).square().sum())(x.detach())
torch.testing.assert_close(slope, *torch.autograd.grad(expected.square().sum(), x))
assert torch.autograd.gradcheck(lambda x: texture_kernels(x, 2, 3), (x,))
print(torch.__version__)
"""
