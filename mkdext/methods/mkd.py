"""MKD: meta knowledge distillation (Zhu, Chen, Liu), section 3.2.

A knowledge representation network (KRNet) at each distillation point turns the features of
student and teacher into knowledge. It convolves both with the same kernels, which it generates for
each sample from the student's features, corrected by their correlation with the teacher's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext._system.field_types import check_types
from mkdext.methods.adapters import inverse_norm, total
from mkdext.methods.base import Descent, DistillationMethod, MetaDefaults
from mkdext.methods.known_gradient import with_known_gradient
from mkdext.methods.piecewise_linear import leaky_relu, mean_magnitude
from mkdext.methods.registry import register
from mkdext.ops import dynamic_conv2d, texture_kernels

LEAKY_SLOPE = 0.2


@dataclasses.dataclass(frozen=True)
class MKDOptions:
    """The choices of a KRNet. The paper's literal form is `MKDOptions.literal()`."""

    grid: int = 8
    """The map is cut into grid x grid patches, each of which becomes a kernel: c_o = grid^2."""
    kernel_size: int = 3
    """Width of the generated kernels, odd."""
    hidden: int | None = None
    """Channels between the two 1x1 convolutions that match dimensions; none: the teacher's."""
    correlation: Literal["cosine", "scaled", "raw"] = "cosine"
    """Inner product of a student's with a teacher's channel: as cosine times sqrt(h*w), divided by
    sqrt(h*w), or raw (the paper's formula, whose softmax saturates on large maps)."""
    softmax_over: Literal["student", "teacher"] = "student"
    """Channels over which the correlation is normalised."""
    detach_kernels: bool = True
    """Hold the kernels constant in what the student descends, so that it cannot lower the loss by
    generating kernels that see nothing. The meta-gradient takes account of them all the same."""
    normalize_kernels: bool = True
    """Give each generated kernel the norm 1, so that the knowledge cannot fade."""
    relative: bool = True
    """Divide the gap of each point by the mean magnitude of the teacher's knowledge."""

    def __post_init__(self) -> None:
        """Check types and numbers."""
        check_types(self, "mkd.")
        for name, most in (("grid", 1024), ("kernel_size", 1023), ("hidden", 65536)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"`mkd.{name}` must be from 1 to {most}, got {value}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`mkd.kernel_size` must be odd, got {self.kernel_size}")

    @classmethod
    def literal(cls, grid: int = 8) -> MKDOptions:
        """The equations of the paper as printed."""
        return cls(
            grid=grid,
            correlation="raw",
            detach_kernels=False,
            normalize_kernels=False,
            relative=False,
        )


class Knowledge(NamedTuple):
    """What a KRNet makes of one pair of feature maps."""

    student: Tensor
    """`K^s`, `[B, c_o, h, w]` (MKD eq. 5)."""
    teacher: Tensor
    """`K^t`, `[B, c_o, h, w]` (MKD eq. 6)."""
    kernels: tuple[Tensor, Tensor]
    """`W_1` `[B, c_o, C_t, k, k]` and `W_2` `[B, c_o, c_o, k, k]` (MKD eq. 4)."""
    correlation: Tensor
    """Softmax weights, `[B, C_s, C_t]`."""


