"""Where a student comes from, to be kept with its weights."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from mkdext._system.plugins import absolute
from mkdext.data import BUILTIN_NAME
from mkdext.training.data_free_options import Resolved, ResolvedDataFree, usual_data_free
from mkdext.training.options import SharedOptions, usual_training
from mkdext.training.options_file import as_flags
from mkdext.training.run.directory import HISTORY, flat


def origin(options: Resolved, steps: int, history: Sequence[Any] = ()) -> dict[str, Any]:
    """What made a student; the same wherever the run directory is.

    Args:
        options: Those of its last step.
        steps: How many it took.
        history: What the options were before, as `RunDirectory.history` has it.

    Example:
        >>> from pathlib import Path
        >>> from mkdext.training import TrainOptions
        >>> options = TrainOptions(train_dir=(Path("DIV2K"),), lr=2e-4, method="vanilla")
        >>> origin(options.resolved(), steps=500)["command"]
        'python -m mkdext.train --method vanilla --lr 0.0002 --train-dir DIV2K'
    """
    made_by = {"steps": steps, **({HISTORY: [*history]} if history else {})}
    teacher: Any = options.teacher_weights or options.teacher or "builtin"
    if isinstance(options, ResolvedDataFree):
        return {
            "command": _command("datafree", options.given(), usual_data_free(options.optimizer)),
            "method": options.method,
            "teacher": str(teacher),
            "data": [f"made images ({options.source})"],
            **made_by,
        }
    if options.privileged:
        teacher = "trained on high resolution in the same run"
    return {
        "command": _command("train", options.given(), usual_training(options.train_dir)),
        "student": absolute(options.student),
        **({"student_options": [*options.student_options]} if options.student_options else {}),
        "scale": options.scale,
        "method": options.method,
        "teacher": None if options.method == "vanilla" else str(teacher),
        "data": [str(folder) for folder in options.train_dir] or [BUILTIN_NAME],
        **made_by,
    }


def _command(name: str, options: SharedOptions, usual: SharedOptions) -> str:
    """What trains with options, but for `out`, where `usual` holds if nothing is given."""
    values, base = (dict(flat(dataclasses.asdict(each))) for each in (options, usual))
    changed = {n: value for n, value in values.items() if value != base[n] and n != "out"}
    return shlex.join(["python", "-m", f"mkdext.{name}", *as_flags(changed, options)])
