"""Low-resolution images made from nothing, so that a student can learn without a photograph.

Each kind shares something with photographs: noise their spectrum, dead leaves edges and occlusion.
Colours, contrast, shapes and sizes are all random. Nothing is read from a disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mkdext._system.near_names import did_you_mean
from mkdext.data import imresize

_BLOCK = 16  # images made at once: enough to hide the cost of calls, few enough for the caches
_OVERSAMPLING = 2  # shapes are drawn this much larger, so that edges are reduced as photographs are
_RADII = 1.0, 32.0  # of leaves, in pixels
_SIZES = 64  # steps in which the density of radii is tabulated
_LAYERS = 3  # leaves above one another, on average
_ASPECTS = 0.25, 1.0  # width over length


def procedural_images(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    mixture: Mapping[str, float] | None = None,
) -> Tensor:
    """Make images, each of a kind drawn at random.

    The same arguments and the same state of the generator give the same images on the same
    machine. Of a larger count the first are the same, in whole blocks of 16.

    Args:
        count: How many.
        height: In pixels.
        width: In pixels.
        generator: Where all that is random comes from; its device is that of the images.
        mixture: Share of each kind, one of `PROCEDURAL_KINDS`, in any unit; default: `MIXTURE`.

    Returns:
        `[count, 3, height, width]`, float32 in [0, 1].

    Raises:
        ValueError: A size is not positive, or the mixture has an unknown kind, a share that is
            negative or not finite, or none that is positive.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> procedural_images(5, 24, 32, generator).shape
        torch.Size([5, 3, 24, 32])
    """
    shares = MIXTURE if mixture is None else mixture
    _check(count, height, width, shares)
    kinds = list(shares)
    weights = torch.tensor(list(shares.values()), dtype=torch.float64, device=generator.device)
    images = torch.empty(count, 3, height, width, device=generator.device)
    for block in torch.split(images, _BLOCK):
        drawn = torch.multinomial(weights, len(block), replacement=True, generator=generator)
        for index, kind in enumerate(kinds):
            where = torch.nonzero(drawn == index).flatten()
            if len(where):
                block[where] = PROCEDURAL_KINDS[kind](len(where), height, width, generator)
    return images


def coloured_noise(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    exponents: tuple[float, float] = (0.8, 1.6),
) -> Tensor:
    """Gaussian noise whose amplitude falls with frequency as f^-a, as in photographs.

    The three channels are correlated, by a random amount.

    Args:
        count: How many images.
        height: In pixels.
        width: In pixels.
        generator: Where all that is random comes from.
        exponents: Least and greatest `a`; that of an image is drawn between them.

    Returns:
        `[count, 3, height, width]`, float32 in [0, 1].

    Example:
        >>> coloured_noise(2, 24, 24, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 24, 24])
    """
    mean = _uniform(generator, 0.15, 0.85, count, 1, 1, 1)
    mean = mean + 0.08 * _normal(generator, count, 3, 1, 1)
    contrast = _uniform(generator, 0.05, 0.3, count, 1, 1, 1)
    return (mean + contrast * _texture(count, height, width, generator, exponents)).clamp_(0, 1)


def dead_leaves(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Ellipses and rectangles that hide one another, each with a gradient and a texture.

    The number of leaves of radius r falls as r^-3, so that each octave of sizes covers as much as
    any other (Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001). They are
    drawn larger and reduced by MATLAB's bicubic, so that their edges are those of a photograph made
    small. An image is a window on an endless plane: its border has no special place.

    Args:
        count: How many images.
        height: In pixels.
        width: In pixels.
        generator: Where all that is random comes from.

    Returns:
        `[count, 3, height, width]`, float32 in [0, 1].

    Example:
        >>> dead_leaves(2, 24, 24, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 24, 24])
    """
    rows, columns = height * _OVERSAMPLING, width * _OVERSAMPLING
    smallest, largest = (radius * _OVERSAMPLING for radius in _RADII)
    leaves = _scatter(count, rows, columns, smallest, largest, generator)
    paint = _paint(leaves, rows, columns, largest, generator)
    seen = _topmost(leaves, rows, columns, smallest, largest)
    shown = paint.flatten(0, 1).T.contiguous()[:, seen]
    y, x = (torch.arange(side, device=generator.device) + 0.5 for side in (rows, columns))
    colour = shown[:3] + shown[3] * y[:, None] + shown[4] * x
    layers = imresize(torch.cat([colour, shown[5:]]), 1 / _OVERSAMPLING).transpose(0, 1)
    texture = _texture(count, height, width, generator, exponents=(0.6, 1.4))
    return (layers[:, :3] + layers[:, 3:] * texture).clamp_(0, 1)


