"""Where a student comes from, to be kept with its weights."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from mkdext.models.user_code import absolute
from mkdext.training.options import ResolvedTraining, SharedOptions, usual_training
from mkdext.training.options_file import as_flags
from mkdext.training.photographs import BUILTIN_NAME
from mkdext.training.run_directory import HISTORY, flat


def origin(options: ResolvedTraining, steps: int, history: Sequence[Any] = ()) -> dict[str, Any]:
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
    teacher = options.teacher_weights or options.teacher or "builtin"
    if options.privileged:
        teacher = "trained on high resolution in the same run"
    return {
        "command": command("train", options.given(), usual_training(options.train_dir)),
        "student": absolute(options.student),
        "scale": options.scale,
        "method": options.method,
        "teacher": None if options.method == "vanilla" else str(teacher),
        "data": [str(folder) for folder in options.train_dir] or [BUILTIN_NAME],
        "steps": steps,
        **({HISTORY: [*history]} if history else {}),
    }


def command(name: str, options: SharedOptions, usual: SharedOptions) -> str:
    """The command that trains with options, but for `out`.

    Args:
        name: Of the command, below `mkdext`.
        options: What it is to be given.
        usual: What holds where it is given nothing.
    """
    values, base = (dict(flat(dataclasses.asdict(given))) for given in (options, usual))
    changed = {n: value for n, value in values.items() if value != base[n] and n != "out"}
    return shlex.join(["python", "-m", f"mkdext.{name}", *as_flags(changed, options)])
