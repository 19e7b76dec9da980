"""Configuration files: YAML with the names of the flags, below which flags given count."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from mkdext.models.user_code import absolute
from mkdext.training.options import BUILTIN_DEMO, SharedOptions, TrainOptions
from mkdext.training.run_directory import RunDirectory


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
        config = str(run.config)
        given = [*given, "--out", str(run.root)]
    return given if config is None else read_config(Path(config), options) + given


def read_config(path: Path, options: SharedOptions) -> list[str]:
    """Read a configuration file as command-line arguments.

    Args:
        path: YAML file, such as the `config.yaml` of a run.
        options: Options that have all fields there are.

    Returns:
        Arguments that come before those of the user.

    Raises:
        ValueError: The file is missing or not YAML of names and values, or has an unknown name.
    """
    return flags_of(load_config(path), options, f"--config {path}")


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
    """The names and values of a configuration file.

    Raises:
        ValueError: The file is missing or not YAML of names and values.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must hold names and values, got {type(config).__name__}")
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
    for name in ("student", "teacher"):
        config[name] = config[name] and absolute(config[name])
    return config


def checked_run(options: SharedOptions) -> tuple[RunDirectory, dict[str, Any]]:
    """The run directory of resolved options, and what the run is known by; nothing is written.

    Raises:
        ValueError: As `RunDirectory.check`.
    """
    config, run = config_of(options), RunDirectory(options.out)
    run.check(config)
    return run, config


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
    known = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    types = get_type_hints(type(options))
    for key, value in config.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it is one of {', '.join(known)}"
            raise ValueError(f"{source}: there is no option {prefix + str(key)!r}{hint}")
        if dataclasses.is_dataclass(known[name]):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {key!r} must hold names and values")
            yield from _arguments(value, known[name], source, f"{prefix}{name}.")
        elif isinstance(value, dict) or (
            isinstance(value, list) and not isinstance(known[name], tuple)
        ):
            raise ValueError(f"{source}: {prefix + str(key)!r} must be one value, got {value!r}")
        elif isinstance(value, bool) and types[name] is bool:
            flag = name if value else f"no_{name}"
            yield f"--{prefix}{flag}".replace("_", "-")
        elif isinstance(value, list):
            if value:
                yield from (f"--{prefix}{name}".replace("_", "-"), *map(str, value))
        else:
            yield from (f"--{prefix}{name}".replace("_", "-"), str(value))
