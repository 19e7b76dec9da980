"""Where a student comes from, to be kept with its weights."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from mkdext._system.plugins import absolute
from mkdext.data import BUILTIN_NAME
from mkdext.training.config_files import changed_flags
from mkdext.training.datafree.options import DataFreeOptions, with_usual_rates
from mkdext.training.options import BUILTIN_DEMO, TrainOptions
from mkdext.training.run.directory import HISTORY


def origin(
    options: TrainOptions | DataFreeOptions, steps: int, history: Sequence[Any] = ()
) -> dict[str, Any]:
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
    made_by = {"steps": steps, **({HISTORY: [*history]} if history else {})}
    teacher: Any = options.teacher_weights or options.teacher or "builtin"
    if isinstance(options, DataFreeOptions):
        usual = with_usual_rates(DataFreeOptions(), options.optimizer)
        flags = changed_flags(options, usual.resolved())
        return {
            "command": shlex.join(["python", "-m", "mkdext.datafree", *flags]),
            "method": options.method,
            "teacher": str(teacher),
            "data": [f"made images ({options.source})"],
            **made_by,
        }
    base = TrainOptions() if options.train_dir else BUILTIN_DEMO
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
        **made_by,
    }
