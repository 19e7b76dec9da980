"""Loading and choosing the CUDA operators, with GPUs that are pretended."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mkdext import doctor
from mkdext._system import cuda, extension
from mkdext.ops import _dispatch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))
sys.path.insert(0, str(ROOT / "benchmarks"))
import cuda_build  # noqa: E402
import gpu_check  # noqa: E402

LOADED = extension.ExtensionStatus(
    "loaded", None, "in use", build={"toolkit": "13.1", "architectures": "8.0 9.0+PTX"}
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A GPU whose capability and driver a test sets; the operators are loaded."""
    properties: dict[str, object] = {"capability": (9, 0), "driver": 13000}
    monkeypatch.setattr(cuda, "_status", LOADED)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: properties["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    library = SimpleNamespace(driver_version=lambda: properties["driver"])
    monkeypatch.setitem(sys.modules, "mkdext._C_cuda", library)
    cuda._check_device.cache_clear()
    return properties


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), "8.0 9.0", True),
        ((8, 6), "8.0 9.0", True),
        ((8, 0), "8.6", False),
        ((9, 0), "8.0 8.9", False),
        ((9, 0), "8.0+PTX", True),
        ((12, 0), "8.0 10.0+PTX", True),
        ((12, 0), "8.0 10.0", False),
        ((7, 5), "8.0+PTX", False),
    ],
)
def test_machine_code_runs_within_its_generation_and_ptx_on_all_newer(
    capability: tuple[int, int], architectures: str, runs: bool
) -> None:
    assert cuda.runs_on(capability, architectures) is runs


def test_a_fit_gpu_has_no_obstacle(gpu: dict[str, object]) -> None:
    assert cuda.find_obstacle(0) is None
    assert cuda.available(torch.device("cuda"))


@pytest.mark.parametrize("source", [cuda, doctor, _dispatch])
def test_every_name_of_torch_that_is_used_exists(source: ModuleType) -> None:
    names = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(inspect.getsource(source)))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda.")
    }
    assert names
    for name in names:
        functools.reduce(getattr, name.split(".")[1:], torch)


def test_the_driver_of_this_machine_is_asked_by_the_library_itself() -> None:
    status = cuda.status()
    if status.state == "missing" or not torch.version.cuda:
        pytest.skip(f"{status.reason}: {status.fix}")
    assert (cuda.driver_version() is not None) >= torch.cuda.is_available()


def test_an_unknown_driver_is_no_obstacle(gpu: dict[str, object]) -> None:
    gpu["driver"] = 0
    assert cuda.find_obstacle(0) is None


@pytest.mark.parametrize(
    ("capability", "driver", "message"),
    [
        ((10, 0), 12080, r"supports CUDA 12\.8, but .* built with 13\.1: update the driver"),
        ((7, 5), 13000, r"capability 7\.5, but .* need 8\.0: use `mkdext\.ops\.reference`"),
        ((12, 0), 13000, r'13\.0 and cannot compile the PTX of 13\.1 .*ARCHITECTURES="12\.0"'),
    ],
)
def test_a_gpu_that_cannot_run_the_operators_is_an_error_with_the_fix(
    gpu: dict[str, object], capability: tuple[int, int], driver: int, message: str
) -> None:
    gpu |= {"capability": capability, "driver": driver}
    with pytest.raises(RuntimeError, match=f"mkdext on cuda:1: .*{message}"):
        cuda.available(torch.device("cuda", 1))


def test_an_architecture_that_was_not_built_tells_how_to_build_it(
    gpu: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = {"toolkit": "13.0", "architectures": "9.0"}
    monkeypatch.setattr(cuda, "_status", extension.ExtensionStatus("loaded", None, "", "", build))
    gpu["capability"] = (8, 6)
    message = r'8\.6, but .* for 9\.0: run `MKDEXT_CUDA_ARCHITECTURES="8\.6" pip install \.`'
    with pytest.raises(RuntimeError, match=message):
        cuda.available(torch.device("cuda"))


def test_operators_that_are_missing_are_told_once_and_an_error_where_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = extension.ExtensionStatus("missing", None, "no CUDA operators", "install nvcc")
    monkeypatch.setattr(cuda, "_status", missing)
    monkeypatch.setattr(extension, "_warned", set())
    monkeypatch.delenv(extension.REQUIRE_VARIABLE, raising=False)
    with pytest.warns(extension.ExtensionWarning, match="no CUDA operators.*install nvcc") as seen:
        assert not cuda.available(torch.device("cuda"))
        assert not cuda.available(torch.device("cuda"))
    assert len(seen) == 1
    monkeypatch.setenv(extension.REQUIRE_VARIABLE, "1")
    with pytest.raises(ImportError, match="no CUDA operators: install nvcc"):
        cuda.available(torch.device("cuda"))


def test_cuda_operators_are_not_loaded_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = extension.ExtensionStatus("broken", None, "the operators are broken", "rebuild")
    monkeypatch.setattr(extension, "_status", broken)
    monkeypatch.setattr(cuda, "_status", None)
    assert cuda.status() is broken


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_tf32_is_taken_only_if_pytorch_allows_it(setting: str) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        assert cuda.allows_tf32() is (setting == "tf32")
    finally:
        matmul.fp32_precision = before


def test_memory_that_runs_out_in_an_operator_is_pytorch_s_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(reason: str) -> None:
        raise RuntimeError(f"{reason} API call failed at ops.h")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**31))
    cuda = torch.device("cuda")
    with pytest.raises(torch.OutOfMemoryError, match=r"1\.00 of 2\.00 GiB are free"):
        _dispatch.call(fail, cuda, "aoti_torch_aten_new_empty")
    with pytest.raises(RuntimeError, match="something else"):
        _dispatch.call(fail, cuda, "something else")


