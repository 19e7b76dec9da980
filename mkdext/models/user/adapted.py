"""A user's own network behind the interface of the networks here."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.plugins import error_in_words
from mkdext.data import imresize
from mkdext.metrics import luma_picture
from mkdext.models.blocks import SRNetwork, SuperResolver
from mkdext.models.handling import evaluation_mode
from mkdext.models.user.exported import ExportedAdapted

# Neither square nor even: what is measured are whole photographs.
PROBE = (17, 19)
_WHITE, _BLACK = 235, 16  # levels of Y


class AdaptedNetwork(SuperResolver):
    """A user's network, of colours or of Y, of small or enlarged images, as one of small colours.

    Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1]. What is to be enlarged is
    enlarged by MATLAB's bicubic. Y is MATLAB's (16-235) divided by 255; the other channels of
    YCbCr are those of the enlarged image. The network gets its images in PyTorch's own layout,
    because code that was written for it may not run in another.
    """

    def __init__(self, network: nn.Module, scale: int, channels: int, enlarged: bool) -> None:
        """Take a network of `channels` (1: Y, 3: RGB) that wants its input `enlarged` or not."""
        super().__init__()
        self.network = network
        self.scale = scale
        self.channels = channels
        self.changes_luma_alone = channels == 1
        self.enlarged = enlarged
        self.training = network.training

    def forward(self, low: Tensor) -> Tensor:
        """Super-resolve `low`."""
        # A copy, because code of others may work in place on what it is given.
        low = low.clone(memory_format=torch.contiguous_format)
        if self.channels == 3:
            sr: Tensor = self.network(imresize(low, self.scale) if self.enlarged else low)
            return sr
        large = imresize(low, self.scale)
        change = self.network(luma_picture(large if self.enlarged else low)) - luma_picture(large)
        # In YCbCr a change of Y alone is the same change of red, green and blue.
        colours: Tensor = large + change * (255 / (_WHITE - _BLACK))
        return colours

    @property
    def unwrapped(self) -> nn.Module:
        """The user's network."""
        return self.network

    def at_scale(self, scale: int) -> AdaptedNetwork | None:
        """The same network at another scale, if it sharpens what was enlarged before."""
        if not self.enlarged:
            return None
        return AdaptedNetwork(self.network, scale, self.channels, enlarged=True)

    def for_export(self) -> nn.Module:
        """The user's network, between convolutions for bicubic and colours if needed."""
        if self.channels == 3 and not self.enlarged:
            return self.network
        return ExportedAdapted(self.network, self.scale, self.channels, self.enlarged)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take weights of the network itself, without this around it, as well."""
        given = [name for name in state_dict if name.startswith(prefix)]
        if {name.removeprefix(prefix) for name in given} == self.network.state_dict().keys():
            for name in given:
                own = f"{prefix}network.{name.removeprefix(prefix)}"
                state_dict[own] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def adapt(
    network: nn.Module, scale: int, what: str, size: tuple[int, int] | None = None
) -> SuperResolver:
    """Find out, by running it on a small image, what a network takes, and give it that.

    Args:
        network: A network of RGB or of Y images, that enlarges them `scale` times or sharpens
            images enlarged before, of any size, in [0, 1].
        scale: Enlargement factor.
        what: Names the network in error messages.
        size: Height and width of the only images that it must take; default: any.

    Returns:
        A map from `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`: `network` itself if it is one of
        this package, otherwise an `AdaptedNetwork` that holds it.

    Raises:
        ValueError: The network fails on such images, or gives another size, integers, or numbers
            that are not finite.

    Example:
        >>> adapt(nn.Conv2d(1, 1, 3, padding=1), scale=2, what="`student`")(
        ...     torch.rand(1, 3, 8, 7)
        ... ).shape
        torch.Size([1, 3, 16, 14])
    """
    _check_has_numbers(network, what)
    probe = size or PROBE
    large = tuple(side * scale for side in probe)
    given: dict[int, Tensor | type | str] = {}
    for channels in (3, 1):
        result = given[channels] = _run(network, channels, probe)
        for enlarged, sides in ((False, large), (True, probe)):
            if isinstance(result, Tensor) and result.shape == (1, channels, *sides):
                _check_numbers(result, [1, channels, *probe], what)
                if isinstance(network, SRNetwork):
                    return network
                return AdaptedNetwork(network, scale, channels, enlarged)
    # What it makes of an image that it does not fail on tells more.
    channels = 1 if isinstance(given[3], str) and not isinstance(given[1], str) else 3
    image, result = [1, channels, *probe], given[channels]
    if isinstance(result, str):
        rule = "" if size else ", it must take any size"
        raise ValueError(
            f"{what} fails on an image {image}{rule}: {result}{_of_other_numbers(network)}"
        )
    got = list(result.shape) if isinstance(result, Tensor) else result.__name__
    raise ValueError(
        f"{what} must turn an image {image} into {[1, channels, *large]}, or into its own size if "
        f"it sharpens enlarged images, at scale {scale}; got {got}"
    )


def _check_has_numbers(network: nn.Module, what: str) -> None:
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"{what} has no numbers in {name}, which is on the meta device")
        if tensor.is_inference():
            raise ValueError(
                f"{what} was made in torch.inference_mode, where nothing can be trained or moved; "
                "make it outside"
            )


def _of_other_numbers(network: nn.Module) -> str:
    """What to do about parameters that float32 images do not go with, where there are such."""
    for name, tensor in network.named_parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            return f"; {name} is of {tensor.dtype}, give what network.float() returns"
    return ""


def _check_numbers(result: Tensor, image: list[int], what: str) -> None:
    if not result.is_floating_point():
        raise ValueError(
            f"{what} must give colours in [0, 1] as floating point numbers, got {result.dtype}"
        )
    if not result.isfinite().all():
        raise ValueError(
            f"{what} gives NaN or infinite numbers for an image {image} of colours in [0, 1]; look "
            "at its weights"
        )


def _run(network: nn.Module, channels: int, size: tuple[int, int]) -> Tensor | type | str:
    """The result, the type of one that is no tensor, or the error in words."""
    like = next(network.parameters(), torch.empty(0))
    try:
        with evaluation_mode(network), torch.no_grad():
            result = network(probe_image(1, channels, like.device, size))
    except (Exception, SystemExit) as error:  # Whatever code of others may raise.
        return error_in_words(error)
    return result if isinstance(result, Tensor) else type(result)


def probe_image(
    samples: int, channels: int, device: torch.device, size: tuple[int, int] = PROBE
) -> Tensor:
    """Images to try a network on, `[samples, channels, *size]`, all colours from 0 to 1."""
    shape = samples, channels, *size
    return torch.linspace(0, 1, math.prod(shape), device=device).view(shape)
