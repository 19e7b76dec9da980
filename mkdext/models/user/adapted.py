"""A user's own network behind the interface of the networks here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
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
from mkdext.models.user.interface import Colours, Interface, Sizes, picture_in

# Neither square nor even: what is measured are whole photographs.
PROBE = (17, 19)
_MULTIPLES = 1, 2, 4, 8, 16, 32, 64  # of pixels, that a network may take only
_WHITE, _BLACK = 235, 16  # levels of Y


class AdaptedNetwork(SuperResolver):
    """A user's network, of colours or of Y, of small or enlarged images, as one of small colours.

    Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1]. What is to be enlarged is
    enlarged by MATLAB's bicubic. Y is MATLAB's (16-235) divided by 255; the other channels of
    YCbCr are those of the enlarged image. The network gets its images in PyTorch's own layout,
    because code that was written for it may not run in another.
    """

    def __init__(self, network: nn.Module, scale: int, interface: Interface) -> None:
        """Take a network, and what it takes and gives."""
        super().__init__()
        self.network = network
        self.scale = scale
        self.interface = interface
        self.changes_luma_alone = interface.channels == 1
        self.training = network.training

    def forward(self, low: Tensor) -> Tensor:
        """Super-resolve `low`."""
        run, network = self.interface.run, self.network
        if self.interface.channels == 3:
            taken = imresize(low, self.scale) if self.interface.enlarged else low
            return run(network, taken, self.scale)
        large = imresize(low, self.scale)
        luma = luma_picture(large if self.interface.enlarged else low)
        change = run(network, luma, self.scale) - luma_picture(large)
        # In YCbCr a change of Y alone is the same change of red, green and blue.
        colours: Tensor = large + change * (255 / (_WHITE - _BLACK))
        return colours

    @property
    def unwrapped(self) -> nn.Module:
        """The user's network."""
        return self.network

    def at_scale(self, scale: int) -> AdaptedNetwork | None:
        """The same network at another scale, if it sharpens what was enlarged before."""
        if not self.interface.enlarged:
            return None
        return AdaptedNetwork(self.network, scale, self.interface)

    def with_colours(self, colours: Colours) -> AdaptedNetwork:
        """The same network, taken for one of other colours."""
        interface = dataclasses.replace(self.interface, colours=colours)
        return AdaptedNetwork(self.network, self.scale, interface)

    def for_export(self) -> nn.Module:
        """The user's network, between convolutions for bicubic and colours if needed."""
        if self.interface == Interface():
            return self.network
        return ExportedAdapted(self.network, self.scale, self.interface)

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

    A network that fails on the image may take multiples of 2, 4, ... 64 pixels only: then images
    are padded, and its result is cut. Of several results the first picture is taken.

    Args:
        network: A network of RGB or of Y images, that enlarges them `scale` times or sharpens
            images enlarged before, in [0, 1].
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
    given: dict[int, Tensor | type | str] = {}
    for channels, sizes, sides in _trials(probe):
        result = _run(network, channels, sides)
        picture = picture_in(result, channels)
        if sizes == Sizes():
            given[channels] = picture if isinstance(picture, Tensor | str) else type(result)
        if not isinstance(picture, Tensor):
            continue
        for enlarged, factor in ((False, scale), (True, 1)):
            if picture.shape == (1, channels, *(side * factor for side in sides)):
                _check_numbers(picture, [1, channels, *sides], what)
                if isinstance(network, SRNetwork):
                    return network
                several = picture is not result
                interface = Interface(channels, enlarged, sizes=sizes, first_of_several=several)
                return _for_batches(AdaptedNetwork(network, scale, interface), probe)
    raise ValueError(_misfit(network, scale, what, probe, given, any_size=size is None))


