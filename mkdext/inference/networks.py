"""Trained networks for the commands that use them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mkdext._system.device import checked_device
from mkdext._system.errors import is_out_of_memory
from mkdext._system.plugins import error_in_words, is_reference
from mkdext.inference.tiling import GLOBAL_OVERLAP, Costs, forward_costs, reach
from mkdext.models import (
    SuperResolver,
    load_model,
    load_own,
    load_recognised,
    read_metadata,
)
from mkdext.models.builtin import BUILTIN_NAMES, BUILTIN_SCALE, TEACHER, builtin_network
from mkdext.models.fusing import fused
from mkdext.models.handling import count_parameters, layout, placed, unwrapped
from mkdext.models.user.colours import with_found_colours
from mkdext.models.user.spandrel import is_of_spandrel, load_named


class EnlargementError(ValueError):
    """A network cannot enlarge a picture; the message says which one, of what size, and why."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, ready to enlarge pictures."""

    name: str
    """For tables: that of the weights file without its suffix."""
    model: SuperResolver
    """In evaluation mode, without gradients."""
    scale: int
    """Enlargement factor."""
    device: torch.device
    """Where it computes."""
    remark: str | None = None
    """What was found out about it and is to be told."""

    @property
    def architecture(self) -> str:
        """Class of the network, such as RCAN, or of the user's."""
        return type(unwrapped(self.model)).__name__

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return count_parameters(self.model)

    @functools.cached_property
    def costs(self) -> Costs:
        """Memory of a forward pass."""
        return forward_costs(self.model)

    @functools.cached_property
    def reach(self) -> int | None:
        """Low-resolution pixels that it looks beyond a pixel; none: at the whole picture."""
        return reach(self.model)

    @property
    def overlap(self) -> int:
        """Margin that a tile needs; for a network that looks at the whole picture a compromise."""
        return GLOBAL_OVERLAP if self.reach is None else self.reach

    @torch.inference_mode()
    def __call__(self, low: Tensor) -> Tensor:
        """Enlarge `[1, 3, h, w]` to `[1, 3, scale*h, scale*w]`, float32 in [0, 1] on the CPU.

        The result is not clipped.

        Raises:
            EnlargementError: As `enlarge`.
        """
        return self.enlarge(low).float().cpu()

    def enlarge(self, low: Tensor) -> Tensor:
        """Enlarge `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, differentiably, on its device.

        Raises:
            EnlargementError: The network fails at this size, or what it makes is no image, of
                another size or not finite.
        """
        # A copy, because networks of others may work in place.
        taken = low.to(self.device, torch.float32, memory_format=layout(self.model), copy=True)
        try:
            sr = self.model(taken)
        except (Exception, SystemExit) as error:  # Whatever a user's network may raise.
            if is_out_of_memory(error):
                raise
            raise self._error(low, error_in_words(error)) from error
        height, width = low.shape[2] * self.scale, low.shape[3] * self.scale
        if not isinstance(sr, Tensor) or not sr.is_floating_point():
            kind = sr.dtype if isinstance(sr, Tensor) else type(sr).__name__
            raise self._error(low, f"it makes no image of floating-point numbers, but {kind}")
        if sr.shape != (len(low), 3, height, width):
            raise self._error(
                low, f"it makes {list(sr.shape)} of it, not {[len(low), 3, height, width]}"
            )
        if not bool(sr.detach().isfinite().all()):
            raise self._error(low, "what it makes is not finite")
        return sr

    def _error(self, low: Tensor, reason: str) -> EnlargementError:
        size = f"{low.shape[3]}x{low.shape[2]} pixels"
        return EnlargementError(f"{self.name} cannot enlarge {size}: {reason}")


