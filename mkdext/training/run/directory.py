"""The folder of a training: configuration, metrics, checkpoints, samples, summary."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from mkdext._system.errors import WorkFailed, WorkStopped
from mkdext._system.files import as_json, locked, write_text
from mkdext._system.reading import entry, parse_json, read_bytes, read_json, read_yaml
from mkdext._system.saved_state import SavedState, write_state
from mkdext.models import save_model

HISTORY = "changes"
"""Name in `config.yaml` of what became of the options since the run began: a list of mappings,
each of the `step` from which it holds and of `[before, after]` by option."""

_MOST_METRICS = 1 << 30  # bytes

Changes = dict[str, tuple[Any, Any]]
"""Values of options before and after by their names, those of groups as `group.name`."""


class TrainingStopped(WorkStopped):
    """The training was asked to stop; its checkpoint is written."""

    def __init__(self, signal_number: int, after: str, out: Path) -> None:
        """Tell what stopped it and where."""
        message = f"stopped after {after}; the same command continues from {out}"
        super().__init__(signal_number, message)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network in training: its weights, and all that an exact resume needs."""

    weights: Path
    state: Path

    def save(self, state: Mapping[str, Any], network: nn.Module, origin: Mapping[str, Any]) -> None:
        """Replace both: first the weights, then the state that a resume starts from."""
        save_model(self.weights, network, origin)
        write_state(self.state, state)

    def load(self) -> SavedState:
        """Read the state that `save` wrote.

        Raises:
            ValueError: The file is damaged.
        """
        return SavedState.read(
            self.state,
            f"delete it to start again (until then {self.weights.name} beside it holds the "
            "weights)",
        )


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths and atomic writes below one folder.

    A run holds `config.yaml`, `metrics.jsonl`, `checkpoints/` (`student.safetensors`: the
    weights; `state.pt`: all that an exact resume needs; `privileged_teacher.safetensors` and
    `privileged_teacher.pt`: the same of a teacher that is trained in the run), `samples/`,
    `summary.json`, `summary.png` and `report.html`. `config.yaml` keeps the history of options that
    were changed meanwhile.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved options."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def state(self) -> Path:
        """Everything for an exact resume."""
        return self.root / "checkpoints" / "state.pt"

    @property
    def student(self) -> Path:
        """The student's weights."""
        return self.root / "checkpoints" / "student.safetensors"

    def checkpoint(self, network: str = "student") -> Checkpoint:
        """A network that is trained in the run, by its name, and its training."""
        folder = self.root / "checkpoints"
        state = self.state if network == "student" else folder / f"{network}.pt"
        return Checkpoint(folder / f"{network}.safetensors", state)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Those of all networks whose training has begun."""
        states = sorted(self.state.parent.glob("*.pt"))
        return [self.checkpoint("student" if s == self.state else s.stem) for s in states]

    def events(self, network: str) -> Path:
        """Folder for TensorBoard of the steps of a network."""
        # Each its own: those of a network are purged when it begins or goes on.
        folder = self.root / "tensorboard"
        return folder if network == "student" else folder / network

    @property
    def samples(self) -> Path:
        """Folder of pictures."""
        return self.root / "samples"

    @property
    def summary(self) -> Path:
        """The numbers at the end."""
        return self.root / "summary.json"

    @property
    def picture(self) -> Path:
        """The learning curves at the end."""
        return self.root / "summary.png"

    @property
    def page(self) -> Path:
        """Pictures, tables and curves at the end, for a browser."""
        return self.root / "report.html"

    def options(self) -> dict[str, Any]:
        """The options in `config.yaml`, as plain values.

        Raises:
            ValueError: The file is damaged.
        """
        return self._begun()[0]

    def _begun(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The options of the run, and their history."""
        try:
            there = read_yaml(self.config, "it")
            if not isinstance(there, dict):
                raise ValueError(f"it holds no names but a {type(there).__name__}")
            history = there.pop(HISTORY, [])
            if not isinstance(history, list) or not all(isinstance(c, dict) for c in history):
                raise ValueError(f"{HISTORY!r} must be a list of names and values")
        except ValueError as error:
            raise ValueError(
                f"`out` {self.root}: {self.config.name} is damaged ({error}); give another `out`"
            ) from None
        return there, history

    @property
    def history(self) -> list[dict[str, Any]]:
        """What became of the options since the run began, as `HISTORY` has it."""
        return self._begun()[1] if self.config.exists() else []

    def change(self, config: Mapping[str, Any], changes: Changes, step: int) -> None:
        """Go on with other options from a step on.

        What a finished training has left is kept under names that end with the step.
        """
        if self.summary.exists():
            for path in (self.student, self.picture, self.page):
                if path.exists():
                    shutil.copyfile(path, _of_step(path, step))
            self.summary.replace(_of_step(self.summary, step))
        record = {"step": step} | {name: [*values] for name, values in changes.items()}
        options = {**config, HISTORY: [*self.history, record]}
        write_text(self.config, yaml.safe_dump(options, sort_keys=False))

    def read_summary(self) -> dict[str, Any] | None:
        """The numbers at the end; none where the training is not at its end.

        A file that is damaged counts as none: the same training writes it again.
        """
        if not self.summary.exists():
            return None
        try:
            summary: dict[str, Any] = read_json(self.summary, "it")
            entry(summary, "iterations", int, "it")
            entry(summary, "validation", dict, "it")
        except ValueError:
            return None
        return summary

    @contextlib.contextmanager
    def opened(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder and keep other trainings out of it.

        Raises:
            ValueError: The folder or a file in it cannot be written, or another training is at work
                here.
        """
        with locked(self.root, "`out`", "training"):
            for folder in (self.state.parent, self.samples):
                folder.mkdir(exist_ok=True)
            for path in (self.state.parent, self.samples, self.metrics, self.config):
                if path.exists() and not os.access(path, os.W_OK):
                    raise ValueError(f"`out` {self.root}: {path.name} cannot be written")
            if not self.config.exists():
                write_text(self.config, yaml.safe_dump(dict(config), sort_keys=False))
            yield

    def records(self) -> list[dict[str, Any]]:
        """The metrics so far; a last line that was not finished is left out.

        Raises:
            ValueError: A line is damaged.
        """
        if not self.metrics.exists():
            return []
        *lines, last = read_bytes(self.metrics, str(self.metrics), _MOST_METRICS).split(b"\n")
        # After the last line break is nothing, or what a kill has cut.
        records = [_record(line, f"{self.metrics}, line {n}") for n, line in enumerate(lines, 1)]
        with contextlib.suppress(ValueError):
            records.append(_record(last, "it"))
        return records

    def keep_metrics_until(self, step: int, of: str = "step") -> None:
        """Drop the metrics after `step`, which a resumed run will write again.

        Args:
            step: The last one whose records are kept.
            of: What counts the steps; records without it are kept.

        Raises:
            ValueError: A line is damaged.
        """
        if self.metrics.exists():
            kept = [record for record in self.records() if (record.get(of) or 0) <= step]
            write_text(self.metrics, "".join(as_json(record) + "\n" for record in kept))

    def has_validation(self, step: int) -> bool:
        """Whether the metrics hold the validation of a step."""
        return any(r["step"] == step and "validation" in r for r in self.records())

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record, which must have a `step`.

        Raises:
            WorkFailed: The folder is gone.
            OSError: The file cannot be written; it is named.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(as_json(record) + "\n")
        except FileNotFoundError:
            raise WorkFailed(f"{self.root} is gone; it was deleted or moved") from None
        except OSError as error:
            error.filename = str(self.metrics)
            raise

    def sync_metrics(self) -> None:
        """Bring the metrics to the disk, before a checkpoint that counts on them is."""
        if self.metrics.exists():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())


class WatchedRun(RunDirectory):
    """The folder of a run that another process writes; here nothing is written."""

    @contextlib.contextmanager
    def opened(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Leave the folder to the other process."""
        yield

    def checkpoint(self, network: str = "student") -> Checkpoint:
        """A network that is trained in the run, which is read alone."""
        return WatchedCheckpoint(**vars(super().checkpoint(network)))

    def change(self, config: Mapping[str, Any], changes: Changes, step: int) -> None:
        """Leave that to the other process."""

    def keep_metrics_until(self, step: int, of: str = "step") -> None:
        """Leave that to the other process."""

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Leave that to the other process."""

    def sync_metrics(self) -> None:
        """Leave that to the other process."""


class WatchedCheckpoint(Checkpoint):
    """A checkpoint that another process writes."""

    def save(self, state: Mapping[str, Any], network: nn.Module, origin: Mapping[str, Any]) -> None:
        """Leave that to the other process."""


def changes_in_words(changes: Changes) -> str:
    """Changes of options.

    Example:
        >>> changes_in_words({"lr": (0.1, 0.2)})
        'lr was 0.1, now 0.2'
    """
    return "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changes.items())


def _of_step(path: Path, step: int) -> Path:
    return path.with_stem(f"{path.stem}_step_{step:07d}")


def _record(line: bytes, what: str) -> dict[str, Any]:
    """A line of metrics, in which every value is a number, or none, or such by name."""
    try:
        record: dict[str, Any] = parse_json(line, "it")
        entry(record, "step", int, "it")
        _require_numbers(record)
    except ValueError as error:
        raise ValueError(f"{what} is damaged ({error}): delete this line to continue") from None
    return record


def _require_numbers(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _require_numbers(value)
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            continue  # Names of photographs that are met exactly.
        elif isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{name!r} must be a number, got {value!r}")


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those of groups as `group.name`."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
