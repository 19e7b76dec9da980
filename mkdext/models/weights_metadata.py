"""What a weights file says of itself: one JSON object in the metadata of a safetensors file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

import mkdext
from mkdext.models.blocks import SRNetwork
from mkdext.models.user_code import is_own

METADATA_KEY = "mkdext"
"""Name of the object in the file's metadata."""

VALUE_RANGE = (0.0, 1.0)
"""Black and white, as every network takes and gives them."""


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
    version: str = mkdext.__version__
    """Of the package that wrote the file."""
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How the weights came about: command, student, scale, teacher, photographs, steps."""

    @property
    def factory(self) -> str | None:
        """What made the user's network that the weights are of; none if that is not known."""
        student = self.origin.get("student")
        return student if isinstance(student, str) and is_own(student) else None

    @classmethod
    def of(cls, model: nn.Module, origin: Mapping[str, Any]) -> WeightsMetadata:
        """Describe a network; of one that is not of this package only its origin tells."""
        if isinstance(model, SRNetwork):
            config = dataclasses.asdict(model.config)
            return cls(type(model).__name__, config, model.scale, origin=origin)
        return cls(None, {}, origin.get("scale"), origin=origin)

    @classmethod
    def from_json(cls, text: str) -> WeightsMetadata:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is no such object, or tells of another value range.
        """
        try:
            content = json.loads(text)
            metadata = cls(**content | {"value_range": tuple(content["value_range"])})
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"its metadata {METADATA_KEY!r} are not those of this package"
            ) from None
        if metadata.value_range != VALUE_RANGE:
            raise ValueError(
                f"the value range in its metadata must be {VALUE_RANGE}, got {metadata.value_range}"
            )
        return metadata

    def to_json(self) -> str:
        """The object as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))
