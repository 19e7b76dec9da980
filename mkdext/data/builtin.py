"""The built-in photographs: those that come with scikit-image, so that nothing is downloaded."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Literal

import skimage

# Sharp photographs in the wheel itself: machines, textures, microscope, telescope. The two views of
# the motorcycle show the same things and so stay on one side.
_TRAIN = (
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
# A portrait with fine print; fur and blurred background; smooth china and wood grain.
_VALIDATION = ("astronaut.png", "chelsea.png", "coffee.png")


BUILTIN_NAME = "built-in"
"""What the built-in photographs are called as a set."""


def builtin_photographs(split: Literal["train", "validation"]) -> list[Path]:
    """Files of the built-in photographs, 300 to 1000 pixels a side.

    Args:
        split: "train" has ten photographs, four of them grey; "validation" has three others,
            in colour, that are held out always.

    Raises:
        ValueError: `split` is something else.
        FileNotFoundError: The installed scikit-image does not bring one of them.

    Example:
        >>> [path.name for path in builtin_photographs("validation")]
        ['astronaut.png', 'chelsea.png', 'coffee.png']
    """
    if split not in ("train", "validation"):
        raise ValueError(f"builtin_photographs: split must be 'train' or 'validation', got {split}")
    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / name for name in (_TRAIN if split == "train" else _VALIDATION)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"scikit-image {version('scikit-image')} has no {', '.join(missing)} in {folder}: "
            "install scikit-image 0.26, or give folders of your own photographs"
        )
    return paths
