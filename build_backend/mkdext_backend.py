"""PEP 517 backend of mkdext: setuptools, building against the PyTorch that the user already has.

pip builds in an isolated environment that hides the installed packages, so a plain
``requires = ["torch"]`` fetches PyTorch again, which takes minutes and gigabytes. The operators
need nothing of PyTorch but its headers and the name of one library (LibTorch Stable ABI), and one
binary works for every later version. So the build borrows the installed PyTorch, and asks for one
only where there is none.
"""

from __future__ import annotations

from typing import Any

from find_torch import TORCH_REQUIREMENT, find_torch
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """List what the build needs beyond ``build-system.requires``: PyTorch, unless it is here."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_if_missing()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """List what an editable build needs: the same as a wheel."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_if_missing()]


def _torch_if_missing() -> list[str]:
    return [] if find_torch() else [TORCH_REQUIREMENT]
