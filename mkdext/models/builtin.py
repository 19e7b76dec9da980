"""The teacher that comes with the package."""

from __future__ import annotations

from importlib import resources

from mkdext.models.blocks import SRNetwork
from mkdext.models.weights.files import load_model

BUILTIN_SCALE = 4
_FILE = "rcan-c-x4.safetensors"


def builtin_teacher(scale: int = BUILTIN_SCALE) -> SRNetwork:
    """The trained RCAN that comes with the package.

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
    asset = resources.files("mkdext") / "assets" / _FILE
    if not asset.is_file():
        raise ValueError(f"the built-in teacher, {asset}, is missing; install mkdext again")
    with resources.as_file(asset) as path:
        return load_model(path, scale)
