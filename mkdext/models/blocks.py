"""What the networks share."""

from __future__ import annotations

import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mkdext.models.channels import COLOURS, STREAM, Channels
from mkdext.models.convolutions import Conv2d, SubPixelSequential, is_joinable, is_plain
from mkdext.models.weights.rgb_range import DIV2K_MEAN, RGB_RANGE, with_rgb_range
from mkdext.models.weights.shapes import renamed
from mkdext.ops.conv2d import conv2d, conv2d_algorithm

if TYPE_CHECKING:
    from typing_extensions import Self

SCALES = (2, 3, 4, 8)


class SuperResolver(nn.Module):
    """What is known of every network that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`.

    Colours are in [0, 1]. The commands ask the network and nobody else.
    """

    scale: int
    """Enlargement factor."""
    protocol: ClassVar[Literal["8bit", "float"]] = "8bit"
    """Whether its paper rounds pictures to 8 bits before it measures them."""
    changes_luma_alone: bool = False
    """Whether its pictures differ from the enlarged image in Y alone; what it cannot change does
    not count in a loss, see `loss_of`."""
    layout: ClassVar[torch.memory_format] = torch.contiguous_format
    """Of images and weights, in which it runs best of those that it can run in; a user's network
    may run in no other."""
    is_best_traced: ClassVar[bool] = False
    """Whether an export by tracing is more promising than one by `torch.export`."""

    @property
    def unwrapped(self) -> nn.Module:
        """The network as its author knows it."""
        return self

    def at_scale(self, scale: int) -> SuperResolver | None:
        """The network at another scale, sharing all weights; none: they serve for one scale."""
        return None

    def for_export(self) -> nn.Module:
        """The same function in operators that ONNX has, for images of any size."""
        return self


