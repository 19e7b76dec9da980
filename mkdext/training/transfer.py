"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]


def transferred(
    batches: Iterable[Batch], device: torch.device, layout: torch.memory_format
) -> Iterator[Batch]:
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
    batches: Iterator[Batch], device: torch.device, layout: torch.memory_format
) -> Iterator[Batch]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send() -> tuple[Batch, torch.cuda.Event] | None:
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
