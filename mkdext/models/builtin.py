"""The trained networks that come with the package."""

from __future__ import annotations

from importlib import resources

from mkdext.models.blocks import SRNetwork
from mkdext.models.weights.files import load_model

BUILTIN_SCALE = 4
TEACHER = "rcan-c"
BUILTIN_NAMES = (TEACHER, "rcan-a")
"""Names of networks whose trained weights come with the package: a teacher and a student."""


def builtin_network(name: str) -> SRNetwork:
    """One of the networks that come with the package.

    Args:
        name: One of `BUILTIN_NAMES`.

    Returns:
        A trained network that maps `[B, 3, h, w]` to `[B, 3, 4*h, 4*w]`, colours in [0, 1].

    Raises:
        ValueError: The file is missing from the installation.

    Example:
        >>> sum(parameter.numel() for parameter in builtin_network("rcan-a").parameters())
        49799
    """
    asset = resources.files("mkdext") / "assets" / f"{name}-x{BUILTIN_SCALE}.safetensors"
    if not asset.is_file():
        raise ValueError(f"the built-in {name}, {asset}, is missing; install mkdext again")
    with resources.as_file(asset) as path:
        return load_model(path, BUILTIN_SCALE)


def builtin_teacher(scale: int = BUILTIN_SCALE) -> SRNetwork:
    """The trained RCAN that teaches where no other teacher is named.

    Returns:
        A network that maps `[B, 3, h, w]` to `[B, 3, 4*h, 4*w]`, colours in [0, 1].

    Raises:
        ValueError: `scale` is not 4, or the file is missing from the installation.

    Example:
        >>> import torch
        >>> builtin_teacher()(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 32, 32])
    """
    if scale != BUILTIN_SCALE:
        raise ValueError(
            f"the built-in teacher is for scale {BUILTIN_SCALE} only, got {scale}; "
            f"give a teacher for scale {scale} with `teacher_weights` FILE"
        )
    return builtin_network(TEACHER)
