"""Configuration files: YAML with the names of the flags, below which flags given count."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdext._cli.wording import in_flags
from mkdext._system.field_types import WrongKind, as_kind, kinds_of
from mkdext._system.near_names import did_you_mean
from mkdext._system.plugins import absolute
from mkdext._system.reading import read_yaml
from mkdext.training.options import BUILTIN_DEMO, SharedOptions, TrainOptions
from mkdext.training.run.directory import HISTORY, RunDirectory


def with_config(arguments: Sequence[str], options: SharedOptions) -> list[str]:
    """Command-line arguments after those of the file that --config or --resume means.

    Args:
        arguments: Those of the user.
        options: Defaults, of which `out` counts where --resume names no other run.

    Raises:
        ValueError: The file is not usable, or there is no run to resume.
    """
    given = list(arguments)
    config = value_of("--config", given)
    if "--resume" in given:
        if config is not None:
            raise ValueError("--resume takes the options of the run; leave --config out")
        run = RunDirectory(Path(value_of("--out", given) or options.out))
        if not run.config.exists():
            raise ValueError(f"--resume: there is no run in --out {run.root}")
        resumed = ["--out", str(run.root)]
        return flags_of(load_config(run.config), options, str(run.config)) + given + resumed
    return given if config is None else read_config(Path(config), options) + given


@contextlib.contextmanager
def naming_the_file(given: Sequence[str], arguments: Sequence[str]) -> Iterator[None]:
    """Name the configuration file in an error about an option that it holds.

    Args:
        given: Arguments of the user.
        arguments: The same after those of the file.
    """
    if list(given) == list(arguments):
        yield
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except (ValueError, SystemExit) as error:
        message = _of_an_option(error)
        flag = in_flags(message.split()[0])
        if flag and value_of(flag, given) is None and value_of(flag, arguments) is not None:
            file = value_of("--config", given)
            what = _what(Path(file)) if file else f"{value_of('--out', arguments)}/config.yaml"
            raise ValueError(f"{what}: {message}") from None
        sys.stderr.write(said.getvalue())
        raise


def _of_an_option(error: BaseException | None) -> str:
    """What an option's value was refused with, also where tyro has made an exit of it."""
    while error is not None:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            return str(error)
        error = error.__context__
    return " "


def _flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_config(path: Path, options: SharedOptions) -> list[str]:
    """Read a configuration file as command-line arguments.

    Args:
        path: YAML file, such as the `config.yaml` of a run.
        options: Options that have all fields there are.

    Returns:
        Arguments that come before those of the user.

    Raises:
        ValueError: The file is missing or not YAML of names and values, or has an unknown name or a
            value of another type.
    """
    return flags_of(load_config(path), options, _what(path))


def _what(path: Path) -> str:
    return f"--config {path}"


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What a flag is given on a command line, the last time, before the line is parsed as a whole.

    Example:
        >>> value_of("--out", ["--lr", "1e-4", "--out=runs/a"])
        'runs/a'
    """
    value = None
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
    return value


def defaults_for(arguments: Sequence[str]) -> TrainOptions:
    """The defaults below a command line: without `--train-dir` those of a training of minutes."""
    given = {argument.split("=")[0].replace("_", "-") for argument in arguments}
    return TrainOptions() if "--train-dir" in given else BUILTIN_DEMO


def load_config(path: Path) -> dict[str, Any]:
    """The names and values of a configuration file, without the history that a run keeps in it.

    Raises:
        ValueError: The file is missing or not YAML of names and values.
    """
    config = read_yaml(path, _what(path))
    if not isinstance(config, dict):
        raise ValueError(f"{_what(path)} must hold names and values, got {type(config).__name__}")
    config.pop(HISTORY, None)
    return config


def flags_of(config: Mapping[str, Any], options: object, source: str) -> list[str]:
    """Names and values as command-line arguments.

    Args:
        config: Values by the names of fields, nested as these are.
        options: A dataclass that has all fields there are.
        source: Where the names come from, for messages.

    Raises:
        ValueError: There is no field of a name.

    Example:
        >>> flags_of({"lr": 2e-4, "meta": {"every": 4}}, TrainOptions(), "config.yaml")
        ['--lr', '0.0002', '--meta.every', '4']
    """
    return list(_arguments(config, options, source, prefix=""))


def config_of(options: SharedOptions) -> dict[str, Any]:
    """Everything that decides the result, as plain values with absolute paths."""

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
    return config


def changed_flags(options: SharedOptions, base: SharedOptions) -> list[str]:
    """The command-line arguments that make `options` from `base`, except for `out`.

    Example:
        >>> changed_flags(TrainOptions(lr=2e-4, kd_fade=False), TrainOptions())
        ['--lr', '0.0002', '--no-kd-fade']
    """
    changed = _difference(dataclasses.asdict(options), dataclasses.asdict(base))
    changed.pop("out", None)
    return flags_of(changed, base, "")


def _difference(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if value == base[name]:
            continue
        if isinstance(value, dict):
            changed[name] = _difference(value, base[name])
        else:
            changed[name] = list(value) if isinstance(value, tuple) else value
    return changed


def _arguments(
    config: Mapping[str, Any], options: object, source: str, prefix: str
) -> Iterator[str]:
    kinds = kinds_of(type(options))  # type: ignore[arg-type]
    for key, value in config.items():
        name = str(key).replace("-", "_")
        shown = repr(prefix + str(key))
        if name not in kinds:
            hint = did_you_mean(name, kinds) or f"; it is one of {', '.join(kinds)}"
            raise ValueError(f"{source}: there is no option {shown}{hint}")
        if dataclasses.is_dataclass(kinds[name]):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {shown} must hold names and values")
            yield from _arguments(value, getattr(options, name), source, f"{prefix}{name}.")
            continue
        try:
            # In YAML 1.1, which is what is read, 1e-4 is a text.
            right = as_kind(value, kinds[name], lambda text, kind: kind(text))
        except WrongKind as error:
            raise ValueError(f"{source}: {shown} must be {error.must_be}, got {value!r}") from None
        items = right if isinstance(right, tuple) else (right,)
        if any(isinstance(item, str | Path) and str(item).startswith("-") for item in items):
            raise ValueError(f"{source}: {shown} must not begin with a dash, got {value!r}")
        flag = _flag_of(prefix + name)
        if kinds[name] is bool:
            yield flag if right else _flag_of(f"{prefix}no_{name}")
        elif items:
            yield from (flag, *map(str, items))
        elif getattr(options, name):
            raise ValueError(f"{source}: {shown} must not be empty")