class SRNetwork(SuperResolver, ABC):
    """A network of this package.

    Its output is not clipped. It can be differentiated any number of times.

    Its file says all that is particular about it: sizes and their names (`register`), how weights
    are recognised (`infer`, `own_names`, `own_range`, `first_layers`), what its body is made of
    (`stages`, `part_count`, `name_in`, `widened`), what a smaller one takes over (`rows`,
    `channels`, `handed`), and what `SuperResolver` asks.
    """

    config: Any
    layout = torch.channels_last  # in which convolutions are faster
    is_best_traced = True  # in seconds, where torch.export takes a minute
    part_count: ClassVar[str] = "blocks"
    """What the number of the equal parts of the body is called in the configuration."""
    rows: ClassVar[Mapping[str, str]]
    """Modules that hold equal parts in a row, with a star for each number, and what the number of
    these parts is called in the configuration. What else they hold comes after the parts."""
    first_layers: ClassVar[tuple[str, ...]]
    """Weights of the first layer, by their names here and in other code bases."""
    muon_rate: ClassVar[float] = 4e-3
    """Learning rate that it is trained well at by Muon."""

    def __init__(self, config: Any, scale: int) -> None:
        """Keep the size.

        Raises:
            ValueError: `scale` is not 2, 3, 4 or 8.
        """
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"`scale` must be one of {', '.join(map(str, SCALES))}, got {scale}")
        self.config = config
        self.scale = scale

    def forward(self, low: Tensor) -> Tensor:
        """Super-resolve `low`.

        Raises:
            TypeError: `low` is of integers.
        """
        if not low.is_floating_point():
            # It would run, on colours 255 times too large.
            raise TypeError(
                f"{type(self).__name__}: low must be floating point in [0, 1], got {low.dtype}; "
                "divide it by 255"
            )
        return self.super_resolve(low)

    @abstractmethod
    def super_resolve(self, low: Tensor) -> Tensor:
        """What `forward` does with a floating point image."""

    @abstractmethod
    def stages(self) -> list[str]:
        """Names of the equal parts of the body, from the first to the last."""

    def distillation_points(self, count: int = 4) -> list[str]:
        """Names of the `count` evenly spaced parts of the body whose outputs are distilled.

        Raises:
            ValueError: The network has fewer than `count` parts.
        """
        stages = self.stages()
        if not 1 <= count <= len(stages):
            raise ValueError(f"distillation_points: count must be 1..{len(stages)}, got {count}")
        return [stages[part] for part in evenly_spaced(count, len(stages))]

    def with_parts(self, parts: int) -> Self:
        """A network like this one with a body of `parts` parts, with new random weights.

        Example:
            >>> from mkdext.models import create_model
            >>> create_model("edsr-s", scale=4).with_parts(2).stages()
            ['body.0', 'body.1']
        """
        config = dataclasses.replace(self.config, **{self.part_count: parts})
        return type(self)(config, self.scale)

    def name_in(self, other: SRNetwork, name: str) -> str | None:
        """What a sub-module or weight is called in the same network with other parts.

        Args:
            other: What `with_parts` makes.
            name: Of a sub-module, parameter or buffer of this network.

        Returns:
            The name; none if it belongs to a part that `other` has not.

        Example:
            >>> from mkdext.models import create_model
            >>> whole = create_model("rcan-a", scale=4)
            >>> half = whole.with_parts(2)
            >>> names = "body.1.body.0", "body.2", "body.4", "tail.0"
            >>> [whole.name_in(half, name) for name in names]
            ['body.1.body.0', None, 'body.2', 'tail.0']
        """
        missing = self.stages()[len(other.stages()) :]
        return None if any(is_within(name, part) for part in missing) else name

    def widened(self, name: str, trained: Tensor, new: Tensor) -> Tensor:
        """A weight of this network, trained in one with fewer parts.

        Args:
            name: Of the weight.
            trained: Its numbers there, smaller where it sees the outputs of all parts.
            new: Its numbers here, from which those for the outputs of the new parts are taken.
        """
        return trained

    def channels(self, layer: str) -> Channels:
        """What a layer writes and reads; the residual stream, where a network says nothing else."""
        stream = {STREAM: self.config.features}
        return Channels(stream, stream)

    def handed(self, name: str, weight: Tensor, config: Any) -> Tensor:
        """A weight of a network of another configuration as this one needs it."""
        return weight

    @classmethod
    def own_names(cls, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another code base under the names used here; others as they are."""
        return dict(weights)

    @classmethod
    def own_range(cls, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under own names, changed to be those of a network of 255 levels inside.

        Raises:
            ValueError: They are of one whose range cannot be told.
        """
        return dict(weights)

    @classmethod
    @abstractmethod
    def infer(cls, weights: Mapping[str, Tensor]) -> tuple[Any, int | None] | None:
        """Size and scale of the network that `weights` seem to be of, from names and shapes.

        Returns:
            The configuration and the scale, which is none where weights serve for every scale;
            none if they are of another architecture. That they are complete is not checked.
        """


def is_within(name: str, part: str) -> bool:
    """Whether a name is that of a sub-module or of what it holds.

    Example:
        >>> is_within("body.1.conv.weight", "body.1"), is_within("body.10", "body.1")
        (True, False)
    """
    return name == part or name.startswith(f"{part}.")


def evenly_spaced(count: int, of: int) -> list[int]:
    """Numbers of `count` of `of` parts in a row, with the last one.

    Example:
        >>> evenly_spaced(4, of=8)
        [1, 3, 5, 7]
    """
    return [math.ceil(i * of / count) - 1 for i in range(1, count + 1)]


def counterpart(network: SRNetwork, config: Any, name: str, spaced: bool = True) -> str:
    """The name of a module or weight in another network of the class, with other numbers of parts.

    What follows the parts corresponds to what follows them there.

    Args:
        network: The network.
        config: Of the other one.
        name: In the network.
        spaced: Whether the parts correspond to evenly spaced ones there, of which there must be as
            many or more; otherwise to those of the same numbers, which may not be there.

    Example:
        >>> from mkdext.models import create_model
        >>> student, teacher = (create_model(name, scale=4) for name in ("rcan-a", "rcan-b"))
        >>> counterpart(student, teacher.config, "body.3.body.0.body.2.weight")
        'body.3.body.3.body.2.weight'
        >>> counterpart(student, teacher.config, "body.3.body.1.weight")
        'body.3.body.4.weight'
    """
    own, row = list[str](), ""
    for part in name.split("."):
        sort = network.rows.get(row)
        if sort is None:
            own.append(part)
        else:
            parts, of = getattr(network.config, sort), getattr(config, sort)
            index = int(part)
            if index >= parts:
                index += of - parts
            elif spaced:
                index = evenly_spaced(parts, of)[index]
            own.append(str(index))
        row = f"{row}.{part if sort is None else '*'}".removeprefix(".")
    return ".".join(own)


class MeanShiftedNetwork(SRNetwork):
    """The frame of EDSR that others took over: head, body with a skip over all of it, tail.

    Inside, colours run from 0 to 255, less their mean, as in the official code.
    """

    first_layers = ("head.0.weight", "conv_first.weight")  # the latter in BasicSR

    def __init__(self, config: Any, scale: int) -> None:
        """Make a network with random weights.

        Raises:
            ValueError: `scale` is not 2, 3, 4 or 8.
        """
        super().__init__(config, scale)
        self.sub_mean = MeanShift(DIV2K_MEAN, -1)
        self.add_mean = MeanShift(DIV2K_MEAN, 1)
        self.head = nn.Sequential(conv3x3(3, config.features))
        self.add_body()
        self.tail = nn.Sequential(upsampler(config.features, scale), conv3x3(config.features, 3))

    def channels(self, layer: str) -> Channels:
        """As for any network; the upsampler has channels of its own."""
        enlarged = {"enlarged": self.config.features}
        channels = super().channels(layer)
        match layer:
            case "sub_mean" | "add_mean":
                return Channels(COLOURS, COLOURS)
            case "head.0":
                return channels._replace(reads=COLOURS)
            case "tail.0.0":
                return channels._replace(writes=enlarged)
            case "tail.1":
                return Channels(COLOURS, enlarged)
        return Channels(enlarged, enlarged) if is_within(layer, "tail") else channels

    @classmethod
    def own_range(cls, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same function of colours in [0, 1], of a network of 255 levels inside.

        The official code trains one of any range (`--rgb_range`), which its colour shifts tell.

        Raises:
            ValueError: The range is neither 1 nor 255.
        """
        return with_rgb_range(weights)

    @abstractmethod
    def add_body(self) -> None:
        """Make the layers between head and tail."""

    @abstractmethod
    def deep_features(self, shallow: Tensor) -> Tensor:
        """What the body makes of the head's features `[B, C, h, w]`: the same shape."""

    def super_resolve(self, low: Tensor) -> Tensor:
        """Head, body, tail."""
        shallow = self.head(self.sub_mean(low * RGB_RANGE))
        deep = self.deep_features(shallow) + shallow
        match [*self.tail.children(), self.add_mean]:
            case [enlarge, last, shift] if (
                is_plain(self.tail, nn.Sequential)
                and is_joinable(last)
                and is_plain(shift, MeanShift)
            ):
                return _colours(enlarge(deep), last, shift)
        sr: Tensor = self.add_mean(self.tail(deep))
        return sr / RGB_RANGE


class SequentialNetwork(MeanShiftedNetwork):
    """The frame with a body of equal parts in a row and a convolution after them."""

    @abstractmethod
    def parts(self) -> list[nn.Module]:
        """The parts of the body, made anew."""

    def add_body(self) -> None:
        """Make the parts and the convolution after them."""
        features = self.config.features
        self.body = nn.Sequential(*self.parts(), conv3x3(features, features))

    def deep_features(self, shallow: Tensor) -> Tensor:
        """Run the parts and the convolution after them."""
        deep: Tensor = self.body(shallow)
        return deep

    def stages(self) -> list[str]:
        """Names of the parts."""
        return [f"body.{part}" for part in range(len(self.body) - 1)]

    def name_in(self, other: SRNetwork, name: str) -> str | None:
        """As for any network; the convolution after the parts has the number after theirs."""
        end = f"body.{len(self.stages())}"
        if is_within(name, end):
            return f"body.{len(other.stages())}{name.removeprefix(end)}"
        return super().name_in(other, name)

    @staticmethod
    def from_basicsr(
        weights: Mapping[str, Tensor], parts: int, inside: Iterable[tuple[str, str]]
    ) -> dict[str, Tensor]:
        """Weights of BasicSR under the official names.

        BasicSR keeps the colour mean in its options; it is set to that of DIV2K, its default.

        Args:
            weights: Weights by BasicSR's names.
            parts: How many parts the body has.
            inside: How names inside of the parts are replaced, as `renamed` takes it.
        """
        frame = [
            (r"conv_first\.", "head.0."),
            (r"conv_after_body\.", f"body.{parts}."),
            (r"conv_last\.", "tail.1."),
            (r"upsample\.", "tail.0."),
        ]
        return renamed(weights, [*frame, *inside]) | _mean_shift_weights()


class MeanShift(nn.Module):
    """Adds `sign * 255 * mean` to each colour channel: `[B, 3, H, W]` -> `[B, 3, H, W]`.

    A fixed 1x1 convolution; its numbers are buffers, because checkpoints carry their own.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Sequence[float], sign: int) -> None:
        """Make the shift by `sign` times `mean` (in [0, 1])."""
        super().__init__()
        self.register_buffer("weight", torch.eye(3).view(3, 3, 1, 1))
        self.register_buffer("bias", sign * RGB_RANGE * torch.tensor(mean))

    def forward(self, image: Tensor) -> Tensor:
        """Shift the colours of `image`."""
        return nn.functional.conv2d(image, self.weight, self.bias)


def _colours(features: Tensor, last: Conv2d, shift: MeanShift) -> Tensor:
    """What the last convolution, the shift and a division by 255 make of features.

    The latter two would pass over the largest maps of all: where the convolution is ours they
    become a part of its weights.
    """
    if conv2d_algorithm(features, last.weight) == "stock" or last.bias is None:
        colours: Tensor = shift(last(features))
        return colours / RGB_RANGE
    mixed = shift.weight.flatten(1) / RGB_RANGE
    weight = torch.tensordot(mixed, last.weight, 1)
    return conv2d(features, weight, mixed @ last.bias + shift.bias / RGB_RANGE)


def _mean_shift_weights() -> dict[str, Tensor]:
    """The colour shifts by DIV2K's mean, by name, for checkpoints that leave them out."""
    return {
        f"{name}.{kind}": tensor
        for name, sign in (("sub_mean", -1), ("add_mean", 1))
        for kind, tensor in MeanShift(DIV2K_MEAN, sign).state_dict().items()
    }


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> Conv2d:
    """A 3x3 convolution that keeps the size of the map."""
    return Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


def channel_weights(features: int, reduction: int) -> nn.Sequential:
    """From one number a channel to its weight in (0, 1): `[B, C, 1, 1]` -> `[B, C, 1, 1]`."""
    return nn.Sequential(
        nn.Conv2d(features, features // reduction, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(features // reduction, features, 1),
        nn.Sigmoid(),
    )


def upsampler(features: int, scale: int, in_features: int | None = None) -> SubPixelSequential:
    """Sub-pixel convolutions that enlarge a map `scale` times, to `features` channels.

    The map has `in_features` channels, `features` if none.
    """
    factor = 3 if scale == 3 else 2
    stages: list[nn.Module] = []
    for _ in range(round(math.log(scale, factor))):
        stages += [conv3x3(in_features or features, factor**2 * features), nn.PixelShuffle(factor)]
        in_features = features
    return SubPixelSequential(*stages)


def check_sizes(config: Any) -> None:
    """Check that numbers of a configuration are of their kinds, finite, and make a network.

    Whole numbers tell the shapes of weights; those that are `float` do not.

    Raises:
        TypeError: One is of another kind.
        ValueError: A whole number is less than 1, or a reduction is impossible.
    """
    kind, shaping = type(config).__name__, _shaping(config)
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name not in shaping:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{kind}: {name} must be a number, got {value!r:.80}")
            if not abs(value) <= sys.float_info.max:
                raise ValueError(f"{kind}: {name} must be finite, got {str(value)[:80]}")
        elif isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{kind}: {name} must be a whole number, got {value!r:.80}")
        elif value < 1:
            raise ValueError(f"{kind}: {name} must be at least 1, got {value}")
    for name, value in shaping.items():
        if name.endswith("reduction") and shaping["features"] < value:
            raise ValueError(
                f"{kind}: features must be at least {name}={value}, got {shaping['features']}"
            )


def same_shapes(one: Any, other: Any) -> bool:
    """Whether networks of two configurations, of one architecture, have weights of the same shapes.

    Nothing is built: what a file says of its size may be of any size.
    """

    def shapes(config: Any) -> dict[str, Any]:
        sizes = _shaping(config)
        return {
            name: sizes["features"] // value if name.endswith("reduction") else value
            for name, value in sizes.items()
        }

    return shapes(one) == shapes(other)


def _shaping(config: Any) -> dict[str, Any]:
    """The numbers of a configuration on which the shapes of weights depend."""
    fields = dataclasses.fields(config)
    return {f.name: getattr(config, f.name) for f in fields if f.type not in (float, "float")}


def repetitions(config: Any) -> int:
    """How often the smallest block of a configuration is repeated in a network."""
    sizes = dataclasses.asdict(config)
    return math.prod(sizes.get(name, 1) for name in ("groups", "blocks", "layers"))
