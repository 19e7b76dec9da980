"""Where batches come from: photographs, crops with the teacher's maps, images that are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.saved_state import SavedState
from mkdext.data.patches import Sampler
from mkdext.synthesis.randomness import Draw, drawn
from mkdext.training.data_free_options import DataFreeOptions
from mkdext.training.image_maker import ImageMaker, require_different
from mkdext.training.step import Batch
from mkdext.training.teacher_cache import FixedCrops, TeacherCache


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
        looked_up = ((*sides, self.cache.rows(step, sides[0])) for step, sides in numbered)
        for low, *others, rows in transferred(looked_up, self.cache.device, self.layout):
            maps, shown = self.cache.taught(rows)
            high = others[0] if others else None
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
