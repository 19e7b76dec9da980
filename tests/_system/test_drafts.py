from __future__ import annotations

import dataclasses
from typing import Annotated

import pytest
from typing_extensions import Doc

from mkdext._system.drafts import draft_class, field_docs, kind_of, made


@dataclasses.dataclass(frozen=True)
class Inner:
    """What is inside."""

    steps: int = 1
    """How many."""

    def __post_init__(self) -> None:
        """Check the number."""
        if self.steps < 1:
            raise ValueError("`steps` must be at least 1")


@dataclasses.dataclass(frozen=True)
class Outer:
    """What is outside."""

    name: str
    """A name that
    takes two lines."""
    inner: Inner = dataclasses.field(default_factory=Inner)


@dataclasses.dataclass(frozen=True)
class Longer(Outer):
    """With more."""

    more: float | None = None
    """More of it."""


def test_a_draft_is_checked_only_when_options_are_made_of_it():
    kind = draft_class(Longer)
    draft = kind(name="a", inner=draft_class(Inner)(steps=0))
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        made(draft)
    assert made(dataclasses.replace(draft, inner=Inner(2))) == Longer("a", Inner(2))


def test_defaults_are_those_that_are_given():
    given = Longer("a", Inner(3), more=0.5)
    assert made(draft_class(Longer, given)()) == given
    assert made(draft_class(Outer, given)()) == Outer("a", Inner(3))
    with pytest.raises(TypeError, match="name"):
        draft_class(Longer)()


def test_a_draft_may_be_that_of_one_of_several():
    first, second = (draft_class(Inner | Annotated[Outer, Doc("that one")])).__args__
    assert kind_of(first()) is Inner
    assert second.__metadata__ == (Doc("that one"),)


def test_docstrings_below_fields_are_found_in_every_class_and_filled():
    assert field_docs(Longer) == {"name": "A name that takes two lines.", "more": "More of it."}