def adapt_as(network: nn.Module, scale: int, what: str, interface: Interface) -> AdaptedNetwork:
    """A network of which is known what it takes and gives.

    Raises:
        ValueError: It fails, or gives another size, integers, or numbers that are not finite.
    """
    _check_has_numbers(network, what)
    adapted = AdaptedNetwork(network, scale, interface)
    result, image = _run(adapted, 3, PROBE), [1, 3, *PROBE]
    if isinstance(result, str):
        raise ValueError(f"{what} fails on an image {image}: {result}")
    if not isinstance(result, Tensor) or result.shape != (1, 3, *(side * scale for side in PROBE)):
        got = list(result.shape) if isinstance(result, Tensor) else result.__name__
        raise ValueError(f"{what} does not enlarge an image {image} x{scale}, but gives {got}")
    _check_numbers(result, image, what)
    return _for_batches(adapted, PROBE)


def _for_batches(adapted: AdaptedNetwork, probe: tuple[int, int]) -> AdaptedNetwork:
    """The network, given images one by one if it fails on two at once."""
    if not isinstance(_run(adapted, 3, probe, samples=2), str):
        return adapted
    interface = dataclasses.replace(adapted.interface, one_by_one=True)
    return AdaptedNetwork(adapted.network, adapted.scale, interface)


def found_scale(network: nn.Module) -> int | None:
    """How many times a network enlarges, found by running it; none: not at all, or it fails.

    Example:
        >>> found_scale(nn.PixelShuffle(1)), found_scale(nn.Upsample(scale_factor=3))
        (None, 3)
    """
    if isinstance(network, SuperResolver):
        return network.scale
    for channels, _, sides in _trials(PROBE):
        picture = picture_in(_run(network, channels, sides), channels)
        if isinstance(picture, Tensor) and picture.ndim == 4 and picture.shape[1] == channels:
            factor = picture.shape[2] // sides[0]
            if factor > 1 and picture.shape[2:] == tuple(side * factor for side in sides):
                return factor
    return None


def _trials(probe: tuple[int, int]) -> Iterator[tuple[int, Sizes, tuple[int, int]]]:
    """What a network may take: channels, sizes, and height and width of an image of these."""
    for multiple in _MULTIPLES:
        sizes = Sizes(multiple)
        sides = sizes.fitting(*probe)
        if multiple == 1 or sides != probe:
            yield from ((channels, sizes, sides) for channels in (3, 1))


def _misfit(
    network: nn.Module,
    scale: int,
    what: str,
    probe: tuple[int, int],
    given: Mapping[int, Tensor | type | str],
    any_size: bool,
) -> str:
    """Why a network cannot be used, from what it gave for images of 3 channels and of one."""
    # What it makes of an image that it does not fail on tells more.
    channels = 1 if isinstance(given[3], str) and not isinstance(given[1], str) else 3
    image, result = [1, channels, *probe], given[channels]
    if isinstance(result, str):
        rule = ", it must take any size, or multiples of 2, 4, ... 64" if any_size else ""
        return f"{what} fails on an image {image}{rule}: {result}{_of_other_numbers(network)}"
    got = list(result.shape) if isinstance(result, Tensor) else result.__name__
    large, found = [side * scale for side in probe], found_scale(network)
    hint = f"; it enlarges {found} times: `scale` {found}" if found not in (None, scale) else ""
    return (
        f"{what} must turn an image {image} into {[1, channels, *large]}, or into its own size if "
        f"it sharpens enlarged images, at scale {scale}; got {got}{hint}"
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


def _run(network: nn.Module, channels: int, size: tuple[int, int], samples: int = 1) -> Any:
    """The result, or the error in words."""
    like = next(network.parameters(), torch.empty(0))
    try:
        with evaluation_mode(network), torch.no_grad():
            result = network(probe_image(samples, channels, like.device, size))
    except (Exception, SystemExit) as error:  # Whatever code of others may raise.
        return error_in_words(error)
    return result


def probe_image(
    samples: int, channels: int, device: torch.device, size: tuple[int, int] = PROBE
) -> Tensor:
    """Images to try a network on, `[samples, channels, *size]`, all colours from 0 to 1."""
    shape = samples, channels, *size
    return torch.linspace(0, 1, math.prod(shape), device=device).view(shape)
