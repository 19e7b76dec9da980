"""The photographs that a training learns from and is measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from mkdext._system.files import check_apart
from mkdext.data import (
    BadImage,
    ImagePairs,
    StoredPair,
    bad_images_message,
    builtin_photographs,
    find_photographs,
)
from mkdext.training.options import TrainOptions

Progress = Callable[[str], Callable[[Iterable[Path]], Iterable[Path]]]
"""Given a title, wraps an iteration over files to show how far it has come."""

BUILTIN_NAME = "built-in"


def training_photographs(
    options: TrainOptions, progress: Progress
) -> tuple[ImagePairs, list[BadImage]]:
    """Check the photographs to train on: folders of image files are decoded, stores opened.

    Returns:
        The usable ones and those left out.

    Raises:
        ValueError: A folder is missing or empty, holds small versions of photographs too, or `out`
            lies in it, a store is damaged or of another scale, no photograph is usable, or some are
            not and `bad_images` is "refuse".
    """
    found: list[Path | StoredPair] = []
    for folder in options.train_dir:
        found += find_photographs(folder, options.scale)
        check_apart(options.out, folder)
    found = found or [*builtin_photographs("train")]
    smallest = options.patch_size * options.scale
    pairs, bad = ImagePairs.checked(
        found, options.scale, smallest, progress("training photographs")
    )
    if bad and options.bad_images == "refuse":
        raise ValueError(
            f"{bad_images_message(bad)}\nremove them, or leave them out by `bad_images` skip; "
            f"for small ones a smaller `patch_size` will do (now {options.patch_size})"
        )
    if not len(pairs):
        raise ValueError(f"`train_dir` holds no usable photograph:\n{bad_images_message(bad)}")
    return pairs, bad


def validation_photographs(options: TrainOptions, progress: Progress) -> dict[str, ImagePairs]:
    """Check the photographs to measure on, by the name of their folder or store.

    Raises:
        ValueError: A folder is missing or empty, holds small versions of photographs too, or `out`
            lies in it, a store is damaged or of another scale, a photograph is not usable, or two
            folders have the same name.
    """
    if not options.val_dir:
        return {BUILTIN_NAME: ImagePairs(builtin_photographs("validation"), options.scale)}
    sets: dict[str, ImagePairs] = {}
    for folder in options.val_dir:
        found = find_photographs(folder, options.scale)
        check_apart(options.out, folder)
        name = folder.resolve().name
        if name in sets:
            raise ValueError(f"`val_dir` has two folders called {name!r}; rename one of them")
        # SSIM needs a window of 11 pixels inside a border as wide as the scale, in whole cells.
        smallest = math.ceil((2 * options.scale + 11) / options.scale) * options.scale
        sets[name], bad = ImagePairs.checked(
            found, options.scale, smallest, progress(name), check_stored=True
        )
        if bad:
            raise ValueError(bad_images_message(bad))
    return sets
