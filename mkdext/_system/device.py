"""The device that a command was told to use, and the way there."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_device(name: str) -> torch.device:
    """Return the device of a `device` flag.

    Raises:
        ValueError: It is no CPU or CUDA device, or is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"`device` must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"`device` {name} does not exist ({torch.cuda.device_count()} CUDA devices); "
            "use `device` cpu"
        )
    return device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the processor's memory on a device; nothing waits until a GPU has it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
