"""Where a student comes from, to be kept with its weights."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from mkdext._system.plugins import absolute
from mkdext.training.config_files import changed_flags
from mkdext.training.options import BUILTIN_DEMO, TrainOptions
from mkdext.training.photographs import BUILTIN_NAME
from mkdext.training.run_directory import HISTORY


def origin(options: TrainOptions, steps: int, history: Sequence[Any] = ()) -> dict[str, Any]:
    """What made a student; the same wherever the run directory is.

    Args:
        options: Those of its last step.
        steps: How many it took.
        history: What the options were before, as `RunDirectory.history` has it.

    Example:
        >>> from pathlib import Path
        >>> origin(TrainOptions(train_dir=(Path("DIV2K"),), lr=2e-4), steps=500)["command"]
        'python -m mkdext.train --lr 0.0002 --train-dir DIV2K'
    """
    base = TrainOptions() if options.train_dir else BUILTIN_DEMO
    teacher = options.teacher_weights or options.teacher or "builtin"
    if options.privileged:
        teacher = "trained on high resolution in the same run"
    return {
        "command": shlex.join(["python", "-m", "mkdext.train", *changed_flags(options, base)]),
        "student": absolute(options.student),
        **({"student_options": [*options.student_options]} if options.student_options else {}),
        "scale": options.scale,
        "method": options.method,
        "teacher": None if options.method == "vanilla" else str(teacher),
        "data": [str(folder) for folder in options.train_dir] or [BUILTIN_NAME],
        "steps": steps,
        **({HISTORY: [*history]} if history else {}),
    }
