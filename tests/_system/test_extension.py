from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mkdext._system import extension
from mkdext._system.source_hash import source_hash
from mkdext.ops import texture_kernels

ROOT = Path(__file__).parent.parent.parent
SUFFIX = extension.EXTENSION_SUFFIXES[0]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A source tree with the loader and two C++ files, and no compiled library."""
    tree = tmp_path / "clone"
    (tree / "mkdext" / "_system").mkdir(parents=True)
    for path in (ROOT / "mkdext" / "_system").glob("*.py"):
        shutil.copy(path, tree / "mkdext" / "_system")
    shutil.copy(ROOT / "mkdext" / "__init__.py", tree / "mkdext")
    (tree / "csrc" / "cpu").mkdir(parents=True)
    (tree / "csrc" / "registration.cpp").write_text("// schemas\n")
    (tree / "csrc" / "cpu" / "kernel.cpp").write_text("// kernel\n")
    return tree


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages with an empty ``mkdext`` folder, the only entry of ``sys.path``."""
    folder = tmp_path / "site-packages"
    (folder / "mkdext").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.delenv(extension.REQUIRE_VARIABLE, raising=False)
    return folder


def loader_of(tree: Path) -> ModuleType:
    """The loader as ``import mkdext`` finds it in that tree, with nothing tried yet."""
    spec = importlib.util.spec_from_file_location(
        "loader", tree / "mkdext" / "_system" / "extension.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loader"] = module  # dataclasses look the module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["loader"]
    return module


def write_library(folder: Path, csrc: Path) -> Path:
    """A file that carries the hash of the sources, as the build writes it, but is no library."""
    path = folder / "mkdext" / f"_C{SUFFIX}"
    path.write_bytes(b"\x7fnot ELF" + source_hash(csrc).encode() + b"\0")
    return path


def test_no_library_warns_once_with_the_fix_and_goes_on(clone: Path, site: Path) -> None:
    loader = loader_of(clone)
    with pytest.warns(
        loader.ExtensionWarning, match=r"not installed.*slower.*pip install \."
    ) as seen:
        assert not loader.available()
        assert not loader.available()
    assert len(seen) == 1
    assert loader.status().state == "missing"


