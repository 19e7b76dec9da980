"""Drafts of options: of the same names and types, but not checked yet.

Options check themselves when they are made. A file and flags give some of them each, and may be
wrong alone where they are right together; they are laid over each other as a draft.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
import pydantic
from typing_extensions import Doc

from mkdext._system.field_types import as_written, kinds_of

_KIND = "__draft_of__"


def _no_marks(default: Any) -> Sequence[Any]:
    return ()


def draft_class(
    kind: Any, values: object = None, marks: Callable[[Any], Sequence[Any]] = _no_marks
) -> Any:
    """A dataclass that has the fields of another, but none of its checks.

    The docstring below a field is in its annotation, as `Doc` and for pydantic; a field that is a
    dataclass becomes one of the same sort. pydantic takes no unknown names, and values as strictly
    as options made in Python do, see `as_written`.

    Args:
        kind: The dataclass, or a union of some.
        values: Has the defaults of fields by their names; where it has none, those of `kind` hold.
        marks: Gives more for the annotation of a field, by its default.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Rates:
        ...     first: float = 1.0
        ...     def __post_init__(self):
        ...         if self.first <= 0:
        ...             raise ValueError("`first` must be positive")
        >>> draft = draft_class(Rates)(first=-1.0)
        >>> made(dataclasses.replace(draft, first=2.0))
        Rates(first=2.0)
    """
    if get_origin(kind) in (Union, types.UnionType):
        return Union[tuple(draft_class(one, None, marks) for one in get_args(kind))]  # noqa: UP007
    if get_origin(kind) is Annotated:
        inner, *extras = get_args(kind)
        return Annotated[(draft_class(inner, None, marks), *extras)]
    hints, kinds, docs = get_type_hints(kind, include_extras=True), kinds_of(kind), field_docs(kind)
    fields = []
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        default, doc = _default(field, values), docs.get(field.name, "")
        if dataclasses.is_dataclass(hint):
            hint = make = draft_class(hint, default, marks)
            own = dataclasses.field(default_factory=make)
        else:
            strict = functools.partial(as_written, kind=kinds[field.name])
            hint = Annotated[(hint, pydantic.BeforeValidator(strict))]
            own = dataclasses.field(default=default)
        annotated = Annotated[(hint, pydantic.Field(description=doc), Doc(doc), *marks(default))]
        fields.append((field.name, annotated, own))
    namespace = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__pydantic_config__": pydantic.ConfigDict(extra="forbid"),
        _KIND: kind,
    }
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True, namespace=namespace)


def kind_of(options: Any) -> Any:
    """The class of options, also of a draft of some."""
    return getattr(type(options), _KIND, type(options))


def made(draft: Any) -> Any:
    """The options that a draft is one of, which check themselves.

    Args:
        draft: An instance of a `draft_class`.

    Raises:
        TypeError, ValueError: As the options do.
    """
    values = {field.name: getattr(draft, field.name) for field in dataclasses.fields(draft)}
    inner = {name: made(v) for name, v in values.items() if hasattr(type(v), _KIND)}
    return kind_of(draft)(**values | inner)


@functools.cache
def field_docs(kind: type) -> Mapping[str, str]:
    """The docstrings below the fields of a dataclass by their names, each on one line."""
    docs: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        for parameter in docstring_parser.parse_from_object(base).params:
            docs[parameter.arg_name] = " ".join((parameter.description or "").split())
    return docs


def _default(field: dataclasses.Field[Any], values: object) -> Any:
    given = getattr(values, field.name, dataclasses.MISSING)
    if given is not dataclasses.MISSING:
        return given
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
