"""What a weights file says of itself: one JSON object in the metadata of a safetensors file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from mkdext import __version__
from mkdext._system.files import as_json
from mkdext._system.plugins import is_reference
from mkdext._system.reading import entry, parse_json
from mkdext.models.registry import is_as_made

METADATA_KEY = "mkdext"
"""Name of the object in the file's metadata."""

VALUE_RANGE = (0.0, 1.0)
"""Black and white, as every network takes and gives them."""

_LARGEST_SCALE = 64
_SHOWN = 80
_Kind = TypeVar("_Kind")


@dataclasses.dataclass(frozen=True)
class WeightsMetadata:
    """What weights are of and where they come from.

    Example:
        >>> from mkdext.models import create_model
        >>> metadata = WeightsMetadata.of(create_model("edsr-s", scale=4), {"method": "mkd"})
        >>> metadata.architecture, metadata.scale, metadata.config["features"]
        ('EDSR', 4, 16)
        >>> WeightsMetadata.from_json(metadata.to_json()) == metadata
        True
    """

    architecture: str | None
    """Class of the network, such as RCAN; none for a network that is not of this package."""
    config: Mapping[str, Any]
    """Arguments of its configuration."""
    scale: int | None
    """Enlargement factor that the weights were trained for."""
    value_range: tuple[float, float] = VALUE_RANGE
    """Black and white, as the network takes and gives them."""
    version: str = __version__
    """Of the package that wrote the file."""
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How the weights came about: command, student, scale, teacher, photographs, steps."""
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the network's state dict holds beside plain tensors: see `state_tensors`."""

    @property
    def factory(self) -> str | None:
        """What made the user's network that the weights are of; none if that is not known."""
        student = self.origin.get("student")
        is_users = self.architecture is None and isinstance(student, str) and is_reference(student)
        return student if is_users else None

    @property
    def factory_options(self) -> Sequence[str]:
        """What the factory was given, `name=value` each."""
        given = self.origin.get("student_options", [])
        is_list = isinstance(given, list) and all(isinstance(text, str) for text in given)
        return given if is_list else []

    @classmethod
    def of(cls, model: nn.Module, origin: Mapping[str, Any]) -> WeightsMetadata:
        """Describe a network; of one that is not of this package only its origin tells.

        One of this package that a user's factory made is of this package, if it has its modules
        and shapes of weights.
        """
        if is_as_made(model):
            config = dataclasses.asdict(model.config)
            return cls(type(model).__name__, config, model.scale, origin=origin)
        scale = origin.get("scale")
        return cls(None, {}, scale if isinstance(scale, int) else None, origin=origin)

    @classmethod
    def from_json(cls, text: str) -> WeightsMetadata:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is no such object, or tells of another value range.
        """
        what = f"its metadata {METADATA_KEY!r}"
        content = parse_json(text, what)
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or not content.keys() <= known:
            raise ValueError(f"{what} are not those of this package")
        value_range = tuple(entry(content, "value_range", list, what))
        if value_range != VALUE_RANGE:
            raise ValueError(
                f"the value range in its metadata must be {VALUE_RANGE}, "
                f"got {str(value_range)[:_SHOWN]}"
            )
        scale = _or_none(content, "scale", int, what)
        if scale is not None and not 1 <= scale <= _LARGEST_SCALE:
            raise ValueError(
                f"{what}: 'scale' must be 1 to {_LARGEST_SCALE}, got {str(scale)[:_SHOWN]}"
            )
        optional = {"version": "", "origin": {}, "state": {}} | content
        return cls(
            architecture=_or_none(content, "architecture", str, what),
            config=entry(content, "config", dict, what),
            scale=scale,
            version=entry(optional, "version", str, what),
            origin=entry(optional, "origin", dict, what),
            state=entry(optional, "state", dict, what),
        )

    def to_json(self) -> str:
        """The object as one line of JSON."""
        content = dataclasses.asdict(self)
        if not self.state:
            del content["state"]
        return as_json(content)


def _or_none(content: Mapping[str, Any], name: str, kind: type[_Kind], what: str) -> _Kind | None:
    if name in content and content[name] is None:
        return None
    return entry(content, name, kind, what)
