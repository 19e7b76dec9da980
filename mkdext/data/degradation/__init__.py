"""How low-resolution versions are made of photographs: by a fixed kernel, or at random."""

from __future__ import annotations

from pathlib import Path

from mkdext._system.near_names import did_you_mean
from mkdext.data.degradation.base import Degradation, drawn_for
from mkdext.data.degradation.fixed import BICUBIC, FIXED
from mkdext.data.degradation.parameters import Parameters, read_parameters
from mkdext.data.degradation.real_esrgan import RealESRGAN

__all__ = [
    "BICUBIC",
    "DEGRADATIONS",
    "Degradation",
    "Parameters",
    "RealESRGAN",
    "degradation_of",
    "drawn_for",
    "is_degradation_file",
    "is_random_degradation",
    "require_degradation",
]

_RANDOM = "realesrgan"
DEGRADATIONS = (*FIXED, _RANDOM)
"""Names of degradations; a YAML file may stand for one, too."""


def is_degradation_file(name: str) -> bool:
    """Whether a degradation is described in a file."""
    return name.lower().endswith((".yaml", ".yml"))


def is_random_degradation(name: str) -> bool:
    """Whether a degradation draws anything at random."""
    return name not in FIXED


def require_degradation(name: str) -> None:
    """Check the name of a degradation; a file is not looked at.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in DEGRADATIONS and not is_degradation_file(name):
        raise ValueError(
            f"`degradation` must be one of {', '.join(DEGRADATIONS)} or a YAML file, got {name!r}"
            f"{did_you_mean(name, DEGRADATIONS)}"
        )


def degradation_of(name: str) -> Degradation:
    """The degradation of a name, or the one that a YAML file describes.

    Args:
        name: One of `DEGRADATIONS`, or a file of `Parameters`, in which what is left out is
            Real-ESRGAN's.

    Raises:
        ValueError: There is none of that name, or the file is not usable.

    Example:
        >>> degradation_of("area").is_random, degradation_of("realesrgan").is_random
        (False, True)
    """
    require_degradation(name)
    if name in FIXED:
        return FIXED[name]
    if name == _RANDOM:
        return RealESRGAN(name, Parameters())
    return RealESRGAN(Path(name).name, read_parameters(Path(name)))
