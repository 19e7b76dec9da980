"""The parameters of a random degradation, as they stand in a YAML file.

Defaults are those that Real-ESRGAN publishes (`options/train_realesrgan_x4plus.yml` of its code).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from mkdext._system.drafts import draft_class, made
from mkdext._system.field_types import check_types, kind_in_words, kinds_of
from mkdext._system.near_names import did_you_mean
from mkdext._system.reading import read_yaml


@dataclasses.dataclass(frozen=True)
class Kernels:
    """How often each form of a kernel is drawn, as weights."""

    iso: float = 0.45
    """Gaussians."""
    aniso: float = 0.25
    """Gaussians of two widths, turned at random."""
    generalized_iso: float = 0.12
    """Gaussians of another exponent."""
    generalized_aniso: float = 0.03
    """The same with two widths."""
    plateau_iso: float = 0.12
    """Kernels with a plateau."""
    plateau_aniso: float = 0.03
    """The same with two widths."""

    def __post_init__(self) -> None:
        """Check the weights."""
        check_types(self)
        if min(self.weights.values()) < 0 or not 0 < sum(self.weights.values()) < math.inf:
            raise ValueError("kernels: weights must be at least 0 and not all 0")

    @property
    def weights(self) -> dict[str, float]:
        """By form."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Blur:
    """A convolution with a kernel drawn at random."""

    probability: float = 1.0
    """How often there is one."""
    size: tuple[int, ...] = (7, 21)
    """Smallest and largest side of the kernels in pixels, odd numbers."""
    sinc: float = 0.1
    """Share of the kernels that are sinc filters, which ring."""
    kernels: Kernels = dataclasses.field(default_factory=Kernels)
    """How often the others are drawn."""
    sigma: tuple[float, ...] = (0.2, 3.0)
    """Smallest and largest width of a kernel in pixels."""
    generalized_beta: tuple[float, ...] = (0.5, 4.0)
    """Exponents of generalized kernels: half of them from the first number to 1, half from 1 to the
    second."""
    plateau_beta: tuple[float, ...] = (1.0, 2.0)
    """The same of kernels with a plateau."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_types(self)
        _require_shares(self, "blur", "probability", "sinc")
        _require_range(self, "blur", "size", 1, 99)
        if not all(side % 2 for side in self.size):
            raise ValueError(f"blur: size must be two odd numbers, got {list(self.size)}")
        _require_range(self, "blur", "sigma", 0.01, 100)
        for name in ("generalized_beta", "plateau_beta"):
            _require_range(self, "blur", name, 0.01, 100)
            least, most = getattr(self, name)
            if not least <= 1 <= most:
                raise ValueError(f"blur: {name} must have 1 between its numbers, got {least, most}")


@dataclasses.dataclass(frozen=True)
class Resize:
    """Another size, drawn at random."""

    up: float = 0.2
    """Weight of enlarging."""
    down: float = 0.7
    """Weight of reducing."""
    keep: float = 0.1
    """Weight of leaving the size."""
    range: tuple[float, ...] = (0.15, 1.5)
    """Smallest factor when reducing, and largest when enlarging."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_types(self)
        weights = self.up, self.down, self.keep
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError("resize: up, down and keep must be at least 0 and not all 0")
        _require_range(self, "resize", "range", 0.01, 8)
        if not self.range[0] <= 1 <= self.range[1]:
            raise ValueError(f"resize: range must have 1 between its numbers, got {self.range}")


@dataclasses.dataclass(frozen=True)
class Noise:
    """Gaussian noise, or noise that grows with the light (Poisson)."""

    probability: float = 1.0
    """How often there is any."""
    gaussian: float = 0.5
    """Share of Gaussian noise."""
    sigma: tuple[float, ...] = (1.0, 30.0)
    """Smallest and largest deviation of Gaussian noise, in levels of 255."""
    poisson: tuple[float, ...] = (0.05, 3.0)
    """By what Poisson noise is multiplied, from and to."""
    grey: float = 0.4
    """Share of noise that is the same in all channels."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_types(self)
        _require_shares(self, "noise", "probability", "gaussian", "grey")
        _require_range(self, "noise", "sigma", 0, 255)
        _require_range(self, "noise", "poisson", 0, 100)


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """Compression."""

    probability: float = 1.0
    """How often there is any."""
    quality: tuple[int, ...] = (30, 95)
    """Lowest and highest quality, from 1 to 100."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_types(self)
        _require_shares(self, "jpeg", "probability")
        _require_range(self, "jpeg", "quality", 1, 100)


@dataclasses.dataclass(frozen=True)
class Order:
    """Blur, resize, noise and JPEG, one after the other."""

    blur: Blur = dataclasses.field(default_factory=Blur)
    """A blur."""
    resize: Resize = dataclasses.field(default_factory=Resize)
    """Another size: in the first order of the photograph's, in the second of the low-resolution
    one's."""
    noise: Noise = dataclasses.field(default_factory=Noise)
    """Noise."""
    jpeg: Jpeg = dataclasses.field(default_factory=Jpeg)
    """Compression."""


def _second() -> Order:
    return Order(
        Blur(probability=0.8, sigma=(0.2, 1.5)),
        Resize(up=0.3, down=0.4, keep=0.3, range=(0.3, 1.2)),
        Noise(sigma=(1.0, 25.0), poisson=(0.05, 2.5)),
    )


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Of the degradation of Real-ESRGAN, in two orders."""

    first: Order = dataclasses.field(default_factory=Order)
    """What comes first."""
    second: Order = dataclasses.field(default_factory=_second)
    """What comes second; the low-resolution size is taken before or after its JPEG, at random."""
    final_sinc: float = 0.8
    """How often a sinc filter follows the low-resolution size."""

    def __post_init__(self) -> None:
        """Check the number."""
        check_types(self)
        _require_shares(self, "the file", "final_sinc")


def read_parameters(path: Path) -> Parameters:
    """Parameters of a YAML file; what it leaves out is Real-ESRGAN's.

    Raises:
        ValueError: The file is missing or not YAML of names and values, has a name that is unknown,
            or a value that is of another type or cannot be.
    """
    what = f"`degradation` {path}"
    values = read_yaml(path, what)
    draft = draft_class(Parameters)
    try:
        parameters: Parameters = made(pydantic.TypeAdapter(draft).validate_python(values or {}))
    except pydantic.ValidationError as error:
        raise ValueError(f"{what}: {_in_words(error)}") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    return parameters


def _in_words(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    *groups, name = [part for part in first["loc"] if isinstance(part, str)] or [""]
    kinds: Mapping[str, Any] = kinds_of(Parameters)
    for group in groups:
        kinds = kinds_of(kinds[group])
    shown = ".".join((*groups, name))
    if not name:
        return "it must hold names and values"
    if name not in kinds:
        hint = did_you_mean(name, kinds) or f"; there are {', '.join(kinds)}"
        return f"there is no {shown}{hint}"
    kind = kinds[name]
    is_group = dataclasses.is_dataclass(kind)
    return f"{shown} must be {'names and values' if is_group else kind_in_words(kind)}"


def _require_shares(options: object, group: str, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{group}: {name} must be from 0 to 1, got {value}")


def _require_range(options: object, group: str, name: str, least: float, most: float) -> None:
    values = getattr(options, name)
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise ValueError(
            f"{group}: {name} must be two numbers from {least} to {most}, the smaller one first, "
            f"got {list(values)}"
        )
