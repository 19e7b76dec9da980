"""What pictures a training finds: those to learn from, and those to measure on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from mkdext._system.files import check_apart
from mkdext.data import (
    BICUBIC,
    BUILTIN_NAME,
    BadImage,
    GivenPair,
    ImagePairs,
    LowImages,
    Photograph,
    are_given,
    bad_images_message,
    builtin_photographs,
    degradation_of,
    find_images,
    find_photographs,
    match_low_resolution,
    require_made,
)
from mkdext.data.pairs import Pair
from mkdext.metrics import to_uint8
from mkdext.models.handling import evaluation_mode
from mkdext.synthesis import procedural_images
from mkdext.synthesis.randomness import Draw, random_for
from mkdext.training.data_free_options import DataFreeOptions, Options
from mkdext.training.options import TrainOptions
from mkdext.training.validation import picture

Progress = Callable[[str], Callable[[Iterable[Path]], Iterable[Path]]]
"""Given a title, wraps an iteration over files to show how far it has come."""

HELD_OUT_MADE = "made images"
"""Name of the images on which a student is compared with its teacher meanwhile."""

HELD_OUT_LOW = "held-out pictures, to the teacher"
"""Name of the low-resolution pictures on which a student is compared with its teacher where there
are no photographs."""

_MADE_COUNT, _MADE_SIDE = 8, 96  # high-resolution pixels
_EVERY, _MOST = 20, 8  # of low-resolution pictures how many are held out


class ValidationSet(NamedTuple):
    """Pictures to measure a student on."""

    scale: int
    pairs: Sequence[tuple[Tensor, Tensor]]
    """`(low, high)` each, uint8."""
    of_teacher: bool = False
    """Whether `high` is what the teacher makes of `low`."""


class Found(NamedTuple):
    """What there is to train on."""

    images: ImagePairs | LowImages
    remarks: list[str]
    """What to tell of pictures that are left out or continued by their mirror image."""


def find_to_train(options: TrainOptions) -> Sequence[Photograph]:
    """The files or stored photographs that the options name; none is opened.

    Of low-resolution pictures alone all, those that are held out too.

    Raises:
        ValueError: A folder is missing or empty, holds small versions of photographs too, or `out`
            lies in it; a store is damaged, of another scale, or has low-resolution versions of its
            own where others are asked for; or a photograph has no low-resolution version.
    """
    for folder in (*options.train_dir, *options.train_low_dir):
        check_apart(options.out, folder)
    found: list[Photograph] = []
    if options.low_only:
        for folder in options.train_low_dir:
            found += find_images(folder)
    elif options.train_low_dir:
        for folder, low in zip(options.train_dir, options.train_low_dir, strict=True):
            found += _pairs_in(folder, low, options)
    else:
        for folder in options.train_dir:
            these = find_photographs(folder, options.scale, low_flag="`train_low_dir`")
            if options.degradation != BICUBIC.name:
                require_made(these, folder, options.degradation)
            found += these
    return found or builtin_photographs("train")


def training_photographs(options: TrainOptions, progress: Progress) -> Found:
    """Check the pictures to train on: image files are decoded, stores opened.

    Raises:
        ValueError: As `find_to_train`, no picture is usable, or some are not and shall not be left
            out.
    """
    found, side = find_to_train(options), options.smallest_photograph
    title, small = "training photographs", options.small_images or options.bad_images
    images: ImagePairs | LowImages
    if options.low_only:
        files = [path for path in found if isinstance(path, Path)]
        apart = set() if options.val_dir else set(_held_out(files))
        files = [path for path in files if path not in apart]
        shown = progress("training pictures")
        images, bad = LowImages.checked(files, options.scale, side, shown, pad=small == "pad")
    else:
        images, bad = ImagePairs.checked(
            found,
            options.scale,
            side,
            progress(title),
            degradation=degradation_of(options.degradation),
            pad=small == "pad",
        )
    actions = {True: small, False: options.bad_images}
    refused = [image for image in bad if actions[image.is_small] != "skip"]
    if refused:
        raise ValueError(f"{bad_images_message(refused)}\n{_remedy(refused, options)}")
    if not len(images):
        flag = "train_low_dir" if options.low_only else "train_dir"
        raise ValueError(f"`{flag}` holds no usable photograph:\n{bad_images_message(bad)}")
    remarks = [f"left out: {image}" for image in bad if not image.is_small]
    for what, paths in (
        ("left out", [image.path for image in bad if image.is_small]),
        ("continued by their mirror image", sorted(images.padded)),
    ):
        if paths:
            remarks.append(
                f"{what}: {len(paths)} of {len(found)} photographs, smaller than {side}x{side} "
                f"pixels, such as {paths[0]}"
            )
    return Found(images, remarks)


def validation_sets(options: Options, progress: Progress) -> dict[str, ValidationSet]:
    """Check the photographs to measure on, by the name of their folder or store.

    Of several scales the names end with the scale; of another degradation than MATLAB's bicubic
    they have its name, too. Where there are low-resolution pictures alone, there are none.

    Raises:
        ValueError: A folder is missing or empty, holds small versions of photographs too, or `out`
            lies in it, a store is damaged or of another scale, a photograph is not usable, or two
            folders have the same name.
    """
    if isinstance(options, TrainOptions) and options.low_only and not options.val_dir:
        return {}
    return {
        _named(name, scale, options): ValidationSet(scale, pairs)
        for scale in options.scales
        for name, pairs in _photographs_of_scale(options, scale, progress).items()
    }


def made_sets(
    options: DataFreeOptions, teachers: Mapping[int, nn.Module]
) -> dict[str, ValidationSet]:
    """Procedural images that no student is trained on, with the teacher's pictures of them."""
    sets: dict[str, ValidationSet] = {}
    for scale, teacher in teachers.items():
        side = _MADE_SIDE // scale
        random = random_for(0, Draw.HELD_OUT)
        images = [to_uint8(i) for i in procedural_images(_MADE_COUNT, side, side, random)]
        pairs = [(low, picture(teacher, low)) for low in images]
        sets[_named(HELD_OUT_MADE, scale, options)] = ValidationSet(scale, pairs, of_teacher=True)
    return sets


