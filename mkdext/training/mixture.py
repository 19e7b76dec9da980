"""Samples of a batch that are no ordinary patches: zoomed photographs and made images.

Nobody has photographed larger versions of them, so the teacher's picture is their target (DUKD,
arXiv 2309.14162). A batch stays a function of the seed and the step alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mkdext._system.device import sent
from mkdext._system.processes import processes
from mkdext.data.patches import Sampler
from mkdext.metrics import to_uint8
from mkdext.synthesis import procedural_images
from mkdext.synthesis.randomness import Draw, random_for
from mkdext.training.sources import Source
from mkdext.training.step import Batch

_BLOCK = 16  # images of a pool that are made together


class Mixture(Source):
    """Ordinary patches, and after them in each batch those of other sources."""

    def __init__(self, ordinary: Source, others: Sequence[Source]) -> None:
        """Take the sources; only the first knows high-resolution patches."""
        self.sources = [ordinary, *others]

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """The batches of all sources, joined."""
        for parts in zip(*(s.batches(first, end) for s in self.sources), strict=True):
            shown = [part.picture for part in parts if part.picture is not None]
            yield parts[0]._replace(
                low=torch.cat([part.low for part in parts]),
                picture=torch.cat(shown) if len(shown) == len(parts) else None,
            )


class Recoloured(Source):
    """Batches whose channels are permuted and, half of them, inverted (1 - x), at random.

    Both can be undone, so a picture may be changed as its low-resolution version is: the teacher's
    too, where it is known already. A teacher that enlarges the batch later sees the changed images.
    """

    def __init__(
        self, source: Source, seed: int, layout: torch.memory_format, batch_size: int
    ) -> None:
        """Take what makes the batches, the seed of the changes, and the layout of pictures.

        Where several processes share a batch, the source makes the rows of this one.
        """
        self.source = source
        self.seed = seed
        self.batch_size = batch_size
        self.layout = layout

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """Those of the source, each sample with other colours, the same in all its versions."""
        for step, batch in enumerate(self.source.batches(first, end), first):
            count, random = self.batch_size, random_for(self.seed, Draw.COLOURS, step)
            rows = processes().rows(count)
            order = torch.rand(count, 3, generator=random).argsort(1)[rows, :, None, None]
            inverted = torch.rand(count, 1, 1, 1, generator=random)[rows] < 0.5
            changes = sent(order, batch.low.device), sent(inverted, batch.low.device)
            low, high, picture = (
                None if images is None else self._recoloured(images, *changes)
                for images in (batch.low, batch.high, batch.picture)
            )
            assert low is not None
            yield batch._replace(low=low, high=high, picture=picture)

    def _recoloured(self, images: Tensor, order: Tensor, inverted: Tensor) -> Tensor:
        """The first images of a batch in other colours, `[N, 3, h, w]`."""
        order, inverted = order[: len(images)], inverted[: len(images)]
        images = images.take_along_dim(order, 1)
        images = torch.where(inverted, 1 - images, images)
        return images.contiguous(memory_format=self.layout)


class MadePatches(Sampler):
    """New procedural images in every step, in 8-bit levels as photographs are."""

    def __init__(
        self, scale: int, size: int, count: int, seed: int, rows: slice = slice(None)
    ) -> None:
        """Make `count` images of `size` x `size` pixels a step, to be enlarged `scale` times.

        Of these only `rows` are given, where several processes share them.
        """
        self.scale = scale
        self.size = size
        self.count = count
        self.seed = seed
        self.rows = rows

    def batch(self, step: int) -> tuple[Tensor]:
        """`[count, 3, size, size]` in [0, 1], or those of its rows that are given."""
        random = random_for(self.seed, Draw.MIXED_IN, step)
        images = procedural_images(self.count, self.size, self.size, random)
        return (to_uint8(images[self.rows]) / 255,)


class MadeImages:
    """A fixed sequence of procedural images, the same for every training."""

    def __init__(self, size: int) -> None:
        """Make images of `size` x `size` pixels."""
        self.size = size
        self._block = functools.lru_cache(1)(self._made)

    def image(self, index: int) -> Tensor:
        """One of them, uint8 `[3, size, size]`."""
        return self._block(index // _BLOCK)[index % _BLOCK]

    def _made(self, block: int) -> Tensor:
        random = random_for(0, Draw.POOL, block)
        return to_uint8(procedural_images(_BLOCK, self.size, self.size, random))
