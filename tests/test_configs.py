"""Every file of configs/ is accepted by the training command, and says what the paper has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import nn

from mkdext.models import create_model, resolve_teacher
from mkdext.train import main, parse

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SMALL = sorted(path.stem for path in CONFIGS.glob("small-*.yaml"))
PUBLISHED = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - set(SMALL))
DOCUMENTED = re.findall(
    r"python -m mkdext\.train (--config [^\n`]*)", (ROOT / "docs" / "paper_settings.md").read_text()
)

# Heavy teachers, each with a light network of its family to stand in for it.
STAND_INS = {
    "rcan-t": "rcan-a",
    "edsr-t": "edsr-s",
    "rdn-t": "rdn-s",
    "san-t": "san-s",
    "han-t": "han-s",
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the folders that the files name, and teachers that need no weights."""
    for name in ("DIV2K/DIV2K_train_HR", "Set5", "Set14"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.zeros((192, 192, 3), np.uint8)).save(tmp_path / name / "black.png")

    def stand_in(
        teacher: str | None, weights: Path | None, scale: int, options: Mapping[str, Any]
    ) -> nn.Module:
        if teacher is None:
            return resolve_teacher(teacher, weights, scale, options)
        assert weights is not None
        return create_model(STAND_INS[teacher], scale).eval().requires_grad_(False)

    monkeypatch.setattr("mkdext.training.setup.resolve_teacher", stand_in)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PUBLISHED + SMALL)
def test_a_setting_is_accepted(name: str, elsewhere: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--config", str(CONFIGS / f"{name}.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"student: {name.removeprefix('small-')}" in shown
    assert f"would write to runs/{name}" in shown


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_setting_is_that_of_the_paper(name: str) -> None:
    options = parse(["--config", str(CONFIGS / f"{name}.yaml")]).options()
    assert (options.student, options.teacher) == (name, f"{name.split('-')[0]}-t")
    assert options.teacher_weights is not None and not options.teacher_weights.is_absolute()
    assert (options.method, options.scale, options.mkd.grid) == ("mkd", 4, 8)
    assert (options.batch_size, options.patch_size) == (16, 48)
    assert (options.lr, options.lr_min, options.warmup) == (1e-4, 5e-6, 0)
    assert options.train_dir == (Path("DIV2K/DIV2K_train_HR"),)
    assert options.val_dir == (Path("Set5"), Path("Set14"))


@pytest.mark.parametrize("name", PUBLISHED + SMALL)
def test_a_file_says_at_its_top_what_it_is_and_the_table_lists_it(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    weights = yaml.safe_load(text).get("teacher_weights")
    if weights is not None:
        comment = text[: text.index("\nstudent:")]
        assert weights in comment or "--out runs/rdn-t" in comment
    assert f"`{name}.yaml`" in (ROOT / "docs" / "paper_settings.md").read_text()


def test_all_students_of_the_paper_have_a_file() -> None:
    students = ["edsr-s", "han-s", "rcan-a", "rcan-b", "rcan-c", "rdn-s", "san-s"]
    assert students == PUBLISHED


@pytest.mark.parametrize("command", DOCUMENTED)
def test_a_documented_command_is_accepted(command: str, elsewhere: Path) -> None:
    (elsewhere / "configs").symlink_to(CONFIGS)
    if "--student rdn-t" in command:
        command += " --student rdn-s"  # The same with less to compute.
    assert main([*command.split(), "--dry-run"]) == 0


def test_the_documented_commands_are_the_rows_of_the_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    commands = [parse(command.split()) for command in DOCUMENTED]
    folders = [command.out for command in commands]
    assert len(set(folders)) == len(folders)
    assert {"mkd-case1", "mkd-case2", "mkd-case3"} <= {command.method for command in commands}
    assert {2, 4, 8, 12} == {command.mkd.grid for command in commands if command.train_dir}