class _Leaves(NamedTuple):
    """Shapes on a plane, `[B, N]` each, a later one in front of an earlier one."""

    row: Tensor
    """Of the centre, in pixels."""
    column: Tensor
    radius: Tensor
    """Of the circle around the shape, in pixels."""
    angle: Tensor
    aspect: Tensor
    """Width over length, at most 1."""
    is_box: Tensor
    """True for a rectangle, False for an ellipse."""


def _scatter(
    count: int,
    height: int,
    width: int,
    smallest: float,
    largest: float,
    generator: torch.Generator,
) -> _Leaves:
    """Draw the leaves of an endless plane that may be seen in a window."""
    device = generator.device
    edges = torch.logspace(
        math.log2(smallest), math.log2(largest), _SIZES + 1, base=2, device=device
    )
    radii = (edges[1:] * edges[:-1]).sqrt()
    per_area = radii**-3 * edges.diff()
    # A leaf is seen if its centre is in the window or less than its radius beyond.
    seen = per_area * (height + 2 * radii) * (width + 2 * radii)
    number = math.ceil(_LAYERS * float(seen.sum() / (math.pi * radii**2 * per_area).sum()))
    size = torch.multinomial(seen, count * number, replacement=True, generator=generator)
    size = size.view(count, number)
    radius = edges[size] + edges.diff()[size] * _uniform(generator, 0, 1, count, number)
    row, column = (
        _uniform(generator, 0, 1, count, number) * (side + 2 * radius) - radius
        for side in (height, width)
    )
    angle = _uniform(generator, 0, math.pi, count, number)
    aspect = _uniform(generator, *_ASPECTS, count, number)
    is_box = _uniform(generator, 0, 1, count, number) < 0.5
    return _Leaves(row, column, radius, angle, aspect, is_box)


def _topmost(leaves: _Leaves, height: int, width: int, smallest: float, largest: float) -> Tensor:
    """Which leaf is seen at each pixel, `[B, H, W]`.

    That is an index into all images' leaves and backgrounds, `[B, 1 + N]` in a row, the background
    of an image coming first.
    """
    count, number = leaves.radius.shape
    flat = _Leaves(*(quantity.flatten() for quantity in leaves))
    device = flat.radius.device
    image = torch.arange(count, device=device).repeat_interleave(number)
    order = torch.arange(count * number, device=device) + image + 1
    background = torch.arange(count, device=device) * (number + 1)
    top = background.repeat_interleave(height * width)
    # The half axes of an ellipse, or those of a rectangle whose corners are on the circle.
    length = torch.where(flat.is_box, (1 + flat.aspect**2).rsqrt(), 1) * flat.radius
    breadth = length * flat.aspect
    cosine, sine = flat.angle.cos(), flat.angle.sin()
    along = torch.stack([sine, cosine]) / length
    across = torch.stack([cosine, -sine]) / breadth
    # Leaves of about one size are drawn together, each in a square that it fits in.
    groups = math.ceil(2 * math.log2(largest / smallest))
    group = (2 * (flat.radius / smallest).log2()).floor().clamp_(0, groups - 1)
    for index in range(groups):
        these = torch.nonzero(group == index).flatten()
        reach = smallest * 2 ** ((index + 1) / 2)
        sides = [min(side, 2 * math.ceil(reach) + 1) for side in (height, width)]
        y, x = (torch.arange(side, device=device) for side in sides)
        first_row, first_column = (
            (centre[these] - reach).floor().clamp_(0, whole - side)
            for centre, whole, side in zip(flat[:2], (height, width), sides, strict=True)
        )
        down = (first_row - flat.row[these] + 0.5)[:, None, None] + y[:, None]
        right = (first_column - flat.column[these] + 0.5)[:, None, None] + x
        u, v = (
            (axis[0, these, None, None] * down + axis[1, these, None, None] * right).abs_()
            for axis in (along, across)
        )
        is_box = flat.is_box[these, None, None]
        inside = torch.where(is_box, torch.maximum(u, v), u * u + v * v) < 1
        corner = (image[these] * height + first_row.long()) * width + first_column.long()
        pixels = corner[:, None, None] + (width * y[:, None] + x)
        drawn = torch.where(inside, order[these, None, None], 0)
        top.scatter_reduce_(0, pixels.flatten(), drawn.flatten(), "amax")
    return top.view(count, height, width)


