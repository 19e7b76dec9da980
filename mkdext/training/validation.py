"""Measuring networks on photographs: a student meanwhile, and a teacher before a training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from mkdext._system.errors import is_out_of_memory
from mkdext._system.plugins import error_in_words
from mkdext.data import ImagePairs, builtin_photographs, imresize
from mkdext.metrics import mean_psnr, psnr_y, ssim_y, to_uint8
from mkdext.models import SRNetwork
from mkdext.models.handling import evaluation_mode
from mkdext.training.step import NonFiniteError, TrainingFailed

Upscaler = Callable[[Tensor], Tensor]
"""Maps `[1, 3, h, w]` in [0, 1] to `[1, 3, scale*h, scale*w]`."""


class Scores(TypedDict):
    """Means over the photographs of a set."""

    psnr_y: float
    """dB, of the photographs that are not met exactly; infinite if all are."""
    ssim_y: float
    """At most 1."""
    exact: NotRequired[list[str]]
    """Names of the photographs that are met exactly, where there are such."""


def measure(
    upscale: Upscaler,
    pairs: Iterable[tuple[Tensor, Tensor]],
    scale: int,
    names: Sequence[str] | None = None,
) -> Scores:
    """PSNR and SSIM on Y of what `upscale` makes, rounded to 8-bit levels, border of `scale`.

    Args:
        upscale: A network or `bicubic`.
        pairs: `(low, high)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`.
        scale: Enlargement factor.
        names: Of the photographs; none: their numbers from 0.

    Raises:
        NonFiniteError: What it makes of one is not finite.
        TrainingFailed: It fails on one, or makes another size of it.
    """
    psnr, ssim, exact = [], [], []
    for number, (low, high) in enumerate(pairs):
        name = names[number] if names else f"picture {number}"
        try:
            sr = picture(upscale, low)
            psnr.append(psnr_y(sr, high, scale))
            ssim.append(ssim_y(sr, high, scale))
        except NonFiniteError as error:
            raise NonFiniteError(f"{name}: {error}") from None
        except (Exception, SystemExit) as error:  # Whatever code of others may raise.
            if is_out_of_memory(error):
                raise
            size = f"{low.shape[2]}x{low.shape[1]} pixels"
            raise TrainingFailed(
                f"{name} of {size} in low resolution: {error_in_words(error)}"
            ) from error
        if math.isinf(psnr[-1]):
            exact.append(name)
    scores: Scores = {"psnr_y": mean_psnr(psnr)[0], "ssim_y": sum(ssim) / len(ssim)}
    return scores | {"exact": exact} if exact else scores


def names_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[str] | None:
    """Names of photographs, where they have any."""
    return [path.name for path in pairs.paths] if isinstance(pairs, ImagePairs) else None


@torch.no_grad()
def picture(upscale: Upscaler, low: Tensor) -> Tensor:
    """Enlarge one photograph.

    Args:
        upscale: A network or `bicubic`.
        low: uint8 `[3, h, w]`.

    Returns:
        uint8 `[3, scale*h, scale*w]`.

    Raises:
        NonFiniteError: What it makes is not finite.
    """
    like = next(upscale.parameters(), low) if isinstance(upscale, nn.Module) else low
    sr = upscale(low.to(like.device)[None].float() / 255)[0]
    if not bool(sr.isfinite().all()):
        raise NonFiniteError(f"the enlarged picture of {low.shape[2]}x{low.shape[1]} is not finite")
    return to_uint8(sr).cpu()


def bicubic(scale: int) -> Upscaler:
    """MATLAB's bicubic enlargement, the least a network must beat."""
    return lambda low: imresize(low, scale)


_SIDE = 48  # of a cutting, in low-resolution pixels
_COUNT = 3  # photographs of a set that are looked at
_CLEARLY = 0.5  # dB by which another range of colours cannot be better by chance
_EXACT = 60.0  # dB; where bicubic reaches that, nothing can be told

_OTHER_COLOURS: Mapping[str, Callable[[Upscaler], Upscaler]] = {
    "colours from 0 to 255": lambda f: lambda x: f(x * 255) / 255,
    "colours from -1 to 1": lambda f: lambda x: (f(x * 2 - 1) + 1) / 2,
    "colours from 0 to 1 and its result divided by 255": lambda f: lambda x: f(x) / 255,
    "colours in the order blue, green, red": lambda f: lambda x: f(x.flip(1)).flip(1),
    "colours from 0 to 255 in the order blue, green, red": (
        lambda f: lambda x: f(x.flip(1) * 255).flip(1) / 255
    ),
}
"""What a network may have been trained for instead: red, green and blue from 0 to 1."""

