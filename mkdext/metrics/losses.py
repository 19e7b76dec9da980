"""What a student's picture is compared with the photograph by.

A metric is looked at, in dB and without a gradient; a loss is descended: all here are
differentiable any number of times where they are smooth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mkdext._system.near_names import did_you_mean
from mkdext._system.plugins import error_in_words, is_reference, loaded
from mkdext.metrics.image_quality import luma_picture

Loss = Callable[[Tensor, Tensor], Tensor]
"""A distance of two batches of pictures, `[B, 3, H, W]` in [0, 1]: the student's, the right one."""

_EPSILON = 1e-3
_FREQUENCIES = 0.05
_TRIAL = 2, 3, 48, 40


def charbonnier(sr: Tensor, high: Tensor) -> Tensor:
    """`mean sqrt((sr - high)^2 + 1e-6)`: the absolute error, smooth at 0.

    Source: Lai et al., Deep Laplacian pyramid networks, CVPR 2017, whose epsilon is 1e-3.

    Example:
        >>> charbonnier(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
        tensor(0.0010)
    """
    return ((sr - high).square() + _EPSILON**2).sqrt().mean()


def fft(sr: Tensor, high: Tensor) -> Tensor:
    """`mean |sr - high| + 0.05 mean |F(sr) - F(high)|`: absolute errors of pixels and frequencies.

    `F` is the two-dimensional Fourier transform of each colour without a factor; the second mean is
    over real and imaginary parts. Source: the distance of frequencies is that of Cho et al.,
    MIMO-UNet, ICCV 2021; its weight that of Sun et al., SAFMN, ICCV 2023, for super-resolution.

    Example:
        >>> fft(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))  # 1 + 0.05 * 16 / 32
        tensor(1.0250)
    """
    frequencies = torch.view_as_real(torch.fft.fft2(sr - high))
    return functional.l1_loss(sr, high) + _FREQUENCIES * frequencies.abs().mean()


LOSSES: dict[str, Loss] = {
    "l1": functional.l1_loss,
    "charbonnier": charbonnier,
    "l2": functional.mse_loss,
    "fft": fft,
}
"""By name: `l1` is `mean |sr - high|`, as in EDSR (Lim et al., CVPR workshops 2017); `l2` is
`mean (sr - high)^2`, as in SRCNN (Dong et al., ECCV 2014)."""


def over_luma(loss: Loss) -> Loss:
    """A loss taken over Y, as `luma_picture` has it, in place of red, green and blue.

    Source: pytorch-vdsr trains on such images. A change of Y alone is 255/219 times as large in
    each of the three colours, so over these its absolute error is 1.16 times as large, and the sum
    of its squares 4.07 times.

    Example:
        >>> black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
        >>> over_luma(LOSSES["l1"])(black, white)  # 219 / 255
        tensor(0.8588)
    """
    return lambda sr, high: loss(luma_picture(sr), luma_picture(high))


def require_known_loss(name: str) -> None:
    """Check that a loss is known, or says where a function of the user's is.

    Raises:
        ValueError: It is neither.
    """
    if name not in LOSSES and not is_reference(name):
        raise ValueError(
            f"`loss` must be one of {', '.join(LOSSES)}, or your own function, "
            f"package.module:function or file.py:function, got {name!r}{did_you_mean(name, LOSSES)}"
        )


def make_loss(name: str) -> Loss:
    """The loss of a name; that of a user is tried once.

    Args:
        name: One of `LOSSES`, `package.module:function` or `file.py:function`.

    Raises:
        ValueError: There is none, or it gives no scalar that has a gradient.

    Example:
        >>> make_loss("l2")(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5))
        tensor(0.2500)
    """
    require_known_loss(name)
    if name in LOSSES:
        return LOSSES[name]
    what = f"`loss` {name}"
    with loaded(name, what, "function") as function:
        if not callable(function) or isinstance(function, type):
            kind = "a class" if isinstance(function, type) else type(function).__name__
            raise ValueError(f"{what} must be a function of two batches of pictures, got {kind}")
        _try(function, what)
        loss: Loss = function
        return loss


def _try(function: Loss, what: str) -> None:
    high = torch.linspace(0, 1, torch.Size(_TRIAL).numel()).view(_TRIAL)
    sr = high.flip(3).requires_grad_()
    try:
        with torch.random.fork_rng(devices=[]):
            value = function(sr, high)
            is_scalar = isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()
            gradient = None
            if is_scalar and value.requires_grad:
                (gradient,) = torch.autograd.grad(value, sr)
    except (Exception, SystemExit) as error:  # Whatever the user's code may raise.
        raise ValueError(
            f"{what} fails on pictures {list(_TRIAL)}: {error_in_words(error)}"
        ) from error
    if not is_scalar:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what} must give a scalar tensor of floating point, got {got}")
    if gradient is None:
        raise ValueError(f"{what} gives a value that does not depend on the student's picture")
    if not value.isfinite() or not gradient.isfinite().all():
        raise ValueError(f"{what} or its gradient is not finite for pictures in [0, 1]")
