"""The gap between the spatial affinities of two feature maps, which are never held.

With the points of each map, its columns over the channels, scaled to length 1,

    D_ij = u_i . u_j - v_i . v_j        gap = mean |D|

D is symmetric and its sign S constant in pieces, so that the gradients with respect to the scaled
points are 2 U S / n and -2 V S / n. U S is linear in U and S equals its transpose: the same product
is its own derivative, of every order. So everything is one walk over the tiles of the upper
triangle of D, which are made, used and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mkdext.ops._checks import check_map, check_size, check_tensor, dtype_name
from mkdext.ops._dispatch import apply, fold, is_autocast, remember, to_kernel_dtype, unfold
from mkdext.ops.reference import unit_points

_NAME = "spatial_affinity_gap"
_TILE_ON_CPU = 384**2  # two of them of float32 in 1.2 MB: mostly in the L2 cache
_TILE = 2304**2  # elsewhere: few and large calls


def spatial_affinity_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the spatial affinities of two feature maps.

    The affinity of two points of a map is the cosine between their columns of C channels; a column
    shorter than 1e-8 is divided by 1e-8. With P = h w points a map has P^2 affinities. They are
    computed tile by tile, together with the gradient where one is wanted: time grows with
    ``B (C_s + C_t) P^2``, memory with ``B (C_s + C_t) P`` only. Differentiable any number of times
    with respect to both maps, through `torch.autograd` and `torch.func`; the sign of a difference
    counts as constant, which almost everywhere it is.

    float32 and float64 are computed as they are; float16 and bfloat16 are computed in float32 and
    rounded once, and under autocast the result is float32.

    Args:
        student: ``[B, C_s, h, w]``, float32, float64, float16 or bfloat16; any strides. B may be 0,
            the other sizes may not.
        teacher: ``[B, C_t, h, w]`` of the same dtype and device; under autocast the dtype may
            differ, unless one is float64.

    Returns:
        A scalar from 0 to 2, of the dtype of ``student``; 0 for an empty batch.

    Raises:
        TypeError: An argument is not a dense floating tensor, or the dtypes differ.
        ValueError: An argument is not 4-D, a size aside from the batch is 0, batch, height, width
            or device differ, or a size overflows or exceeds the memory of the machine.

    Example:
        >>> student = torch.rand(2, 16, 48, 48, requires_grad=True)
        >>> gap = spatial_affinity_gap(student, torch.rand(2, 32, 48, 48))
        >>> gap.backward()
        >>> student.grad.shape
        torch.Size([2, 16, 48, 48])
    """
    _check(student, teacher)
    points = [unit_points(to_kernel_dtype(features)) for features in (student, teacher)]
    wanted = [torch.is_grad_enabled() and p.requires_grad for p in points]
    gaps = apply(_Gap, *points, *wanted)[0]
    gap: Tensor = gaps.sum() / max(gaps.shape[0], 1)
    return gap if is_autocast(student) else gap.to(student.dtype)


def _check(student: Tensor, teacher: Tensor) -> None:
    check_tensor(_NAME, "student", student)
    check_tensor(_NAME, "teacher", teacher)
    if student.device != teacher.device:
        raise ValueError(
            f"{_NAME}: student and teacher must be on one device, "
            f"got {student.device} and {teacher.device}"
        )
    one_is_double = torch.float64 in (student.dtype, teacher.dtype)
    if student.dtype != teacher.dtype and (one_is_double or not is_autocast(student)):
        raise TypeError(
            f"{_NAME}: student and teacher must have one dtype, "
            f"got {dtype_name(student)} and {dtype_name(teacher)}"
        )
    check_map(_NAME, "student", student, "[B, C_s, h, w]")
    check_map(_NAME, "teacher", teacher, "[B, C_t, h, w]")
    batch, _, height, width = student.shape
    if teacher.shape != (batch, teacher.shape[1], height, width):
        raise ValueError(
            f"{_NAME}: teacher must be [B, C_t, h, w] with B={batch}, h={height} and w={width}, "
            f"got {list(teacher.shape)}"
        )
    check_size(_NAME, "student", student.shape, student)
    check_size(_NAME, "teacher", teacher.shape, teacher)


