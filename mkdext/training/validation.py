"""Measuring networks on photographs: a student meanwhile, and a teacher before a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from mkdext._system.errors import is_out_of_memory
from mkdext._system.plugins import error_in_words
from mkdext._system.processes import processes
from mkdext.data import BICUBIC, Degradation, ImagePairs, builtin_photographs, imresize
from mkdext.metrics import mean_psnr, psnr_y, ssim_y, to_uint8
from mkdext.models.handling import evaluation_mode
from mkdext.models.user.colours import informative, psnr_of
from mkdext.training.step import NonFiniteError, TrainingFailed

Upscaler = Callable[[Tensor], Tensor]
"""Maps `[1, 3, h, w]` in [0, 1] to `[1, 3, scale*h, scale*w]`."""

Progress = Callable[[Sequence[int]], Iterable[int]]
"""Wraps an iteration over numbers of photographs, to show how far it has come."""


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
    pairs: Sequence[tuple[Tensor, Tensor]],
    scale: int,
    names: Sequence[str] | None = None,
    progress: Progress = iter,
) -> Scores:
    """PSNR and SSIM on Y of what `upscale` makes, rounded to 8-bit levels, border of `scale`.

    Several processes divide the photographs among them.

    Args:
        upscale: A network or `bicubic`.
        pairs: `(low, high)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`.
        scale: Enlargement factor.
        names: Of the photographs; none: their numbers from 0.
        progress: Wraps the iteration over the numbers of photographs.

    Raises:
        NonFiniteError: What it makes of one is not finite.
        TrainingFailed: It fails on one, or makes another size of it.
    """
    together = processes()
    own: dict[int, tuple[float, float]] = {}
    failed: TrainingFailed | None = None
    try:
        for number in progress(range(together.rank, len(pairs), together.size)):
            name = names[number] if names else f"picture {number}"
            own[number] = _measured(upscale, *pairs[number], scale, name)
    except TrainingFailed as error:
        failed = error  # The others wait for what this process has found.
    found: dict[int, tuple[float, float]] = {}
    for scores_of_one, error_of_one in together.all_of((own, failed)):
        if error_of_one is not None:
            raise error_of_one
        found |= scores_of_one
    psnr, ssim = zip(*(found[number] for number in range(len(pairs))), strict=True)
    exact = [
        names[n] if names else f"picture {n}" for n, value in enumerate(psnr) if math.isinf(value)
    ]
    scores: Scores = {"psnr_y": mean_psnr(psnr)[0], "ssim_y": sum(ssim) / len(ssim)}
    return scores | {"exact": exact} if exact else scores


def _measured(
    upscale: Upscaler, low: Tensor, high: Tensor, scale: int, name: str
) -> tuple[float, float]:
    """PSNR and SSIM of one photograph."""
    try:
        sr = picture(upscale, low)
        return psnr_y(sr, high, scale), ssim_y(sr, high, scale)
    except NonFiniteError as error:
        raise NonFiniteError(f"{name}: {error}") from None
    except (Exception, SystemExit) as error:  # Whatever code of others may raise.
        if is_out_of_memory(error):
            raise
        size = f"{low.shape[2]}x{low.shape[1]} pixels"
        raise TrainingFailed(
            f"{name} of {size} in low resolution: {error_in_words(error)}"
        ) from error


def names_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[str] | None:
    """Names of photographs, where they have any."""
    paths = getattr(pairs, "paths", None)
    return None if paths is None else [path.name for path in paths]


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


class Strength(NamedTuple):
    """How well a teacher enlarges, in dB of PSNR-Y."""

    photographs: str
    """What it was measured on."""
    teacher: float
    bicubic: float


def require_strong_teacher(
    teacher: nn.Module,
    scale: int,
    sets: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
    degradation: Degradation = BICUBIC,
) -> None:
    """Check that a teacher enlarges some photographs better than bicubic does.

    The middle of a few built-in photographs is measured and, where it is below bicubic there, of
    those given: a network for other pictures than photographs may be good for these alone.

    Args:
        teacher: Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1].
        scale: Enlargement factor.
        sets: Pairs `(low, high)` to measure on by name, uint8.
        degradation: What makes low-resolution versions of the built-in photographs.

    Raises:
        ValueError: It does not; the message tells what to try.
    """
    builtin = ImagePairs(builtin_photographs("validation"), scale, degradation=degradation)
    note = "" if degradation is BICUBIC else f" ({degradation.label})"
    like = next(teacher.parameters(), torch.empty(0))
    found: list[Strength] = []
    with evaluation_mode(teacher):
        for name, pairs in {f"built-in photographs{note}": builtin, **sets}.items():
            crops = informative(pairs, scale)
            if not crops:
                continue
            ways = (lambda low: teacher(low.to(like.device)), bicubic(scale))
            strength = Strength(name, *(psnr_of(way, crops, scale) for way in ways))
            if strength.teacher >= strength.bicubic:
                return
            found.append(strength)
    measured = "; ".join(
        f"{s.teacher:.1f} dB on {s.photographs}, bicubic {s.bicubic:.1f} dB" for s in found
    )
    raise ValueError(
        f"the teacher is worse than bicubic enlargement ({measured}): check whether its weights "
        "were loaded (`teacher_weights`), which colours it takes (`teacher_range`; where that is "
        "left out all were tried), whether it clamps its result, and for which pictures it was "
        "trained. To learn from it as it is, for example because it was trained for other pictures "
        "or by a GAN: `allow_weak_teacher`"
    )