def test_required_library_that_is_missing_is_an_error(
    clone: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKDEXT_REQUIRE_EXT", "1")
    with pytest.raises(
        ImportError, match=r"not installed.*C\+\+ compiler.*MKDEXT_REQUIRE_EXT is set"
    ):
        loader_of(clone).available()


def test_module_of_a_missing_library_is_an_error_with_the_fix(clone: Path, site: Path) -> None:
    with pytest.raises(ImportError, match="install a C\\+\\+ compiler"):
        loader_of(clone).module()


@pytest.mark.parametrize("change", ["edit", "add", "rename"])
def test_installed_library_of_other_sources_is_stale(clone: Path, site: Path, change: str) -> None:
    path = write_library(site, clone / "csrc")
    kernel = clone / "csrc" / "cpu" / "kernel.cpp"
    if change == "edit":
        kernel.write_text("// another kernel\n")
    elif change == "add":
        kernel.with_name("new.h").write_text("")
    else:
        kernel.rename(kernel.with_name("renamed.cpp"))
    loader = loader_of(clone)
    status = loader.status()
    assert (status.state, status.path) == ("stale", path)
    with pytest.warns(
        loader.ExtensionWarning, match=r"other C\+\+ sources.*pip install \.` .*again"
    ):
        assert not loader.available()


def test_notes_beside_the_sources_do_not_make_a_library_stale(clone: Path) -> None:
    before = source_hash(clone / "csrc")
    (clone / "csrc" / "README.md").write_text("how to build")
    assert source_hash(clone / "csrc") == before


def test_stale_library_in_place_names_the_in_place_fix(clone: Path, site: Path) -> None:
    write_library(clone, clone / "csrc")
    (clone / "csrc" / "registration.cpp").write_text("// more schemas\n")
    status = loader_of(clone).status()
    assert status.state == "stale"
    assert "build_ext --inplace" in status.fix


def test_matching_installed_library_wins_over_a_stale_one_in_place(clone: Path, site: Path) -> None:
    write_library(clone, clone / "csrc")
    (clone / "csrc" / "registration.cpp").write_text("// more schemas\n")
    installed = write_library(site, clone / "csrc")
    assert loader_of(clone).status().path == installed


def test_library_that_does_not_load_is_broken_not_a_crash(clone: Path, site: Path) -> None:
    path = write_library(clone, clone / "csrc")
    status = loader_of(clone).status()
    assert (status.state, status.path) == ("broken", path)
    assert "does not load" in status.reason
    assert "pip install ." in status.fix


def test_installed_package_takes_no_library_from_elsewhere(clone: Path, site: Path) -> None:
    """Without the sources there is nothing to compare with, so only its own library is right."""
    write_library(site, clone / "csrc")
    shutil.rmtree(clone / "csrc")
    assert loader_of(clone).status().state == "missing"


def test_threads_that_ask_at_once_load_once_and_warn_once(
    clone: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(clone)
    loads = []
    load = loader.load
    monkeypatch.setattr(loader, "load", lambda library: (loads.append(1), load(library))[1])
    threads = 8
    barrier = threading.Barrier(threads)

    def ask() -> None:
        barrier.wait()
        loader.available()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        workers = [threading.Thread(target=ask) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(loads) == 1
    assert len(seen) == 1


@pytest.mark.slow
def test_source_tree_loads_the_library_of_the_installed_package(
    library: Path, tmp_path: Path
) -> None:
    """The root of a clone after a plain ``pip install .``."""
    tree, site = tmp_path / "clone", tmp_path / "site-packages"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "mkdext", tree / "mkdext", ignore=ignore)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    (site / "mkdext").mkdir(parents=True)
    shutil.copy(library, site / "mkdext")
    script = (
        "import json, mkdext, mkdext._system.extension as e, mkdext.ops, torch, sys;"
        "s = e.status();"
        "y = mkdext.ops.texture_kernels(torch.ones(1, 1, 4, 4), 1, 1);"
        "print(json.dumps([mkdext.__file__, s.state, str(s.path), e.module().__name__, y.item()]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == [
        str(tree / "mkdext" / "__init__.py"),
        "loaded",
        str(site / "mkdext" / library.name),
        "mkdext._C",
        1.0,
    ]


def test_importing_the_package_stays_light() -> None:
    script = "import mkdext, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import mkdext.methods.mkd as m",
        "import mkdext.methods.mkd; m = mkdext.methods.mkd",
        "from mkdext.methods import mkd as m",
        "import mkdext; mkdext.distill; import mkdext.methods.mkd as m",
        "from mkdext.training import distill; import mkdext.methods.mkd as m",
    ],
)
def test_distill_is_a_package_that_can_be_called(imports: str) -> None:
    script = (
        f"{imports}\n"
        "import mkdext, sys\n"
        "from mkdext.methods import MKD\n"
        "assert m is sys.modules['mkdext.methods.mkd'] and m.MKD is MKD\n"
        "assert 'distill' in dir(mkdext)\n"
        "try: mkdext.distill(student=1, teacher=2, images=3)\n"
        "except TypeError as error: assert 'student must be a torch.nn.Module' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.slow
def test_operators_without_a_library_can_be_compiled_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = extension.ExtensionStatus("missing", None, "not there", "install it")
    monkeypatch.setattr(extension, "_status", missing)
    monkeypatch.setattr(extension, "_warned", set())
    monkeypatch.delenv(extension.REQUIRE_VARIABLE, raising=False)
    features = torch.rand(1, 2, 6, 6)
    compiled = torch.compile(lambda f: texture_kernels(f, 2, 3), backend="eager", fullgraph=True)
    result = compiled(features)
    with pytest.warns(extension.ExtensionWarning, match="not there"):
        torch.testing.assert_close(result, texture_kernels(features, 2, 3))
