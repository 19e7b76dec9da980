"""The folder of a training: configuration, metrics, checkpoints, samples, summary."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from mkdext._files import as_json, atomic_write, check_writable, locked, write_text
from mkdext.models import save_model


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network in training: its weights, and all that an exact resume needs."""

    weights: Path
    state: Path

    def save(self, state: Mapping[str, Any], network: nn.Module, origin: Mapping[str, Any]) -> None:
        """Replace both: first the weights, then the state that a resume starts from."""
        save_model(self.weights, network, origin)
        # By way of memory, because torch.save does not tell what the system said of a full disk.
        serialized = io.BytesIO()
        torch.save(dict(state), serialized)
        with atomic_write(self.state) as path:
            path.write_bytes(serialized.getbuffer())

    def load(self) -> dict[str, Any]:
        """Read the state that `save` wrote.

        Raises:
            ValueError: The file is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"checkpoint {self.state} is damaged ({reason}): delete it to begin again"
            ) from None
        return state


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths and atomic writes below one folder.

    A run holds `config.yaml`, `metrics.jsonl`, `checkpoints/` (`student.safetensors`: the
    weights; `state.pt`: all that an exact resume needs; `privileged_teacher.safetensors` and
    `privileged_teacher.pt`: the same of a teacher that is trained in the run), `samples/`,
    `summary.json` and `summary.png`.
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

    @property
    def checkpoint(self) -> Checkpoint:
        """The student and its training."""
        return Checkpoint(self.student, self.state)

    @property
    def privileged_checkpoint(self) -> Checkpoint:
        """The teacher of a method that trains its own, and its training."""
        folder = self.root / "checkpoints"
        return Checkpoint(
            folder / "privileged_teacher.safetensors", folder / "privileged_teacher.pt"
        )

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

    def check(self, config: Mapping[str, Any]) -> None:
        """Check that a training can begin or go on here, without writing anything.

        Args:
            config: The resolved options; a run can only go on with the ones it began with.

        Raises:
            ValueError: The folder cannot be written, holds something that is not a run, or belongs
                to a run of other options, which are named.
        """
        check_writable(self.root)
        if not self.config.exists():
            if any(path.exists() for path in (self.state, self.metrics, self.summary)):
                raise ValueError(
                    f"--out {self.root} holds a run without {self.config.name}; give another --out"
                )
            return
        try:
            there = yaml.safe_load(self.config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            there = None
        if not isinstance(there, dict):
            raise ValueError(
                f"--out {self.root}: {self.config.name} is damaged; give another --out"
            )
        before, now = dict(_flat(there)), dict(_flat(config))
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            changes = "; ".join(
                f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names
            )
            raise ValueError(
                f"--out {self.root} holds a run of other options ({changes}): "
                "give another --out, or the same options to go on"
            )

    @contextlib.contextmanager
    def opened(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder and keep other trainings out of it.

        Raises:
            ValueError: As `check`, or another training is at work here.
        """
        self.check(config)
        with locked(self.root, "--out", "training"):
            self.state.parent.mkdir(exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            if not self.config.exists():
                write_text(self.config, yaml.safe_dump(dict(config), sort_keys=False))
            yield

    def keep_metrics_until(self, step: int, of: str = "step") -> None:
        """Drop the metrics after `step`, which a resumed run will write again.

        Args:
            step: The last one whose records are kept.
            of: What counts the steps; records without it are kept.
        """
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line).get(of, 0) <= step:
                    kept.append(line + "\n")
        write_text(self.metrics, "".join(kept))

    def has_validation(self, step: int) -> bool:
        """Whether the metrics hold the validation of a step."""
        if not self.metrics.exists():
            return False
        records = map(json.loads, self.metrics.read_text().splitlines())
        return any(r["step"] == step and "validation" in r for r in records)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record, which must have a `step`."""
        with self.metrics.open("a") as file:
            file.write(as_json(record) + "\n")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those of groups as `group.name`."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