def held_out_pictures(options: TrainOptions, progress: Progress) -> LowImages:
    """Check the low-resolution pictures that are not trained on, to measure a student on them.

    They are one in 20, at most 8, evenly spaced among all.

    Raises:
        ValueError: There is a single picture only, or one is not usable.
    """
    files = [path for path in find_to_train(options) if isinstance(path, Path)]
    smallest = _smallest_measured(options.scale) // options.scale
    images, bad = LowImages.checked(
        _held_out(files), options.scale, smallest, progress("held-out pictures")
    )
    if bad:
        raise ValueError(f"{bad_images_message(bad)}\nremove them, or give `val_dir`")
    return images


def held_out_sets(
    options: TrainOptions, teachers: Mapping[int, nn.Module], progress: Progress
) -> dict[str, ValidationSet]:
    """What a student is measured on that has no photographs: the teacher's pictures.

    Args:
        options: With low-resolution pictures alone.
        teachers: By scale.
        progress: Given a title, wraps an iteration over files to show how far it has come.

    Raises:
        ValueError: As `held_out_pictures`.
        NonFiniteError: What the teacher makes of one is not finite.
    """
    images, teacher = held_out_pictures(options, progress), teachers[options.scale]
    with evaluation_mode(teacher):
        shown = [picture(teacher, low) for low in images]
    pairs = Enlarged(images, shown)
    return {HELD_OUT_LOW: ValidationSet(options.scale, pairs, of_teacher=True)}


class Enlarged(Sequence[Pair]):
    """Low-resolution pictures with what a teacher makes of them."""

    def __init__(self, images: LowImages, shown: Sequence[Tensor]) -> None:
        """Take both."""
        self.images = images
        self.shown = shown
        self.paths = images.paths

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.shown)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        """`(low, high)`, uint8."""
        return self.images[index], self.shown[index]


def _pairs_in(folder: Path, low: Path, options: TrainOptions) -> list[GivenPair]:
    found = find_photographs(folder, options.scale, low, "`train_low_dir`")
    files = [path for path in found if isinstance(path, Path)]
    if len(files) < len(found):
        raise ValueError(
            f"`train_low_dir` {low}: {folder} is a store, which has low-resolution versions of its "
            "own; give the folder that it was made of, or leave `train_low_dir` out"
        )
    names = [path.relative_to(folder) for path in files]
    versions = match_low_resolution(names, folder, low, options.scale)
    pairs = zip(versions, files, strict=True)
    return [GivenPair(version, path, options.crop) for version, path in pairs]


def _held_out(files: Sequence[Path]) -> list[Path]:
    if len(files) < 2:
        raise ValueError(
            f"`train_low_dir` must hold two pictures or more, one of them to measure on, got "
            f"{len(files)}; or give photographs to measure on by `val_dir`"
        )
    count = min(max(len(files) // _EVERY, 1), _MOST)
    return [files[(2 * index + 1) * len(files) // (2 * count)] for index in range(count)]


def _remedy(refused: Sequence[BadImage], options: TrainOptions) -> str:
    ways = ["remove them"]
    if any(not image.is_small for image in refused):
        ways.append("leave them out with `bad_images` skip")
    if any(image.is_small for image in refused):
        ways.append("continue small ones by their mirror image with `small_images` pad")
        ways.append("leave small ones out with `small_images` skip")
        ways.append(f"take a smaller `patch_size` (now {options.patch_size})")
        if options.zoom_out_share:
            ways.append("`zoom_out_share` 0")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}"


def _named(name: str, scale: int, options: Options) -> str:
    return name if len(options.scales) == 1 else f"{name} x{scale}"


def _smallest_measured(scale: int) -> int:
    """Width and height that a photograph must have."""
    # SSIM needs a window of 11 pixels inside a border as wide as the scale, in whole cells.
    return math.ceil((2 * scale + 11) / scale) * scale


def _photographs_of_scale(
    options: Options, scale: int, progress: Progress
) -> dict[str, ImagePairs]:
    name = options.degradation if isinstance(options, TrainOptions) else BICUBIC.name
    degradation = degradation_of(name)
    note = "" if degradation is BICUBIC else f" ({degradation.label})"
    if not options.val_dir:
        photographs = builtin_photographs("validation")
        pairs = ImagePairs(photographs, scale, degradation=degradation)
        return {f"{BUILTIN_NAME}{note}": pairs}
    sets: dict[str, ImagePairs] = {}
    for folder in options.val_dir:
        found = find_photographs(folder, scale)
        check_apart(options.out, folder)
        name = folder.resolve().name + note * (not are_given(found))
        if name in sets:
            raise ValueError(
                f"`val_dir` has two folders called {folder.resolve().name!r}; rename one of them"
            )
        sets[name], bad = ImagePairs.checked(
            found,
            scale,
            _smallest_measured(scale),
            progress(name),
            check_stored=True,
            degradation=degradation,
        )
        if bad:
            raise ValueError(bad_images_message(bad))
    return sets