def load_network(
    weights: Path | None,
    scale: int | None = None,
    name: str | None = None,
    device: str = "cpu",
    size: tuple[int, int] | None = None,
) -> Network:
    """Load what `weights`, `scale`, `model` and `device` mean.

    Args:
        weights: A file that `load_recognised` understands, or any state dict of the network that
            `name` makes; none: the built-in network, which is for x4, or what the user's factory
            gives.
        scale: Enlargement factor that the network must have; default: that of its weights, or of
            a user's network the one found by running it.
        name: Network that the weights must be of, one of `MODEL_NAMES`, or a user's,
            `package.module:factory` or `file.py:factory`, or one of spandrel's; none: whatever
            network the weights are of.
        device: "cpu", "cuda" or "cuda:N".
        size: Height and width of the only pictures that a user's network must take; default: any.

    Raises:
        ValueError: The weights or the device cannot be used as asked, the user's network is not
            usable, or its scale is not known.

    Example:
        >>> load_network(None)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 32, 32])
    """
    place, remark = checked_device(device), None
    model = _loaded(weights, scale, name, size)
    if name is not None and is_reference(name) and not _is_of_ours(weights):
        model, remark = with_found_colours(model, "`model`")
    what = f"`model` {name}" if name else f"weights file {weights}"
    model = fused(model.eval(), what)
    placed(model.requires_grad_(False), place)
    title = weights.stem if weights else name.rpartition(":")[2] if name else "built-in"
    return Network(title, model, model.scale, place, remark)


def load_networks(
    files: Sequence[Path],
    scale: int | None = None,
    names: Sequence[str] = (),
    device: str = "cpu",
    reserved: Collection[str] = (),
) -> list[Network]:
    """Networks to compare: all for one scale, with different names.

    Args:
        files: Weights; default: those that the factories give, or the built-in network.
        scale: As for `load_network`.
        names: What the weights must be of, as for `load_network`: one for each file, or one for
            all; without files the users' networks themselves.
        device: As for `load_network`.
        reserved: Names that stand for something else.

    Raises:
        ValueError: One cannot be used, is given twice, or they are for different scales; or there
            are not as many names as files.

    Example:
        >>> [network.name for network in load_networks([])]
        ['built-in']
    """
    if not files and not names:
        return [load_network(None, scale, None, device)]
    networks: list[Network] = []
    for file, name in _pairs(files, names):
        network = load_network(file, scale, name, device)
        taken = {*reserved, *(other.name for other in networks)}
        # Every run calls its weights student.safetensors.
        if network.name in taken:
            longer = str(file.with_suffix("")) if file else str(name)
            network = dataclasses.replace(network, name=longer)
        if network.name in taken:
            given = f"`weights` {file}" if file else f"`model` {name}"
            raise ValueError(f"{given} is given twice")
        networks.append(network)
    scales = {network.scale for network in networks}
    if len(scales) > 1:
        raise ValueError(f"networks must be for one scale, got {sorted(scales)}; give `scale`")
    return networks


def _pairs(files: Sequence[Path], names: Sequence[str]) -> list[tuple[Path | None, str | None]]:
    """Weights with what they are of."""
    if not files:
        return [(None, name) for name in names]
    if len(names) < 2:
        return [(file, names[0] if names else None) for file in files]
    if len(names) != len(files):
        raise ValueError(
            f"`model` must be named once for all `weights`, or once for each of the {len(files)}, "
            f"got {len(names)}: {', '.join(names)}"
        )
    return list(zip(files, names, strict=True))


def _loaded(
    weights: Path | None, scale: int | None, name: str | None, size: tuple[int, int] | None
) -> SuperResolver:
    if name is not None and is_reference(name) and not is_of_spandrel(name):
        return load_own(name, weights, scale, "`model`", size)
    if weights is None:
        if name not in (None, *BUILTIN_NAMES):
            raise ValueError(
                f"`model` {name} needs `weights` FILE; built in are {' and '.join(BUILTIN_NAMES)}"
            )
        if scale not in (None, BUILTIN_SCALE):
            raise ValueError(
                f"the built-in networks are for scale {BUILTIN_SCALE} only, got `scale` {scale}; "
                f"give `weights` FILE of a network for scale {scale}"
            )
        return builtin_network(name or TEACHER)
    if name is not None and is_of_spandrel(name):
        return load_named(name, weights, scale, "`model`")
    try:
        return load_model(weights, scale, name) if name else load_recognised(weights, scale)
    except ValueError as error:
        if scale is None and str(error).endswith("say for which one"):
            raise ValueError(f"{error}, by `scale`") from None
        raise


def _is_of_ours(weights: Path | None) -> bool:
    """Whether weights were trained here, for the usual colours."""
    return weights is not None and read_metadata(weights) is not None
