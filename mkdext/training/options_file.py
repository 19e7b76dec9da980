"""Options in files: read, written, described for editors, and kept with what they have made."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from mkdext._system.drafts import draft_class, kind_of, made
from mkdext._system.field_types import kind_in_words, kinds_of
from mkdext._system.near_names import did_you_mean
from mkdext._system.plugins import absolute
from mkdext._system.reading import read_yaml
from mkdext.data import BUILTIN_NAME, is_degradation_file
from mkdext.training.data_free_options import (
    DataFreeOptions,
    Options,
    Resolved,
    ResolvedDataFree,
    usual_data_free,
)
from mkdext.training.options import (
    ResolvedShared,
    ResolvedTraining,
    SharedOptions,
    TrainOptions,
    usual_training,
)
from mkdext.training.run.directory import HISTORY, flat

_Options = TypeVar("_Options")


def load_options(path: Path, default: _Options) -> _Options:
    """Options of a file, and others where it has none.

    Args:
        path: YAML file, such as the `config.yaml` of a run.
        default: Options that hold where the file says nothing.

    Raises:
        ValueError: The file is not YAML of names and values, has a name that is unknown, or a value
            that is of another type or cannot be; it is named, with the line where that is known.
    """
    file = OptionsFile.read(path)
    options: _Options = file.made(file.over(default))
    return options


@dataclasses.dataclass(frozen=True)
class OptionsFile:
    """Names and values, nested as options are."""

    what: str
    """What they are of, for messages."""
    values: Mapping[str, Any]
    """Plain ones, by names of fields."""
    path: Path | None = None
    """Where they stand; none: in no file."""

    @classmethod
    def read(cls, path: Path, what: str | None = None) -> OptionsFile:
        """Read a file, without the history that a run keeps in it.

        Args:
            path: YAML file.
            what: What it is called in messages; none: by its path.

        Raises:
            ValueError: The file is missing or not YAML of names and values.
        """
        what = what or str(path)
        values = read_yaml(path, what)
        if not isinstance(values, dict):
            raise ValueError(f"{what} must hold names and values, got {type(values).__name__}")
        values.pop(HISTORY, None)
        return cls(what, _with_names_of_fields(values), path)

    def over(self, options: Any) -> Any:
        """A draft of options in which these values stand in for others.

        Args:
            options: A dataclass, or a draft of one, that has all fields there are.

        Raises:
            ValueError: A name is unknown, or a value is of another type.
        """
        kind = draft_class(kind_of(options), options)
        try:
            return pydantic.TypeAdapter(kind).validate_python(dict(self.values))
        except pydantic.ValidationError as error:
            raise self._refusal(kind, error) from None

    def without(self, values: Mapping[str, Any]) -> OptionsFile:
        """The same without options that have certain values.

        Args:
            values: By names of fields, those of groups as `group.name`.
        """

        def left(there: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
            kept = {}
            for name, value in there.items():
                full = prefix + name
                if isinstance(value, dict):
                    kept[name] = left(value, f"{full}.")
                elif full not in values or not _is_same(value, values[full]):
                    kept[name] = value
            return kept

        return dataclasses.replace(self, values=left(self.values))

    def made(self, draft: Any) -> Any:
        """The options that a draft is one of; an error about a value of this file names it.

        Raises:
            TypeError, ValueError: As the options do.
        """
        try:
            return made(draft)
        except (TypeError, ValueError) as error:
            name = str(error).split("`")[1] if str(error).startswith("`") else ""
            own = self.over(draft)
            if name not in dict(flat(self.values)) or _value(own, name) != _value(draft, name):
                raise
            raise type(error)(f"{self.where(name)}: {error}") from None

    def where(self, name: str) -> str:
        """Where an option stands, such as "config.yaml, line 3"."""
        line = self.line(name)
        return f"{self.what}, line {line}" if line else self.what

    def line(self, name: str) -> int | None:
        """The line in which an option stands, that of a group as `group.name`, if it is known."""
        if self.path is None:
            return None
        node = yaml.compose(self.path.read_text(errors="replace"), Loader=yaml.SafeLoader)
        line = None
        for part in name.split("."):
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = [pair for pair in pairs if pair[0].value.replace("-", "_") == part]
            if not found:
                break
            key, node = found[0]
            line = key.start_mark.line + 1
        return line

    def _refusal(self, kind: type, error: pydantic.ValidationError) -> ValueError:
        first = error.errors(include_url=False)[0]
        *groups, name = [part for part in first["loc"] if isinstance(part, str)]
        own, value = kind, dict(self.values)
        for group in groups:
            own, value = kinds_of(own)[group], value[group]
        shown = repr(".".join((*groups, name)))
        where = self.where(".".join((*groups, name)))
        kinds = kinds_of(own)
        if name not in kinds:
            hint = did_you_mean(name, kinds) or f"; it is one of {', '.join(kinds)}"
            return ValueError(f"{where}: there is no option {shown}{hint}")
        if dataclasses.is_dataclass(kinds[name]):
            return ValueError(f"{where}: {shown} must hold names and values, got {value[name]!r}")
        must_be = kind_in_words(kinds[name])
        return ValueError(f"{where}: {shown} must be {must_be}, got {value[name]!r}")


def config_of(options: SharedOptions) -> dict[str, Any]:
    """Everything that decides the result, as plain values with absolute paths.

    Of resolved options that is open which their training does not use.
    """
    if isinstance(options, ResolvedShared):
        options = options.given()

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.absolute())
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return value

    config: dict[str, Any] = plain(dataclasses.asdict(options))
    del config["out"]
    for name in ("student", "teacher", "method", "loss"):
        if config.get(name):
            config[name] = absolute(config[name])
    if is_degradation_file(config.get("degradation", "")):
        config["degradation"] = str(Path(config["degradation"]).absolute())
    return config


def schema(options: SharedOptions) -> dict[str, Any]:
    """The JSON schema of files of options, by which editors complete and check them.

    Args:
        options: Those that hold where a file says nothing.
    """
    described = pydantic.TypeAdapter(draft_class(type(options), options)).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}


def origin(options: Resolved, steps: int, history: Sequence[Any] = ()) -> dict[str, Any]:
    """What made a student; the same wherever the run directory is.

    Args:
        options: Those of its last step.
        steps: How many it took.
        history: What the options were before, as `RunDirectory.history` has it.

    Example:
        >>> from pathlib import Path
        >>> from mkdext.training import TrainOptions
        >>> options = TrainOptions(train_dir=(Path("DIV2K"),), recipe="plain", method="vanilla")
        >>> origin(options.resolved(), steps=500)["command"]
        'python -m mkdext.train --recipe plain --train-dir DIV2K'
    """
    made_by = {"steps": steps, **({HISTORY: [*history]} if history else {})}
    student: dict[str, Any] = {"student": absolute(options.student)}
    if options.student_options:
        student["student_options"] = [*options.student_options]
    if len(options.scales) == 1:
        student["scale"] = options.scales[0]
    teacher: Any = options.teacher_weights or options.teacher or "builtin"
    if isinstance(options, ResolvedDataFree):
        return {
            "command": _command("datafree", options.given(), _usual_data_free(options)),
            **student,
            "method": options.method,
            "teacher": str(teacher),
            "data": [f"made images ({options.source})"],
            **made_by,
        }
    has_teacher = options.method != "vanilla" or options.student_init == "teacher"
    if options.privileged:
        teacher = "trained on high resolution in the same run"
    return {
        "command": _command("train", options.given(), _usual(options)),
        **student,
        "method": options.method,
        "teacher": str(teacher) if has_teacher else None,
        "data": [*map(str, options.train_dir or options.train_low_dir)] or [BUILTIN_NAME],
        **made_by,
    }


def as_flags(values: Mapping[str, Any], options: SharedOptions) -> list[str]:
    """Flags by which a command is given values.

    Args:
        values: By names of fields, those of groups as `group.name`.
        options: A dataclass that has all fields there are.

    Example:
        >>> from mkdext.training import TrainOptions
        >>> as_flags({"lr": 2e-4, "meta.every": 4, "kd_fade": False}, TrainOptions())
        ['--lr', '0.0002', '--meta.every', '4', '--no-kd-fade']
    """
    return [word for name, value in values.items() for word in _flag(name, value, options)]


def _usual_data_free(options: ResolvedDataFree) -> DataFreeOptions:
    usual = usual_data_free(options.recipe, options.optimizer, options.student)
    optimizer = usual_data_free(options.recipe).optimizer
    return dataclasses.replace(usual, recipe=None, optimizer=optimizer)


def _usual(options: ResolvedTraining) -> TrainOptions:
    """What holds beside the flags that are needed for a training."""
    given = options.train_dir or options.train_low_dir, options.recipe
    first = usual_training(*given)
    usual = usual_training(*given, options.method, options.optimizer, options.student)
    return dataclasses.replace(usual, recipe=None, method=first.method, optimizer=first.optimizer)


def _command(name: str, options: Options, usual: Options) -> str:
    """What trains with options, but for `out`, where `usual` holds if nothing is given."""
    values, base = (dict(flat(dataclasses.asdict(each))) for each in (options, usual))
    changed = {n: value for n, value in values.items() if value != base[n] and n != "out"}
    needed = {
        n: value
        for n, value in changed.items()
        if base[n] is not None or _with_none(options, n).resolved() != options.resolved()
    }
    return shlex.join(["python", "-m", f"mkdext.{name}", *as_flags(needed, options)])


def _with_none(options: Options, name: str) -> Options:
    """Options in which one is open."""
    group, _, inner = name.rpartition(".")
    open_: dict[str, Any] = {inner: None}
    if group:
        open_ = {group: dataclasses.replace(getattr(options, group), **open_)}
    return dataclasses.replace(options, **open_)


def _flag(name: str, value: Any, options: SharedOptions) -> Iterator[str]:
    group, _, inner = name.rpartition(".")
    own: Any = getattr(options, group) if group else options
    kind = kinds_of(type(own))[inner]  # type: ignore[arg-type]
    prefix = f"--{group}." if group else "--"
    inner = inner.replace("_", "-")
    if kind is bool:
        yield f"{prefix}{'' if value else 'no-'}{inner}"
    elif value != [] and value != ():
        items = value if isinstance(value, list | tuple) else [value]
        yield from (f"{prefix}{inner}", *map(str, items))


def _with_names_of_fields(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The same, named with underscores where a flag's name has dashes."""
    return {
        str(name).replace("-", "_"): _with_names_of_fields(v) if isinstance(v, dict) else v
        for name, v in values.items()
    }


def _is_same(written: Any, value: Any) -> bool:
    """Whether a value of a file is one of an option, a power of ten being a text in YAML 1.1."""
    if isinstance(value, float) and isinstance(written, str):
        with contextlib.suppress(ValueError):
            written = float(written)
    return bool(written == value)


def _value(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = getattr(options, part, None)
    return options