def _paint(
    leaves: _Leaves, height: int, width: int, largest: float, generator: torch.Generator
) -> Tensor:
    """What each image's background and leaves look like, `[B, 1 + N, 6]`.

    That is red, green and blue at row 0 and column 0, their slope along rows and along columns,
    and the strength of the texture.
    """
    count, number = leaves.radius.shape
    background = torch.tensor([height / 2, width / 2, largest], device=generator.device)
    place = torch.stack(leaves[:3], dim=2)
    place = torch.cat([background.expand(count, 1, 3), place], dim=1)
    centre, radius = place[..., :2], place[..., 2:]
    mean = _uniform(generator, 0.25, 0.75, count, 1, 1) + 0.05 * _normal(generator, count, 1, 3)
    contrast = _uniform(generator, 0.08, 0.3, count, 1, 1)
    chroma = _uniform(generator, 0, 0.4, count, 1, 1)
    grey, tint = _normal(generator, count, 1 + number, 1), _normal(generator, count, 1 + number, 3)
    slope = 0.15 * _normal(generator, count, 1 + number, 2) / radius
    colour = mean + contrast * (grey + chroma * tint) - (slope * centre).sum(2, keepdim=True)
    roughness = 0.12 * _normal(generator, count, 1 + number, 1)
    return torch.cat([colour, slope, roughness], dim=2)


def _texture(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    exponents: tuple[float, float],
) -> Tensor:
    """Noise of mean 0 and about unit variance, nearly grey, `[B, 3, H, W]`."""
    grey = 1 + 0.2 * _normal(generator, count, 3, 1)
    chroma = _uniform(generator, 0, 0.5, count, 1, 1) * _normal(generator, count, 3, 2)
    noise = _noise(count, 3, height, width, generator, exponents)
    return (torch.cat([grey, chroma], dim=2) @ noise.flatten(2)).view_as(noise)


def _noise(
    count: int,
    channels: int,
    height: int,
    width: int,
    generator: torch.Generator,
    exponents: tuple[float, float],
) -> Tensor:
    """Independent 1/f noise of expected mean 0 and variance 1, `[B, C, H, W]`."""
    # A part of a larger square, because what a Fourier transform makes ends where it begins.
    rows, columns = 2 * height, 2 * width
    device = generator.device
    exponent = _uniform(generator, *exponents, count, 1, 1)
    frequency = torch.hypot(
        torch.fft.fftfreq(rows, device=device)[:, None],
        torch.fft.fftfreq(columns, device=device),
    )
    frequency[0, 0] = math.inf
    amplitude = frequency**-exponent
    amplitude = amplitude / amplitude.square().mean((1, 2), keepdim=True).sqrt()
    spectrum = torch.fft.rfft2(_normal(generator, count, channels, rows, columns))
    spectrum *= amplitude[:, None, :, : spectrum.shape[3]]
    noise: Tensor = torch.fft.irfft2(spectrum, s=(rows, columns))
    return noise[..., :height, :width]


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _check(count: int, height: int, width: int, mixture: Mapping[str, float]) -> None:
    if min(count, height, width) < 1:
        raise ValueError(
            "procedural_images: count, height and width must be positive, "
            f"got {count}, {height} and {width}"
        )
    for kind, share in mixture.items():
        if kind not in PROCEDURAL_KINDS:
            raise ValueError(
                f"procedural_images: mixture has {kind!r}, which is none of "
                f"{', '.join(PROCEDURAL_KINDS)}{did_you_mean(kind, PROCEDURAL_KINDS)}"
            )
        if not 0 <= share < math.inf:
            raise ValueError(
                f"procedural_images: the share of {kind} must be finite and not negative, "
                f"got {share}"
            )
    if not any(mixture.values()):
        raise ValueError("procedural_images: mixture must have a share above 0")


PROCEDURAL_KINDS: Mapping[str, Callable[[int, int, int, torch.Generator], Tensor]] = {
    "noise": coloured_noise,
    "leaves": dead_leaves,
}
"""What makes images of each kind: count, height, width, generator -> `[count, 3, h, w]`."""

MIXTURE: Mapping[str, float] = {"noise": 2, "leaves": 1}
"""Share of each kind where none is given; docs/results/data_free.md has the comparison."""