def test_the_doctor_explains_every_obstacle(
    gpu: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_trial", lambda device: doctor.Finding(device, "right"))
    operators, device = doctor._cuda_operators(1)
    assert "CUDA 13.1 for 8.0 9.0+PTX" in operators.value and device.level == "ok"
    gpu["capability"] = (7, 5)
    _, device = doctor._cuda_operators(1)
    assert device.level == "problem" and "7.5" in device.value and device.fix
    missing = extension.ExtensionStatus("missing", None, "no CUDA operators", "install nvcc")
    monkeypatch.setattr(cuda, "_status", missing)
    monkeypatch.delenv(extension.REQUIRE_VARIABLE, raising=False)
    (operators,) = doctor._cuda_operators(1)
    assert operators.level == "note" and operators.fix


def test_the_doctor_tells_memory_and_a_gpu_that_does_not_answer(
    gpu: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**29, 2**31))
    assert doctor._gpu(torch, 0).value == "cuda:0: a GPU, 1.5 of 2.0 GiB are free"

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("all devices are busy")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    silent = doctor._gpu(torch, 1)
    assert silent.level == "problem" and "cuda:1: all devices are busy" in silent.value
    (operators,) = doctor._cuda_operators(1)
    assert operators.name == "cuda operators"


@pytest.mark.parametrize("broken", [(torch.Tensor, "to"), (_dispatch, "call")])
def test_memory_that_runs_out_in_the_doctor_s_trial_is_no_defect_of_the_operators(
    monkeypatch: pytest.MonkeyPatch, broken: tuple[object, str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(*broken, fail)
    trial = doctor._trial()
    assert (trial.level, trial.value) == ("problem", "out of memory")
    assert "nvidia-smi" in trial.fix and "report" not in trial.fix


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit that knows two architectures and writes down how it was called."""
    path = tmp_path / "toolkit" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "  --version) echo 'Cuda compilation tools, release 12.4, V12.4.1';;\n"
        "  --list-gpu-arch) echo compute_80; echo compute_90;;\n"
        f'  *) echo "$@" >> {tmp_path}/calls;;\n'
        "esac\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    for name in (cuda_build.SWITCH, cuda_build.ARCHITECTURES):
        monkeypatch.delenv(name, raising=False)
    return path


def test_the_build_is_for_what_nvcc_knows_and_newer_gpus(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda_build.find_nvcc() == nvcc
    assert cuda_build.toolkit_version(nvcc) == "12.4"
    assert cuda_build.architectures(nvcc) == ["8.0", "9.0+PTX"]
    monkeypatch.setenv(cuda_build.ARCHITECTURES, "8.6; 8.9+PTX,9.0")
    assert cuda_build.architectures(nvcc) == ["8.6", "8.9+PTX", "9.0"]


@pytest.mark.parametrize("name", ["90", "9.0a", "12.0f", "sm_90", "9.0+SASS"])
def test_what_is_no_architecture_is_refused(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(cuda_build.ARCHITECTURES, f"8.0 {name}")
    with pytest.raises(ValueError, match=r'like "8\.0 9\.0\+PTX", got ' + re.escape(f'"{name}"')):
        cuda_build.architectures(nvcc)


@pytest.mark.parametrize(
    ("capability", "built"), [((9, 0), "9.0+PTX"), ((8, 6), "8.0+PTX"), ((12, 0), "9.0+PTX")]
)
def test_a_gpu_that_nvcc_does_not_know_gets_ptx_that_it_can_take(
    nvcc: Path, capability: tuple[int, int], built: str
) -> None:
    assert cuda_build.architecture_for(capability, nvcc) == built


def test_cuda_is_built_where_torch_has_it_unless_the_user_says_otherwise(
    nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_folder = tmp_path / "torch"
    (torch_folder / "lib").mkdir(parents=True)
    assert not cuda_build.is_wanted(torch_folder)
    monkeypatch.setenv(cuda_build.SWITCH, "1")
    assert cuda_build.is_wanted(torch_folder) and cuda_build.is_forced()
    monkeypatch.delenv(cuda_build.SWITCH)
    (torch_folder / "lib" / "libtorch_cuda.so").touch()
    assert cuda_build.is_wanted(torch_folder)
    monkeypatch.setenv(cuda_build.SWITCH, "0")
    assert not cuda_build.is_wanted(torch_folder)


def test_every_source_is_compiled_for_every_architecture(nvcc: Path, tmp_path: Path) -> None:
    build = cuda_build.CudaBuild(
        nvcc, Path("torch"), ROOT / "csrc", [Path("pybind11")], ["8.0", "9.0+PTX"], "the hash"
    )
    build.build(tmp_path / "out" / "_C_cuda.so", tmp_path / "scratch")
    *compiled, stub, linked = (tmp_path / "calls").read_text().splitlines()
    assert len(compiled) == 3
    for call in compiled:
        assert "arch=compute_80,code=[sm_80]" in call
        assert "arch=compute_90,code=[sm_90,compute_90]" in call
        assert "the hash" in call
        # Not the copy of pybind11 in PyTorch 2.11, an error in code for the stable ABI.
        assert "-isystem pybind11 -isystem torch/include" in call
    assert "-shared" in linked and "-cudart static" in linked and "-ltorch_cpu" in linked
    # A PyTorch that has no CUDA was built with; the library needs that of one that has.
    assert "-soname -Xlinker libtorch_cuda.so" in stub and "scratch/libtorch_cuda.so" in linked


def test_a_failing_nvcc_is_told_with_what_it_printed(nvcc: Path, tmp_path: Path) -> None:
    nvcc.write_text(
        nvcc.read_text(encoding="utf-8").replace("*) echo", "*) echo 'no such GPU'; exit 1; echo"),
        encoding="utf-8",
    )
    build = cuda_build.CudaBuild(nvcc, tmp_path, ROOT / "csrc", [], ["1.0"], "")
    with pytest.raises(RuntimeError, match="no such GPU"):
        build.build(tmp_path / "_C_cuda.so", tmp_path)


ROWS = [
    {
        "form": form,
        "size": "16, 64 -> 64, 48",
        "primitive": "all seven",
        "median_s": seconds,
        "gflops": 1.0,
        "best_peer": "grouped",
        "ratio_to_best_peer": 4e-4 / seconds,
        "share_of_limit": 1e-4 / seconds,
        "peak_bytes": peak,
    }
    for form, seconds, peak in (
        ("mkdext", 2e-4, 2**20),
        ("grouped", 4e-4, 2**22),
        ("mkdext, graph replay", 1e-4, None),
    )
]


def test_gpu_check_runs_tests_that_are_there() -> None:
    files = re.findall(r'"(tests/[^"]+)"', Path(gpu_check.__file__).read_text(encoding="utf-8"))
    assert files and all((ROOT / file).is_file() for file in files)


def test_gpu_check_reports_what_its_parts_wrote_and_nothing_older(
    nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "tf32.json").write_text("of an earlier run")
    writing = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(os.environ['ROWS'])"
    parts = [
        gpu_check.Part(
            "float32",
            [sys.executable, "-c", writing, str(out / "float32.json")],
            60,
            {"ROWS": json.dumps({"results": ROWS})},
        ),
        gpu_check.Part("tf32", ["false"], 60),
        gpu_check.Part("build", ["sh", "-c", "echo $MKDEXT_CUDA_ARCHITECTURES"], 60),
    ]
    monkeypatch.setattr(gpu_check, "parts", lambda _: parts)
    monkeypatch.setattr(gpu_check, "describe_machine", lambda: {"capability": "12.0"})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out)])
    with pytest.raises(SystemExit):
        gpu_check.main()
    summary = json.loads((out / "summary.json").read_text())
    assert [part["result"] for part in summary["parts"]] == ["passed", "failed", "passed"]
    assert summary["parts"][2]["note"] == "9.0+PTX"
    ours, replay = summary["convolutions"]
    assert (ours["ratio"], ours["share_of_limit"], ours["peer_peak_bytes"]) == (2, 0.5, 2**22)
    assert (replay["form"], replay["share_of_limit"]) == ("mkdext, graph replay", 1)
    assert "50%" in (out / "summary.txt").read_text()


def test_gpu_check_tells_at_once_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_check.NEEDED, "a-package", "a_module_that_nobody_has")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    with pytest.raises(SystemExit, match=r"a-package must be installed: `.*pip install a-package`"):
        gpu_check.main()


def test_gpu_check_tells_at_once_of_setuptools_that_cannot_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_check, "NEEDED", {"setuptools": "setuptools"})
    for version, wanted in (("68.1.2", ["'setuptools>=77'"]), ("81.0.0", [])):
        monkeypatch.setattr(importlib.metadata, "version", lambda _, found=version: found)
        assert gpu_check.to_install() == wanted
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'requires = ["setuptools>={gpu_check.SETUPTOOLS}"' in pyproject


def test_memcheck_counts_no_failed_calls_of_pytorch(nvcc: Path, tmp_path: Path) -> None:
    (memcheck,) = (part for part in gpu_check.parts(tmp_path) if part.name == "memcheck")
    assert "--tool memcheck --report-api-errors no" in " ".join(memcheck.command)


def test_both_sides_name_the_same_variables() -> None:
    assert cuda_build.ARCHITECTURES == cuda.ARCHITECTURES_VARIABLE
