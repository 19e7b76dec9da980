"""KRNets: what student and teacher are compared by at one distillation point (MKD eq. 4-6)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mkdext._system.field_types import check_types
from mkdext.methods.base import inverse_norm
from mkdext.methods.mkd.piecewise_linear import leaky_relu
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
    """Channels between the two 1x1 convolutions that match dimensions; default: the teacher's."""
    correlation: Literal["cosine", "scaled", "raw"] = "cosine"
    """Inner product of a student's with a teacher's channel: as cosine times sqrt(h*w), divided by
    sqrt(h*w), or raw (the paper's formula, whose softmax saturates on large maps)."""
    softmax_over: Literal["student", "teacher"] = "student"
    """Channels over which the correlation is normalised."""
    detach_kernels: bool = True
    """Hold the kernels constant in what the student descends, so that it cannot lower the loss by
    generating kernels that see nothing. The meta-gradient still takes account of them."""
    normalize_kernels: bool = True
    """Give each generated kernel the norm 1, so that the knowledge cannot fade."""
    centred: bool = False
    """Take the mean from the kernels of the first convolution, so that it sees edges and textures
    but no flat areas."""
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

        edges = textures - textures.mean((3, 4), keepdim=True) if options.centred else textures

        def reorganize(mix: Tensor, textures: Tensor) -> Tensor:  # mix: [B, C, C_s]
            return torch.einsum("bcs,bgskl->bgckl", mix, textures).contiguous()

        corrected = weights.transpose(1, 2)
        mix = matrix(self.kernel1) @ corrected
        first = reorganize(mix, edges)
        second = reorganize(matrix(self.kernel2) @ corrected, textures)
        matched = reorganize(matrix(self.match[2]).T @ mix, edges)
        if options.normalize_kernels:
            size = inverse_norm(first.flatten(2))[..., None, None]
            first, matched = first * size, matched * size
            second = second * inverse_norm(second.flatten(2))[..., None, None]
        return first, second, matched


def matrix(convolution: nn.Module) -> Tensor:
    """Weight of a 1x1 convolution, `[outputs, inputs]`."""
    return convolution.get_parameter("weight").flatten(1)


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