class KRNet(nn.Module):
    """Knowledge representation network of one distillation point (MKD eq. 4-6).

    Pooling and 1x1 convolutions are linear and act on different dimensions, so their order is free:
    the few channels of the student are pooled before the correlation corrects them and before they
    are reorganised, and the 1x1 convolution that ends `match` is applied to the kernels that follow
    it instead of to the map.

    Example:
        >>> krnet = KRNet(16, 32, MKDOptions(grid=4))
        >>> student, teacher = torch.rand(2, 16, 24, 24), torch.rand(2, 32, 24, 24)
        >>> knowledge = krnet(student, teacher, source=student)
        >>> knowledge.teacher.shape
        torch.Size([2, 16, 24, 24])
    """

    def __init__(self, student_channels: int, teacher_channels: int, options: MKDOptions) -> None:
        """Make the network for `C_s` student and `C_t` teacher channels."""
        super().__init__()
        self.options = options
        hidden = options.hidden or teacher_channels
        # No biases: what the student descends is linear in pieces and does not depend on them.
        self.match = nn.Sequential(
            nn.Conv2d(student_channels, hidden, 1, bias=False),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(hidden, teacher_channels, 1, bias=False),
        )
        outputs = options.grid**2
        self.kernel1 = nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False)
        self.kernel2 = nn.Conv2d(teacher_channels, outputs, 1, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, source: Tensor) -> Knowledge:
        """Turn features into knowledge.

        Args:
            student: `[B, C_s, h, w]`.
            teacher: `[B, C_t, h, w]`.
            source: The student's features once more, for the kernels to be generated from.
        """
        weights = self.correlate(source, teacher)
        first, second, matched_first = self.generate(source, weights)
        batch, _, height, width = student.shape
        # A product of matrices does what a 1x1 convolution does, in any layout and without copies.
        hidden = torch.bmm(matrix(self.match[0]).expand(batch, -1, -1), student.flatten(2))
        hidden = leaky_relu(hidden, LEAKY_SLOPE).view(batch, -1, height, width)
        return Knowledge(
            student=extract(hidden, matched_first, second),
            teacher=extract(teacher, first, second),
            kernels=(first, second),
            correlation=weights,
        )

    def correlate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Channel correlation of student and teacher, `sigma(F_s . F_t)` in MKD eq. 4.

        Returns:
            `[B, C_s, C_t]`, which sums to 1 over the channels named by `softmax_over`.
        """
        pixels = student.shape[-2] * student.shape[-1]
        rows, columns = student.flatten(2), teacher.flatten(2)
        product = torch.bmm(rows, columns.transpose(1, 2))
        if self.options.correlation == "cosine":
            sizes = inverse_norm(rows), inverse_norm(columns).transpose(1, 2)
            product = product * sizes[0] * sizes[1] * math.sqrt(pixels)
        elif self.options.correlation == "scaled":
            product = product / math.sqrt(pixels)
        return product.softmax(dim=1 if self.options.softmax_over == "student" else 2)

    def generate(self, source: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Texture-aware kernels: a kernel from each patch of the corrected features.

        Args:
            source: Student features, `[B, C_s, h, w]`.
            weights: Their correlation with the teacher's, `[B, C_s, C_t]`.

        Returns:
            `W_1` `[B, c_o, C_t, k, k]`, `W_2` `[B, c_o, c_o, k, k]`, and `W_1` after the last 1x1
            convolution of `match`, `[B, c_o, hidden, k, k]`.
        """
        options = self.options
        textures = texture_kernels(source, options.grid, options.kernel_size)

        def reorganize(mix: Tensor) -> Tensor:  # mix: [B, C, C_s]
            return torch.einsum("bcs,bgskl->bgckl", mix, textures).contiguous()

        corrected = weights.transpose(1, 2)
        mix = matrix(self.kernel1) @ corrected
        first, second = reorganize(mix), reorganize(matrix(self.kernel2) @ corrected)
        matched = reorganize(matrix(self.match[2]).T @ mix)
        if options.normalize_kernels:
            size = inverse_norm(first.flatten(2))[..., None, None]
            first, matched = first * size, matched * size
            second = second * inverse_norm(second.flatten(2))[..., None, None]
        return first, second, matched


def matrix(convolution: nn.Module) -> Tensor:
    """Weight of a 1x1 convolution, `[outputs, inputs]`."""
    return convolution.get_parameter("weight").flatten(1)


