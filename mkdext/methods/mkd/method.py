"""The loss between the knowledge of student and teacher, and its gradients (MKD eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext._system.processes import averaged, var_mean
from mkdext.methods.base import Descent, DistillationMethod, MetaDefaults, total
from mkdext.methods.mkd.known_gradient import with_known_gradient
from mkdext.methods.mkd.krnet import Knowledge, KRNet, MKDOptions
from mkdext.methods.mkd.piecewise_linear import mean_magnitude
from mkdext.methods.registry import register


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

    # The gradient of the loss is twenty times that of the reconstruction loss when a training
    # begins, and less later. Without it beside eq. 3 the student hardly comes nearer.
    published_weight = 1e-2
    published_meta = MetaDefaults(kappa=1.0)
    Options = MKDOptions

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
        gaps, sizes = zip(
            *(self._gap(*point) for point in self._points(student, teacher)), strict=True
        )
        return total(relative(gaps, sizes)) if self.options.relative else total(gaps)

    def once_differentiable(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The same loss, with the memory of one point."""
        losses = []
        for net, maps, hints in self._points(student, teacher):
            leaf, phi = maps.detach().requires_grad_(), tuple(net.parameters())
            point = net(leaf, hints, source=leaf)
            gap, size, slope, teacher_slope = self._consume(point)
            gap, size = averaged(gap, size)
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
        gaps, sizes, slopes = zip(
            *(
                self._partial_gradient(*point, create_graph)
                for point in self._points(student, teacher)
            ),
            strict=True,
        )
        # What is divided by does not depend on what moves. Done last, the division leaves the sign
        # of the gap constant, and the second derivative is spared a convolution.
        whole = averaged(*gaps, *sizes)
        gaps, sizes = whole[: len(gaps)], whole[len(gaps) :]
        losses = [(gap / size).detach() for gap, size in zip(gaps, sizes, strict=True)]
        slopes = tuple(
            slope / (size * self._elements(slope))
            for slope, size in zip(slopes, sizes, strict=True)
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean gap, what it is divided by, and the slope of the sum of the gap."""
        moved = maps.view_as(maps)
        point = net(moved, hints, source=maps)
        gap, size, sign, teacher_sign = self._consume(point)
        if create_graph and self.options.relative:
            # The size is all in this that depends on the teacher's knowledge.
            gradients = torch.autograd.grad(point.teacher, point.kernels, teacher_sign)
            gradients = [gradient / teacher_sign.numel() for gradient in gradients]
            size = with_known_gradient(size, point.kernels, gradients)
        (slope,) = torch.autograd.grad(point.student, moved, sign, create_graph=create_graph)
        return gap, size, slope

    def _elements(self, maps: Tensor) -> int:
        """Numbers of the knowledge that is made of maps."""
        return maps.numel() // maps.shape[1] * self.options.grid**2

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

    def _gap(self, net: nn.Module, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Mean gap, and the mean magnitude that it is divided by."""
        point = net(student, teacher, source=student)
        gap, teacher = mean_magnitude(point.student - point.teacher), point.teacher
        return gap, mean_magnitude(teacher) if self.options.relative else teacher.new_ones(())

    @torch.no_grad()
    def statistics(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
        """Means over the points, to see a collapse.

        Returns:
            `knowledge_student`, `knowledge_teacher`: mean magnitudes. `gap`: of the two, relative
            to the teacher's. `kernel_norm`: of `W_1`, by output channel. `kernel_spread`: standard
            deviation of `W_1` over samples and output channels, relative to its magnitude; 0 when
            all kernels are the same. `correlation_entropy`: 0 when each channel picks one other,
            1 when all count alike. `detail_maps`, `detail_knowledge`: share of the variance of the
            teacher's maps, and of its knowledge, that a mean over 5x5 pixels takes away.
        """
        rows = []
        for point, hints in zip(self.knowledge(student, teacher, student), teacher, strict=True):
            first = point.kernels[0].flatten(2)
            axis = 1 if self.options.softmax_over == "student" else 2
            student_size, teacher_size, gap, norm, size, entropy = averaged(
                point.student.abs().mean(),
                point.teacher.abs().mean(),
                functional.l1_loss(point.student, point.teacher),
                first.norm(dim=2).mean(),
                first.abs().mean(),
                torch.special.entr(point.correlation).sum(axis).mean(),
            )
            spread, _ = var_mean(first.flatten(0, 1), (0,))
            rows.append(
                {
                    "knowledge_student": student_size,
                    "knowledge_teacher": teacher_size,
                    "gap": gap / teacher_size,
                    "kernel_norm": norm,
                    "kernel_spread": spread.sqrt().mean() / size,
                    "correlation_entropy": entropy / math.log(point.correlation.shape[axis]),
                    "detail_maps": _detail(hints),
                    "detail_knowledge": _detail(point.teacher),
                }
            )
        return {name: float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}


def relative(gaps: Sequence[Tensor], sizes: Sequence[Tensor]) -> list[Tensor]:
    """Mean gaps in relation to mean sizes, all over the samples of all processes."""
    whole = averaged(*gaps, *sizes)
    return [gap / size for gap, size in zip(whole, whole[len(gaps) :], strict=False)]


def _detail(maps: Tensor) -> Tensor:
    varying = maps - maps.mean((2, 3), keepdim=True)
    smooth = functional.avg_pool2d(varying, 5, 1, padding=2, count_include_pad=False)
    details, whole = averaged((varying - smooth).square().mean(), varying.square().mean())
    return details / whole.clamp_min(1e-30)


def _magnitude(x: Tensor) -> Tensor:
    # By rows first, or float32 loses digits.
    total: Tensor = torch.linalg.vector_norm(x.flatten(2), 1, dim=2).sum()
    return total / x.numel()