class _Gap(Function):
    """The gap of each sample, and what its gradient is made of."""

    @staticmethod
    def forward(
        student: Tensor, teacher: Tensor, want_student: bool, want_teacher: bool
    ) -> tuple[Tensor, Tensor]:
        factor = _factor(student, teacher, want_student, want_teacher)
        gap, product = torch.ops.mkdext.spatial_affinity_gap(student, teacher, factor)
        return gap, product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        student, teacher, *ctx.known = inputs
        ctx.mark_non_differentiable(output[1])
        remember(ctx, (student, teacher, output[1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        student, teacher, product = ctx.saved_tensors
        want_student, want_teacher = wanted = ctx.needs_input_grad[:2]
        # PyTorch does not tell what it will want where one transform of `torch.func` is in another.
        known = product if list(wanted) == ctx.known else None
        factor = _factor(student, teacher, want_student, want_teacher)
        product = apply(_SignProduct, student.detach(), teacher.detach(), factor, known)
        scaled = product * (2 / student.shape[2] ** 2 * grad)[:, None, None]
        channels = student.shape[1] if want_student else 0
        return (
            scaled[:, :channels] if want_student else None,
            -scaled[:, channels:] if want_teacher else None,
            None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], student: Tensor, teacher: Tensor, *wanted: bool
    ) -> tuple[tuple[Tensor | None, Tensor | None], tuple[int, int]]:
        size = info.batch_size
        points = fold(student, in_dims[0], size), fold(teacher, in_dims[1], size)
        gap, product = apply(_Gap, *points, *wanted)
        return (unfold(gap, size), unfold(product, size)), (0, 0)


def _factor(student: Tensor, teacher: Tensor, want_student: bool, want_teacher: bool) -> Tensor:
    """Channels of the points that are multiplied by the signs: of both, of one or of none."""
    if want_student and want_teacher:
        return torch.cat((student, teacher), 1)
    return student if want_student else teacher if want_teacher else student[:, :0]


class _SignProduct(Function):
    """The product of a factor, `[B, C, P]`, and the signs of D, in which it is linear."""

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, factor: Tensor, known: Tensor | None) -> Tensor:
        if known is not None:
            return known.view_as(known)
        product: Tensor = torch.ops.mkdext.spatial_affinity_sign_product(student, teacher, factor)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        return None, None, apply(_SignProduct, *ctx.saved_tensors, grad, None), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor | None
    ) -> tuple[Tensor | None, int]:
        size = info.batch_size
        folded = (fold(tensor, dim, size) for tensor, dim in zip(tensors, in_dims, strict=True))
        return unfold(apply(_SignProduct, *folded), size), 0


def _gap(student: Tensor, teacher: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Mean |D| of each sample `[B]`, and the product of the factor `[B, C, P]` and S."""
    product = torch.zeros_like(factor, memory_format=torch.contiguous_format)
    gap = student.new_empty(student.shape[0])
    with torch.autocast(student.device.type, enabled=False):
        for samples, walk in _walk(student, teacher):
            sums = []
            for rows, columns, tile, scratch in walk:
                if factor.shape[1]:
                    torch.sign(tile, out=scratch)
                    _multiply(product[samples], factor[samples], rows, columns, scratch)
                total = tile.abs_().sum((1, 2))
                sums.append(total if rows == columns else 2 * total)
            gap[samples] = torch.stack(sums).sum(0) / student.shape[2] ** 2
    return gap, product


def _sign_product(student: Tensor, teacher: Tensor, factor: Tensor) -> Tensor:
    """The product of the factor `[B, C, P]` and S."""
    product = torch.zeros_like(factor, memory_format=torch.contiguous_format)
    with torch.autocast(student.device.type, enabled=False):
        for samples, walk in _walk(student, teacher):
            for rows, columns, tile, _ in walk:
                _multiply(product[samples], factor[samples], rows, columns, tile.sign_())
    return product


def _walk(
    student: Tensor, teacher: Tensor
) -> Iterator[tuple[slice, Iterator[tuple[slice, slice, Tensor, Tensor]]]]:
    """Go over groups of samples, and for each over the tiles of the upper triangle of D.

    A tile comes with as much memory to write to, and lasts until the next one.
    """
    batch, _, points = student.shape
    budget = _TILE_ON_CPU if student.device.type == "cpu" else _TILE
    side = math.ceil(points / math.ceil(points / math.isqrt(budget)))
    group = max(1, min(batch, budget // side**2))
    # Apart, not halves of one: products of equal factors may differ where their alignment differs.
    memory = [student.new_empty(group * side**2) for _ in range(2)]

    def tiles(u: Tensor, v: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        for rows in _slices(points, side):
            for columns in _slices(points, side, rows.start):
                shape = len(u), u[0, 0, rows].numel(), u[0, 0, columns].numel()
                tile, other = (part[: math.prod(shape)].view(shape) for part in memory)
                torch.bmm(u[:, :, rows].mT, u[:, :, columns], out=tile)
                torch.bmm(v[:, :, rows].mT, v[:, :, columns], out=other)
                # Not one product of both, whose rounding errors equal features would not cancel.
                yield rows, columns, tile.sub_(other), other

    for samples in _slices(batch, group):
        yield samples, tiles(student[samples], teacher[samples])


def _multiply(product: Tensor, factor: Tensor, rows: slice, columns: slice, signs: Tensor) -> None:
    """Add the product of the factor and a tile of S, and of its transpose beyond the diagonal."""
    product[:, :, rows].baddbmm_(factor[:, :, columns], signs.mT)
    if rows != columns:
        product[:, :, columns].baddbmm_(factor[:, :, rows], signs)


def _slices(length: int, step: int, begin: int = 0) -> list[slice]:
    return [slice(i, min(i + step, length)) for i in range(begin, length, step)]


# Operators of their own, so that torch.compile sees one node and not every tile.
# `torch.library.custom_op` would do the same, but its first call imports the whole compiler.


def _register(
    name: str, results: str, kernel: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    torch.library.define(name, f"(Tensor student, Tensor teacher, Tensor factor) -> {results}")
    torch.library.impl(name, "default", kernel)
    torch.library.register_fake(name, fake)


_register(
    "mkdext::spatial_affinity_gap",
    "(Tensor, Tensor)",
    _gap,
    lambda student, teacher, factor: (
        student.new_empty(student.shape[0]),
        factor.new_empty(factor.shape),
    ),
)
_register(
    "mkdext::spatial_affinity_sign_product",
    "Tensor",
    _sign_product,
    lambda student, teacher, factor: factor.new_empty(factor.shape),
)
