"""What users bring: `package.module:name` or `file.py:name`, and options for it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from mkdext._system.near_names import did_you_mean
from mkdext._system.user_files import PREFIX, module_of_file, searched

_LONGEST = 300
_SHOWN = 8


def is_reference(name: str) -> bool:
    """Whether `name` is that of code of a user's, `package.module:name` or `file.py:name`."""
    return ":" in name


def absolute(name: str) -> str:
    """`name` with the path of its file made absolute, if it names something in a file.

    Example:
        >>> absolute("/nets/own.py:make"), absolute("nets.own:make"), absolute("rcan-a")
        ('/nets/own.py:make', 'nets.own:make', 'rcan-a')
    """
    where, _, attribute = name.rpartition(":")
    return f"{Path(where).absolute()}:{attribute}" if _is_file(where) else name


@contextlib.contextmanager
def loaded(reference: str, what: str, kind: str) -> Iterator[Any]:
    """What a reference names; within, its code finds what it imports.

    Args:
        reference: `package.module:name` or `file.py:name`. A file may import from its own folder,
            also relatively (`from . import block`), and from the packages around it.
        what: Names it in error messages.
        kind: What it must be, as in "factory".

    Raises:
        ValueError: The module cannot be imported, or has nothing of this name.

    Example:
        >>> with loaded("math:sqrt", "`root` math:sqrt", "function") as root:
        ...     root(9)
        3.0
    """
    where, _, attribute = reference.rpartition(":")
    if not where or not attribute:
        raise ValueError(f"{what} must be package.module:{kind} or file.py:{kind}")
    is_file = _is_file(where)
    with searched(Path(where).resolve().parent if is_file else Path().resolve(), is_file):
        yield _attribute(_module(where, what), attribute, what)


def named_options(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """Options by name from texts `name=value`, whose values are read as YAML.

    Raises:
        ValueError: A text is not of this form, or a name comes twice.

    Example:
        >>> named_options(["blocks=8", "act=relu", "widths=[16, 32]", "eps=1e-3"], "`options`")
        {'blocks': 8, 'act': 'relu', 'widths': [16, 32], 'eps': 0.001}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{flag} must be name=value, such as features=64, got {text!r}")
        if name in options:
            raise ValueError(f"{flag} has {name} twice")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{flag}: the value of {name} is not valid YAML: {value!r}") from None
        if isinstance(options[name], str):
            with contextlib.suppress(ValueError):  # YAML takes 1e-3 for a text.
                options[name] = float(options[name])
    return options


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any], what: str, before: int = 0
) -> None:
    """Check that a function or class can be called with options by name.

    Args:
        function: What is to be called.
        options: Arguments by name.
        what: Names it in error messages.
        before: How many arguments it is given by position before them.

    Raises:
        ValueError: It has no such option, or needs an argument that is not given.

    Example:
        >>> check_options(sorted, {"revers": True}, "`sort`", before=1)
        Traceback (most recent call last):
        ValueError: `sort` has no option 'revers'; did you mean reverse?
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # Some classes of C++ have none.
    parameters = list(signature.parameters.values())
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [parameter.name for parameter in parameters[before:] if parameter.kind in by_name]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for name in options if not takes_any else ():
        if name not in names:
            raise ValueError(f"{what} has no option {name!r}{_others(name, names)}")
    try:
        signature.bind(*[None] * before, **options)
    except TypeError as error:
        rest = f" beside {', '.join(options)}" if options else ""
        raise ValueError(
            f"{what} must need no arguments{rest}, but: {error}; give them as options, "
            "name=value, or name a function that gives them"
        ) from None


def error_in_words(error: BaseException) -> str:
    """Type and first line of an error of a user's code, at most 300 characters of it.

    Example:
        >>> error_in_words(KeyError("name"))
        "KeyError: 'name'"
    """
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    more = "..." * (len(reason) > _LONGEST)
    return f"{type(error).__name__}: {reason[:_LONGEST]}{more}"


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _module(where: str, what: str) -> ModuleType:
    path, is_file = Path(where), _is_file(where)
    if is_file and not path.is_file():
        raise ValueError(f"{what}: there is no file {path}")
    if is_file and path.suffix != ".py":
        raise ValueError(f"{what}: {path} is not a Python file")
    try:
        return module_of_file(path) if is_file else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # Whatever the user's code may raise.
        raise ValueError(f"{what} cannot be imported: {error_in_words(error)}") from error


def _attribute(module: ModuleType, attribute: str, what: str) -> Any:
    found = getattr(module, attribute, None)
    if found is not None:
        return found
    names = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    is_file = module.__name__.startswith(PREFIX)
    called = module.__name__.rpartition(".")[2] if is_file else module.__name__
    raise ValueError(f"{what}: {called} has no {attribute!r}{_others(attribute, names)}")


def _others(name: str, names: Sequence[str]) -> str:
    """What there is instead, for the end of a sentence."""
    few = f"; it has {', '.join(names[:_SHOWN])}" if names else ""
    return did_you_mean(name, names) or few
