"""Trainings that end at any write, as by a kill, and go on: no number is missing or there twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mkdext import datafree, train
from mkdext.training.run import directory
from mkdext.training.run.directory import Checkpoint, RunDirectory

SIZES = [
    *("--iterations", "6", "--batch-size", "2", "--patch-size", "8", "--log-every", "1"),
    *("--checkpoint-every", "2", "--validate-every", "3"),
]


class Killed(BaseException):
    """Nothing that comes after it is done."""


def half_a_line(kill_at: int) -> tuple[object, str, Callable]:
    """A kill in the middle of a line of metrics."""
    lines = 0

    def add(self: RunDirectory, record: dict) -> None:
        nonlocal lines
        lines += 1
        text = directory.as_json(record) + "\n"
        with self.metrics.open("a") as file:
            file.write(text[: len(text) // 2] if lines == kill_at else text)
        if lines == kill_at:
            raise Killed

    return RunDirectory, "add_metrics", add


def before_a_checkpoint(kill_at: int) -> tuple[object, str, Callable]:
    """A kill when the metrics of its step are written."""
    saves, save = 0, Checkpoint.save

    def killed(self: Checkpoint, *given: object) -> None:
        nonlocal saves
        saves += 1
        if saves == kill_at:
            raise Killed
        save(self, *given)

    return Checkpoint, "save", killed


def between_weights_and_state(kill_at: int) -> tuple[object, str, Callable]:
    """A kill when the weights are newer than the state."""
    writes, write = 0, directory.write_state

    def killed(*given: object) -> None:
        nonlocal writes
        writes += 1
        if writes == kill_at:
            raise Killed
        write(*given)

    return directory, "write_state", killed


def after_a_checkpoint(kill_at: int) -> tuple[object, str, Callable]:
    """A kill before what follows a checkpoint."""
    saves, save = 0, Checkpoint.save

    def killed(self: Checkpoint, *given: object) -> None:
        nonlocal saves
        save(self, *given)
        saves += 1
        if saves == kill_at:
            raise Killed

    return Checkpoint, "save", killed


Command = Callable[[Path], int]


@pytest.fixture(scope="module", params=["train", "datafree"])
def command(request, photographs) -> Command:
    folder = str(photographs)
    given = {
        "train": [*("--train-dir", folder, "--val-dir", folder, "--method", "vanilla")],
        "datafree": [*("--val-dir", folder, "--source", "procedural", "--stages", "2")],
    }[request.param]
    main = {"train": train.main, "datafree": datafree.main}[request.param]
    return lambda out: main([*given, *SIZES, "--out", str(out)])


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    assert command(out) == 0
    return out


def content(out: Path) -> tuple[bytes, list[dict]]:
    costs = {"patches_per_second", "peak_bytes"}
    logged = [{n: v for n, v in r.items() if n not in costs} for r in RunDirectory(out).records()]
    return (out / "checkpoints" / "student.safetensors").read_bytes(), logged


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "at"),
    [
        (half_a_line, 1),
        (half_a_line, 2),
        (half_a_line, 4),
        (half_a_line, 8),
        (before_a_checkpoint, 1),
        (before_a_checkpoint, 2),
        (between_weights_and_state, 2),
        (after_a_checkpoint, 1),
        (after_a_checkpoint, 3),
    ],
)
def test_the_same_command_goes_on_to_the_same_numbers(
    kill, at, command, reference, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(*kill(at))
        with pytest.raises(Killed):
            command(out)
    assert command(out) == 0
    assert content(out) == content(reference)
