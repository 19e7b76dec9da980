"""Where batches come from: photographs, crops with the teacher's maps, images that are made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mkdext._system.files import check_apart
from mkdext._system.saved_state import SavedState
from mkdext.data import (
    BUILTIN_NAME,
    BadImage,
    ImagePairs,
    StoredPair,
    bad_images_message,
    builtin_photographs,
    find_photographs,
)
from mkdext.data.patches import Sampler
from mkdext.metrics import to_uint8
from mkdext.synthesis import procedural_images
from mkdext.synthesis.randomness import Draw, drawn, random_for
from mkdext.training.data_free_options import DataFreeOptions, Options
from mkdext.training.image_maker import ImageMaker, require_different
from mkdext.training.options import TrainOptions
from mkdext.training.step import Batch
from mkdext.training.teacher_cache import FixedCrops, TeacherCache
from mkdext.training.validation import picture

Progress = Callable[[str], Callable[[Iterable[Path]], Iterable[Path]]]
"""Given a title, wraps an iteration over files to show how far it has come."""

HELD_OUT = "made images"
"""Name of the images on which a student is compared with its teacher meanwhile."""

_HELD_OUT_COUNT, _HELD_OUT_SIDE = 8, 96  # high-resolution pixels


class Source(ABC):
    """Makes the batch of each step, which depends on the seed and the step alone.

    A source may learn, too: what it has learned is kept with the student's checkpoint.
    """

    @abstractmethod
    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """The batches of steps `first` to `end - 1`, on the device."""

    def improve(self, step: int, students: Mapping[int, nn.Module]) -> dict[str, Tensor]:
        """Learn after a step, if it is time to.

        Args:
            step: Which one.
            students: By scale.

        Returns:
            Losses and the like by name, scalars.
        """
        return {}

    def check(self, values: Mapping[str, float]) -> None:
        """Look at the numbers of a step.

        Raises:
            TrainingFailed: Going on would lead nowhere.
        """
        return

    def end_part(self) -> None:
        """Called when the student is about to grow."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What `load` needs, to be kept in a checkpoint."""
        return {}

    def load(self, state: SavedState) -> None:
        """Put back what a checkpoint has kept.

        Raises:
            ValueError: It is of something else.
        """
        return


class Photographs(Source):
    """Random patches of photographs."""

    def __init__(
        self,
        sampler: Sampler,
        device: torch.device,
        layout: torch.memory_format,
        has_high: bool = True,
    ) -> None:
        """Take what cuts the patches.

        Args:
            sampler: Gives the low-resolution patches, those of high resolution where there are
                such, and the teacher's pictures where these are kept.
            device: Where to bring them.
            layout: In which layout.
            has_high: Whether there are high-resolution patches.
        """
        self.sampler = sampler
        self.device = device
        self.layout = layout
        self.has_high = has_high

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """Patches, made ahead by background threads."""
        made = self.sampler.batches(first, end)
        for low, *others in transferred(made, self.device, self.layout):
            high = others.pop(0) if self.has_high else None
            picture = others.pop() if others else None
            yield Batch(low, high, picture=picture, scale=self.sampler.scale)


class CachedCrops(Source):
    """A fixed set of crops, with the teacher's maps of them."""

    def __init__(self, crops: FixedCrops, cache: TeacherCache, layout: torch.memory_format) -> None:
        """Take the crops, the cache that is filled with their maps, and the layout of pictures."""
        self.crops = crops
        self.cache = cache
        self.layout = layout

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """Crops, and the maps as the teacher would give them."""
        # Looked up before they are sent, where a GPU is not waited for.
        numbered = enumerate(self.crops.batches(first, end), first)
        looked_up = ((low, high, self.cache.rows(step, low)) for step, (low, high) in numbered)
        for low, high, rows in transferred(looked_up, self.cache.device, self.layout):
            maps, shown = self.cache.taught(rows)
            yield Batch(low, high, maps, shown, self.crops.scale)


class Made(Source):
    """Images that are made by rules, by generators that learn where the student fails, or both."""

    def __init__(self, options: DataFreeOptions, makers: Mapping[int, ImageMaker]) -> None:
        """Take what makes the images of each scale."""
        self.options = options
        self.makers = makers
        self.least_diversity = min(maker.least_diversity for maker in makers.values())

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """Images of one scale in each step, as generators make them when they are asked for."""
        options = self.options
        for step in range(first, end):
            scale = drawn(options.scale, options.seed, Draw.SCALE, step)
            yield Batch(self.makers[scale].images(step), None, scale=scale)

    def improve(self, step: int, students: Mapping[int, nn.Module]) -> dict[str, Tensor]:
        """Let a generator take a step when it is due (Algorithm 1, lines 17 to 22)."""
        options = self.options
        if not options.trains_generator or (step + 1) % options.generator.every:
            return {}
        scale = drawn(options.scale, options.seed, Draw.GENERATION_SCALE, step)
        return self.makers[scale].improve(step, students[scale])

    def check(self, values: Mapping[str, float]) -> None:
        """Look whether a generator has collapsed.

        Raises:
            CollapseError: It has.
        """
        require_different(values, self.least_diversity)

    def end_part(self) -> None:
        """Fill the memory banks, where that is done once in a stage."""
        for maker in self.makers.values():
            maker.end_stage()

    def state_dict(self) -> dict[str, Any]:
        """Of the generators."""
        return {"makers": {scale: maker.state_dict() for scale, maker in self.makers.items()}}

    def load(self, state: SavedState) -> None:
        """Put the generators back.

        Raises:
            ValueError: The state is of something else.
        """
        for scale, maker in self.makers.items():
            maker.load(state.part("makers").part(scale))


