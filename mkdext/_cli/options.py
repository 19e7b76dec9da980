"""The options of a training command: flags over a file over defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from mkdext._cli.flags import parse_draft
from mkdext._system.drafts import made
from mkdext.training.options import SharedOptions, TrainOptions, usual_training
from mkdext.training.options_file import OptionsFile
from mkdext.training.run.directory import RunDirectory, flat

_Command = TypeVar("_Command", bound=SharedOptions)


@dataclasses.dataclass(frozen=True)
class FirstFlags:
    """What must be known of a command line before defaults are; None: not given."""

    config: Path | None = None
    resume: bool = False
    out: Path | None = None
    train_dir: tuple[Path, ...] | None = None
    train_low_dir: tuple[Path, ...] | None = None
    recipe: str | None = None
    method: str | None = None
    optimizer: str | None = None
    student: str | None = None


def first_flags(arguments: Sequence[str]) -> FirstFlags:
    """Those of a command line.

    Raises:
        SystemExit: One is malformed.
        ValueError: --train-dir or --train-low-dir names no folder.
    """
    draft, _ = parse_draft(FirstFlags, arguments, return_unknown_args=True, add_help=False)
    first: FirstFlags = made(draft)
    for name in ("train_dir", "train_low_dir"):
        if getattr(first, name) == ():
            raise ValueError(f"`{name}` must name at least one folder")
    return first


def file_of(first: FirstFlags, out: Path) -> OptionsFile | None:
    """The file that --config or --resume means, if one of them is given.

    Args:
        first: The flags.
        out: The run that --resume means where --out names no other.

    Raises:
        ValueError: The file is not usable, or there is no run to resume.
    """
    if not first.resume:
        return config_file(first.config) if first.config else None
    if first.config is not None:
        raise ValueError("--resume takes the options of the run; leave --config out")
    run = RunDirectory(first.out or out)
    if not run.config.exists():
        raise ValueError(f"--resume: there is no run in --out {run.root}")
    file = OptionsFile.read(run.config)
    return dataclasses.replace(file, values={**file.values, "out": run.root})


def config_file(path: Path) -> OptionsFile:
    """The file that --config names.

    Raises:
        ValueError: It is not usable.
    """
    return OptionsFile.read(path, f"--config {path}")


def said_of(name: str, first: FirstFlags, file: OptionsFile | None) -> Any:
    """What the flags say of an option, or else the file; None: nothing."""
    flag = getattr(first, name)
    if flag is not None or file is None:
        return flag
    value = file.values.get(name)
    # What else stands there is refused later, with its line.
    return value if isinstance(value, str) or name.endswith("_dir") else None


def usual_of(first: FirstFlags, file: OptionsFile | None, names: Sequence[str]) -> TrainOptions:
    """The options of a training on photographs that hold where flags and file say nothing.

    Args:
        first: The flags.
        file: What --config or --resume means; none: nothing.
        names: Of `usual_training`'s options, those that are looked at.

    Raises:
        ValueError: There is no such recipe.
    """
    folders = said_of("train_dir", first, file) or said_of("train_low_dir", first, file) or ()
    return usual_training(folders, **{name: said_of(name, first, file) for name in names})


def following(
    first: FirstFlags, file: OptionsFile | None, names: Sequence[str]
) -> OptionsFile | None:
    """A file without what its recipe, method or optimizer decided where flags name another.

    The `config.yaml` of a run holds all options, given or not: the learning rate of its optimizer
    shall not hold for another one. What differs from what they decide was given, and stays.

    Args:
        first: The flags.
        file: The file.
        names: As for `usual_of`.

    Raises:
        ValueError: There is no such recipe.
    """
    if file is None:
        return None
    # Not of other folders: the lengths of a file hold for these too.
    flags = dataclasses.replace(first, train_dir=None, train_low_dir=None)
    now = _flat(usual_of(flags, file, names))
    try:
        there = _flat(usual_of(FirstFlags(), file, names))
    except ValueError:  # Its method is not there any more, and nothing is known of it.
        return file
    return file.without({name: value for name, value in there.items() if value != now[name]})


def _flat(options: TrainOptions) -> dict[str, Any]:
    return dict(flat(dataclasses.asdict(options)))


def laid_over(
    command: type[_Command],
    arguments: Sequence[str],
    file: OptionsFile | None,
    usual: SharedOptions,
    prog: str,
) -> _Command:
    """A command of flags, with the options of a file and defaults where there are none.

    All are checked together: a flag mends what the file alone would not allow.

    Args:
        command: What to make.
        arguments: The command line.
        file: Options below the flags.
        usual: Options below those of the file.
        prog: What the command is called.

    Raises:
        ValueError: A name or value of the file is not usable, which is named, or values do not go
            together.
        SystemExit: A flag is unknown or malformed, or help was asked for.
    """
    default = file.over(usual) if file else usual
    draft = parse_draft(command, arguments, default, prog=prog)
    made_: _Command = file.made(draft) if file else made(draft)
    return made_
