from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mkdext import doctor
from mkdext._system import extension
from mkdext.ops import dynamic_conv2d_algorithms

ROOT = Path(__file__).parent.parent


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def pretend(monkeypatch: pytest.MonkeyPatch, status: extension.ExtensionStatus) -> None:
    monkeypatch.setattr(extension, "_status", status)


@pytest.mark.slow
def test_json_report_from_another_directory(library: Path, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "mkdext.doctor", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(answer.stdout)
    assert report["usable"] is True
    rows = {row["name"]: row for row in report["findings"]}
    assert str(library) in rows["operators"]["value"]
    assert "torch 2.10" in rows["built with"]["value"]
    assert rows["trial run"] == {"name": "trial run", "value": "right", "level": "ok", "fix": ""}
    assert torch.__version__ in rows["torch"]["value"]
    assert {"mkdext", "python", "packages", "compiler", "threads", "cuda"} <= rows.keys()


def test_table_shows_every_fix_and_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        doctor.Finding("first", "there"),
        doctor.Finding("second", "gone", "problem", "fetch it"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: rows)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert re.search(r"ok\s+first\s+there", output)
    assert re.search(r"problem\s+second\s+gone\s+fix: fetch it", output)
    assert "mkdext is not usable" in output


def test_report_without_rich_is_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.Finding("rich", "gone", "problem", "get it")]
    )
    monkeypatch.setattr(doctor, "_is_installed", lambda module: module != "rich")
    assert doctor.main([]) == 1
    assert "problem  rich: gone  -> get it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (ModuleNotFoundError("No module named 'torch'"), "not installed"),
        (OSError("libtorch.so: cannot open\nmore"), "does not import: libtorch.so: cannot open"),
        (
            SimpleNamespace(__version__="2.9.1", version=SimpleNamespace(cuda="12.8")),
            "2.9.1 (CUDA 12.8 build), older than 2.10",
        ),
    ],
)
def test_unusable_torch_is_a_problem_with_a_fix(found: object, value: str) -> None:
    assert doctor._torch(found) == doctor.Finding(
        "torch", value, "problem", "pip install 'torch>=2.10'"
    )


def test_report_goes_on_where_torch_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_import_torch", lambda: OSError("broken"))
    rows = findings()
    assert rows["torch"].level == "problem"
    assert "compiler" in rows and "operators" not in rows


def test_missing_package_is_a_problem_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.REQUIRED_PACKAGES, "pillow", "no_such_module")
    assert findings()["packages"] == doctor.Finding(
        "packages", "missing: pillow", "problem", "pip install pillow"
    )


def test_packages_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"\ndependencies = \[(.*?)\n\]", text, re.DOTALL)
    assert listed is not None
    names = set(re.findall(r'"([\w-]+)', listed[1]))
    assert names == {"torch", *doctor.REQUIRED_PACKAGES}


def test_optional_packages_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r"\n(?:export|openvino|ncnn) = \[(.*?)\]", text, re.DOTALL)
    assert len(listed) == 3
    names = set(re.findall(r'"([\w-]+)', "".join(listed)))
    assert names == {name for name, (_, use) in doctor.OPTIONAL_PACKAGES.items() if "export" in use}


def test_missing_compiler_is_a_note_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    finding = doctor._compiler()
    assert (finding.level, finding.value) == ("note", "none of g++, clang++, c++ found")
    assert "apt install g++" in finding.fix


@pytest.mark.parametrize(
    ("state", "required", "level"),
    [
        ("missing", "0", "note"),
        ("missing", "1", "problem"),
        ("stale", "0", "problem"),
        ("broken", "0", "problem"),
    ],
)
def test_unloaded_operators(
    monkeypatch: pytest.MonkeyPatch, state: str, required: str, level: str
) -> None:
    monkeypatch.setenv("MKDEXT_REQUIRE_EXT", required)
    pretend(monkeypatch, extension.ExtensionStatus(state, None, "the reason", "the fix"))  # type: ignore[arg-type]
    assert findings()["operators"] == doctor.Finding("operators", "the reason", level, "the fix")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_numbers_are_a_problem(
    library: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    right, algorithms = torch.ops.mkdext.dynamic_conv2d, []

    def wrong(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        algorithms.append(dynamic_conv2d_algorithms(input, weight)["forward"])
        return right(input, weight) + (input.dtype == dtype)

    monkeypatch.setattr(torch.ops.mkdext, "dynamic_conv2d", wrong)
    finding = findings()["trial run"]
    assert finding.level == "problem" and finding.value.endswith(str(dtype))
    # Both kinds of kernels are tried.
    tried = ["direct", "winograd"]
    assert algorithms == (tried if dtype == torch.float32 else tried[:1])


@pytest.mark.slow
def test_unknown_instruction_set_is_a_problem_with_a_fix(library: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "mkdext.doctor", "--json"],
        cwd=ROOT,
        env={**os.environ, "MKDEXT_INSTRUCTION_SET": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    rows = {row["name"]: row for row in json.loads(answer.stdout)["findings"]}
    assert rows["instruction set"]["level"] == "problem"
    assert "'mmx'" in rows["instruction set"]["value"]
    assert rows["instruction set"]["fix"] == "unset MKDEXT_INSTRUCTION_SET"


def test_a_terminal_that_cannot_show_a_name_shows_a_replacement(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    monkeypatch.setenv("CXX", "夏[red]++")
    assert doctor.main([]) in (0, 1)
    assert b"none of ?[red]++ found" in shown.getvalue()