class ValidationSet(NamedTuple):
    """Pictures to measure a student on."""

    scale: int
    pairs: Sequence[tuple[Tensor, Tensor]]
    """`(low, high)` each, uint8."""


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
    pairs, bad = ImagePairs.checked(
        found, options.scale, options.smallest_photograph, progress("training photographs")
    )
    if bad and options.bad_images == "refuse":
        raise ValueError(
            f"{bad_images_message(bad)}\nremove them, or leave them out with `bad_images` skip; "
            f"for small ones a smaller `patch_size` will do (now {options.patch_size})"
            + ", or `zoom_out_share` 0"
            * bool(options.zoom_out_share)
        )
    if not len(pairs):
        raise ValueError(f"`train_dir` holds no usable photograph:\n{bad_images_message(bad)}")
    return pairs, bad


def validation_sets(options: Options, progress: Progress) -> dict[str, ValidationSet]:
    """Check the photographs to measure on, by the name of their folder or store.

    Of several scales the names end with the scale.

    Raises:
        ValueError: A folder is missing or empty, holds small versions of photographs too, or `out`
            lies in it, a store is damaged or of another scale, a photograph is not usable, or two
            folders have the same name.
    """
    return {
        _named(name, scale, options): ValidationSet(scale, pairs)
        for scale in options.scales
        for name, pairs in _photographs_of_scale(options, scale, progress).items()
    }


def held_out_sets(
    options: DataFreeOptions, teachers: Mapping[int, nn.Module]
) -> dict[str, ValidationSet]:
    """Procedural images that no student is trained on, with the teacher's pictures of them."""
    sets: dict[str, ValidationSet] = {}
    for scale, teacher in teachers.items():
        side = _HELD_OUT_SIDE // scale
        random = random_for(0, Draw.HELD_OUT)
        images = [to_uint8(i) for i in procedural_images(_HELD_OUT_COUNT, side, side, random)]
        pairs = [(low, picture(teacher, low)) for low in images]
        sets[_named(HELD_OUT, scale, options)] = ValidationSet(scale, pairs)
    return sets


def _named(name: str, scale: int, options: Options) -> str:
    return name if len(options.scales) == 1 else f"{name} x{scale}"


def _photographs_of_scale(
    options: Options, scale: int, progress: Progress
) -> dict[str, ImagePairs]:
    if not options.val_dir:
        return {BUILTIN_NAME: ImagePairs(builtin_photographs("validation"), scale)}
    sets: dict[str, ImagePairs] = {}
    for folder in options.val_dir:
        found = find_photographs(folder, scale)
        check_apart(options.out, folder)
        name = folder.resolve().name
        if name in sets:
            raise ValueError(f"`val_dir` has two folders called {name!r}; rename one of them")
        # SSIM needs a window of 11 pixels inside a border as wide as the scale, in whole cells.
        smallest = math.ceil((2 * scale + 11) / scale) * scale
        sets[name], bad = ImagePairs.checked(
            found, scale, smallest, progress(name), check_stored=True
        )
        if bad:
            raise ValueError(bad_images_message(bad))
    return sets


_Tensors = tuple[Tensor, ...]


def transferred(
    batches: Iterable[_Tensors], device: torch.device, layout: torch.memory_format
) -> Iterator[_Tensors]:
    """Yield the batches on a device.

    For a GPU a thread makes the next batch and copies it, from pinned memory and on a stream of its
    own, while the GPU computes with this one: it waits for neither. The batches and their order are
    the same.

    Args:
        batches: Tensors in the memory of the processor, those `[B, C, H, W]` being pictures.
        device: Where to.
        layout: Of pictures.
    """
    if device.type != "cuda":
        for batch in batches:
            yield tuple(side.to(device, memory_format=_of(side, layout)) for side in batch)
        return
    yield from _prefetched(iter(batches), device, layout)


def _prefetched(
    batches: Iterator[_Tensors], device: torch.device, layout: torch.memory_format
) -> Iterator[_Tensors]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send() -> tuple[_Tensors, torch.cuda.Event] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            laid = (side.contiguous(memory_format=_of(side, layout)) for side in batch)
            pinned = (side.pin_memory() for side in laid)
            sent = tuple(side.to(device, non_blocking=True) for side in pinned)
            return sent, stream.record_event()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(send)
        while (arrival := coming.result()) is not None:
            coming = pool.submit(send)
            batch, copied = arrival
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for side in batch:
                side.record_stream(current)  # its memory is not given away before `current` is done
            yield batch


def _of(side: Tensor, layout: torch.memory_format) -> torch.memory_format:
    return layout if side.ndim == 4 else torch.contiguous_format
