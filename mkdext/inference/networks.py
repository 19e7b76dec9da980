"""Trained networks for the commands that use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mkdext._device import checked_device
from mkdext.models import SRNetwork, builtin_teacher, load_model


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, ready to enlarge pictures."""

    name: str
    """For tables: that of the weights file without its suffix."""
    model: nn.Module
    """In evaluation mode, without gradients."""
    scale: int
    """Enlargement factor."""
    device: torch.device
    """Where it computes."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.model.parameters())

    @torch.inference_mode()
    def __call__(self, lr: Tensor) -> Tensor:
        """Enlarge `[1, 3, h, w]` to `[1, 3, scale*h, scale*w]`, float32 in [0, 1] on the CPU.

        The result is not clipped.
        """
        # Convolutions are faster in this layout.
        lr = lr.to(self.device, torch.float32, memory_format=torch.channels_last)
        sr: Tensor = self.model(lr)
        return sr.cpu()


def load_network(
    weights: Path | None, scale: int | None = None, name: str | None = None, device: str = "cpu"
) -> Network:
    """Load what `--weights`, `--scale`, `--model` and `--device` mean.

    Args:
        weights: A file that `load_model` understands; none: the built-in network, which is for x4.
        scale: Enlargement factor that the network must have; none: that of its weights.
        name: Network that the weights must be of, one of `MODEL_NAMES`; none: any.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: The weights or the device cannot be used as asked.

    Example:
        >>> load_network(None)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 32, 32])
    """
    place = checked_device(device)
    if weights is None:
        if name is not None:
            raise ValueError(f"--model {name} needs --weights FILE")
        model = builtin_teacher() if scale is None else builtin_teacher(scale)
    else:
        try:
            model = load_model(weights, scale, name)
        except ValueError as error:
            if scale is None and str(error).endswith("say for which one"):
                raise ValueError(f"{error}, by --scale") from None
            raise
    assert isinstance(model, SRNetwork)  # The only ones that can be loaded.
    model.eval().requires_grad_(False).to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(weights.stem if weights else "built-in", model, model.scale, place)


def load_networks(
    files: Sequence[Path],
    scale: int | None = None,
    name: str | None = None,
    device: str = "cpu",
    reserved: Collection[str] = (),
) -> list[Network]:
    """Networks to compare: all for one scale, with different names.

    Args:
        files: Weights; none: the built-in network.
        scale: As for `load_network`.
        name: As for `load_network`.
        device: As for `load_network`.
        reserved: Names that stand for something else.

    Raises:
        ValueError: One cannot be used, is given twice, or they are for different scales.

    Example:
        >>> [network.name for network in load_networks([])]
        ['built-in']
    """
    if not files:
        return [load_network(None, scale, name, device)]
    networks: list[Network] = []
    for file in files:
        network = load_network(file, scale, name, device)
        taken = {*reserved, *(other.name for other in networks)}
        # Every run calls its weights student.safetensors.
        if network.name in taken:
            network = dataclasses.replace(network, name=str(file.with_suffix("")))
        if network.name in taken:
            raise ValueError(f"--weights {file} is given twice")
        networks.append(network)
    scales = {network.scale for network in networks}
    if len(scales) > 1:
        raise ValueError(f"networks must be for one scale, got {sorted(scales)}; give --scale")
    return networks