@register("mkd")
class MKD(DistillationMethod):
    """Meta knowledge distillation: one KRNet for each distillation point (MKD eq. 7).

    Example:
        >>> mkd = MKD([16, 16], [32, 32], MKDOptions(grid=4))
        >>> student = [torch.rand(2, 16, 24, 24) for _ in range(2)]
        >>> teacher = [torch.rand(2, 32, 24, 24) for _ in range(2)]
        >>> mkd(student, teacher).shape
        torch.Size([])
    """

    # The gradient of the loss is some hundred times that of the reconstruction loss when a training
    # begins. Without a part of it in the meta-objective the student hardly comes nearer.
    published_weight = 3e-3
    published_meta = MetaDefaults(keep=0.1)

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        options: MKDOptions | None = None,
    ) -> None:
        """Make the KRNets for the channels of each point."""
        super().__init__(student_channels, teacher_channels)
        self.options = options or MKDOptions()
        self.krnets = nn.ModuleList(
            KRNet(cs, ct, self.options)
            for cs, ct in zip(student_channels, teacher_channels, strict=True)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """L_kd of MKD eq. 7: the sum over the points of the mean gap between the knowledge."""
        return total([self._loss(*point) for point in self._points(student, teacher)])

    def once_differentiable(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The same loss, with the memory of one point."""
        losses = []
        for net, maps, hints in self._points(student, teacher):
            leaf, phi = maps.detach().requires_grad_(), tuple(net.parameters())
            point = net(leaf, hints, source=leaf)
            gap, size, slope, teacher_slope = self._consume(point)
            # d (gap / size): the slope of each magnitude is a sign, divided by the elements.
            slope /= slope.numel() * size
            teacher_slope *= -gap / (size * size * slope.numel()) if self.options.relative else 0
            gradients = torch.autograd.grad(
                (point.student, point.teacher), (leaf, *phi), (slope, teacher_slope.sub_(slope))
            )
            losses.append(with_known_gradient(gap / size, (maps, *phi), gradients))
        return total(losses)

    def gradient(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        create_graph: bool = False,
        parameters: Sequence[Tensor] = (),
    ) -> Descent:
        """The loss, and its gradient with respect to the student's maps, kernels held constant.

        With `detach_kernels` off, and with respect to `parameters`, it is the whole gradient.
        """
        if not self.options.detach_kernels:
            return super().gradient(student, teacher, create_graph, parameters)
        losses, slopes = zip(
            *(
                self._partial_gradient(*point, create_graph)
                for point in self._points(student, teacher)
            ),
            strict=True,
        )
        own: tuple[Tensor, ...] = ()
        if parameters:
            loss = (self if create_graph else self.once_differentiable)(student, teacher)
            own = torch.autograd.grad(loss, tuple(parameters), create_graph=create_graph)
        return Descent(total(losses), slopes, own)

    def meta_parameters(self) -> list[nn.Parameter]:
        """All: the KRNets (MKD eq. 3)."""
        return list(self.parameters())

    def _partial_gradient(
        self, net: nn.Module, maps: Tensor, hints: Tensor, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        moved = maps.view_as(maps)
        point = net(moved, hints, source=maps)
        gap, size, sign, teacher_sign = self._consume(point)
        loss = gap / size
        if create_graph and self.options.relative:
            # The size is all in this that depends on the teacher's knowledge.
            gradients = torch.autograd.grad(point.teacher, point.kernels, teacher_sign)
            gradients = [gradient / teacher_sign.numel() for gradient in gradients]
            size = with_known_gradient(size, point.kernels, gradients)
        # What is divided by does not depend on what moves. Done last, the division leaves the sign
        # of the gap constant, and the second derivative is spared a convolution.
        (slope,) = torch.autograd.grad(point.student, moved, sign, create_graph=create_graph)
        return loss, slope / (size * sign.numel())

    @torch.no_grad()
    def _consume(self, point: Knowledge) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean gap, what it is divided by, and the signs of both for each element.

        The signs are written over the knowledge, which no derivative needs.
        """
        student, teacher = point.student.detach(), point.teacher.detach()
        size = _magnitude(teacher) if self.options.relative else teacher.new_ones(())
        gap = _magnitude(student.sub_(teacher))
        return gap, size, student.sign_(), teacher.sign_()

    def knowledge(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], sources: Sequence[Tensor]
    ) -> list[Knowledge]:
        """The knowledge at each point; the kernels are generated from `sources`."""
        features = zip(student, teacher, sources, strict=True)
        return [krnet(*maps) for krnet, maps in zip(self.krnets, features, strict=True)]

    def _points(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        return zip(self.krnets, student, teacher, strict=True)

    def _loss(self, net: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        point = net(student, teacher, source=student)
        return mean_magnitude(point.student - point.teacher) / self._size(point)

    def _size(self, point: Knowledge) -> Tensor:
        """What the gap is divided by."""
        teacher = point.teacher
        return mean_magnitude(teacher) if self.options.relative else teacher.new_ones(())

    @torch.no_grad()
    def statistics(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
        """Means over the points, to see a collapse.

        Returns:
            `knowledge_student`, `knowledge_teacher`: mean magnitudes. `gap`: of the two, relative
            to the teacher's. `kernel_norm`: of `W_1`, by output channel. `kernel_spread`: standard
            deviation of `W_1` over samples and output channels, relative to its magnitude; 0 when
            all kernels are the same. `correlation_entropy`: 0 when each channel picks one other,
            1 when all count alike.
        """
        rows = []
        for point in self.knowledge(student, teacher, student):
            first = point.kernels[0].flatten(2)
            axis = 1 if self.options.softmax_over == "student" else 2
            entropy = torch.special.entr(point.correlation).sum(axis).mean()
            teacher_size = point.teacher.abs().mean()
            rows.append(
                {
                    "knowledge_student": point.student.abs().mean(),
                    "knowledge_teacher": teacher_size,
                    "gap": functional.l1_loss(point.student, point.teacher) / teacher_size,
                    "kernel_norm": first.norm(dim=2).mean(),
                    "kernel_spread": first.flatten(0, 1).std(0).mean() / first.abs().mean(),
                    "correlation_entropy": entropy / math.log(point.correlation.shape[axis]),
                }
            )
        return {name: float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}


def _magnitude(x: Tensor) -> Tensor:
    # By rows first, or float32 loses digits.
    total: Tensor = torch.linalg.vector_norm(x.flatten(2), 1, dim=2).sum()
    return total / x.numel()


def extract(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Two dynamic convolutions with an activation between them (MKD eq. 5 and 6).

    Args:
        features: `[B, C, h, w]`.
        first: `W_1`, `[B, c_o, C, k, k]`.
        second: `W_2`, `[B, c_o, c_o, k, k]`.

    Returns:
        `[B, c_o, h, w]`.
    """
    return dynamic_conv2d(leaky_relu(dynamic_conv2d(features, first), LEAKY_SLOPE), second)
