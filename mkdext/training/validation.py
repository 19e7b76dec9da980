"""Measuring a network on photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn

from mkdext._system.errors import is_out_of_memory
from mkdext._system.plugins import in_words
from mkdext.data import ImagePairs, imresize
from mkdext.metrics import mean_psnr, psnr_y, ssim_y, to_uint8
from mkdext.training.steps import NonFiniteError, TrainingFailed

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
        pairs: `(lr, hr)`, uint8 `[3, h, w]` and `[3, scale*h, scale*w]`.
        scale: Enlargement factor.
        names: Of the photographs; none: their numbers from 0.

    Raises:
        NonFiniteError: What it makes of one is not finite.
        TrainingFailed: It fails on one, or makes another size of it.
    """
    psnr, ssim, exact = [], [], []
    for number, (lr, hr) in enumerate(pairs):
        name = names[number] if names else f"picture {number}"
        try:
            sr = picture(upscale, lr)
            psnr.append(psnr_y(sr, hr, scale))
            ssim.append(ssim_y(sr, hr, scale))
        except NonFiniteError as error:
            raise NonFiniteError(f"{name}: {error}") from None
        except (Exception, SystemExit) as error:  # Whatever code of others may raise.
            if is_out_of_memory(error):
                raise
            size = f"{lr.shape[2]}x{lr.shape[1]} pixels"
            raise TrainingFailed(
                f"{name} of {size} in low resolution: {in_words(error)}"
            ) from error
        if math.isinf(psnr[-1]):
            exact.append(name)
    scores: Scores = {"psnr_y": mean_psnr(psnr)[0], "ssim_y": sum(ssim) / len(ssim)}
    return scores | {"exact": exact} if exact else scores


def names_of(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[str] | None:
    """Names of photographs, where they have any."""
    return [path.name for path in pairs.paths] if isinstance(pairs, ImagePairs) else None


@torch.no_grad()
def picture(upscale: Upscaler, lr: Tensor) -> Tensor:
    """Enlarge one photograph.

    Args:
        upscale: A network or `bicubic`.
        lr: uint8 `[3, h, w]`.

    Returns:
        uint8 `[3, scale*h, scale*w]`.

    Raises:
        NonFiniteError: What it makes is not finite.
    """
    like = next(upscale.parameters(), lr) if isinstance(upscale, nn.Module) else lr
    sr = upscale(lr.to(like.device)[None].float() / 255)[0]
    if not bool(sr.isfinite().all()):
        raise NonFiniteError(f"the enlarged picture of {lr.shape[2]}x{lr.shape[1]} is not finite")
    return to_uint8(sr).cpu()


def bicubic(scale: int) -> Upscaler:
    """MATLAB's bicubic enlargement, the least a network must beat."""
    return lambda lr: imresize(lr, scale)