Crops = Sequence[tuple[Tensor, Tensor]]
"""Cuttings `(low, high)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`."""


class Strength(NamedTuple):
    """How well a teacher enlarges, in dB of PSNR-Y."""

    photographs: str
    """What it was measured on."""
    teacher: float
    bicubic: float


def require_strong_teacher(
    teacher: nn.Module, scale: int, sets: Mapping[str, Sequence[tuple[Tensor, Tensor]]]
) -> None:
    """Check that a teacher enlarges some photographs better than bicubic does.

    The middle of a few built-in photographs is measured and, where it is below bicubic there, of
    those given: a network for other pictures than photographs may be good for these alone.

    Args:
        teacher: Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].
        scale: Enlargement factor.
        sets: Pairs `(low, high)` to measure on by name, uint8.

    Raises:
        ValueError: It does not, or a network of the user's does clearly better when it is given
            colours in another range or order; the message tells what to try.
    """
    builtin = ImagePairs(builtin_photographs("validation"), scale)
    found: list[Strength] = []
    with evaluation_mode(teacher):
        for name, pairs in {"built-in photographs": builtin, **sets}.items():
            crops = _informative(pairs, scale)
            if not crops:
                continue
            ways = (_on_device_of(teacher), bicubic(scale))
            strength = Strength(name, *(_psnr(way, crops, scale) for way in ways))
            found.append(strength)
            if strength.teacher >= strength.bicubic:
                break
        is_weak = found[-1].teacher < found[-1].bicubic
        # The colours of networks of this package are known.
        if not is_weak and (len(found) > 1 or isinstance(teacher, SRNetwork)):
            return
        colours, reached = _best_colours(teacher, _informative(builtin, scale), scale)
    least = found[0].bicubic if is_weak else found[0].teacher + _CLEARLY
    if reached > least:
        remedy = (
            f"given {colours} it reaches {reached:.1f} dB, so let a factory of yours wrap it, that "
            "takes and gives red, green and blue from 0 to 1"
        )
    elif is_weak:
        remedy = (
            "check whether its weights were loaded (`teacher_weights`), whether it clamps its "
            "result, and for which pictures it was trained; other ranges (0 to 255, -1 to 1) and "
            "the other order of colours were tried and are no better"
        )
    else:
        return
    measured = "; ".join(
        f"{s.teacher:.1f} dB on {s.photographs}, bicubic {s.bicubic:.1f} dB" for s in found
    )
    raise ValueError(
        f"the teacher is worse than {'bicubic enlargement' if is_weak else 'it could be'} "
        f"({measured}): {remedy}. To learn from it as it is, for example because it was trained "
        "for other pictures or by a GAN: `allow_weak_teacher`"
    )


def _informative(pairs: Sequence[tuple[Tensor, Tensor]], scale: int) -> Crops:
    """The middles of the first photographs that bicubic does not meet exactly."""
    enlarge, crops = bicubic(scale), []
    for index in range(len(pairs)):
        crop = _middle(*pairs[index], scale)
        if psnr_y(picture(enlarge, crop[0]), crop[1], scale) < _EXACT:
            crops.append(crop)
        if len(crops) == _COUNT:
            break
    return crops


def _middle(low: Tensor, high: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    height, width = (min(side, _SIDE) for side in low.shape[1:])
    top, left = (low.shape[1] - height) // 2, (low.shape[2] - width) // 2
    rows, columns = slice(top * scale, (top + height) * scale), slice(left, left + width)
    return (
        low[:, top : top + height, columns],
        high[:, rows, left * scale : (left + width) * scale],
    )


def _psnr(upscale: Upscaler, crops: Crops, scale: int) -> float:
    """Of all cuttings together, so that one that is met exactly does not count for all."""
    return _pooled(psnr_y(picture(upscale, low), high, scale) for low, high in crops)


def _pooled(values: Iterable[float]) -> float:
    errors = [10 ** (-value / 10) for value in values]
    mean = sum(errors) / len(errors)
    return -10 * math.log10(mean) if mean else math.inf


def _on_device_of(teacher: nn.Module) -> Upscaler:
    like = next(teacher.parameters(), torch.empty(0))
    return lambda low: teacher(low.to(like.device))


def _best_colours(teacher: nn.Module, crops: Crops, scale: int) -> tuple[str, float]:
    """Which other colours suit a teacher best, and what it reaches with them."""
    reached: dict[str, float] = {"": -math.inf}
    for colours, changed in _OTHER_COLOURS.items():
        # Code of others may raise anything on other colours.
        with contextlib.suppress(Exception):
            reached[colours] = _psnr(changed(_on_device_of(teacher)), crops, scale)
    best = max(reached, key=reached.__getitem__)
    return best, reached[best]
