"""Maps on a common scale, so that a method means the same with every teacher.

Maps of a network for colours from 0 to 255 are hundreds of times those of one for 0 to 1, and some
channels are many times others. Losses that compare maps as they are compare mostly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mkdext._system.processes import averaged
from mkdext.methods.base import Descent, DistillationMethod

_LEAST = 0.01
_TINY = 1e-12


class RunningMean(nn.Module):
    """The mean of all that it was given; of much, of the last hundred or so, old ones fading.

    Example:
        >>> mean = RunningMean()
        >>> for number in 1.0, 2.0, 6.0:
        ...     mean.add(torch.tensor(number))
        >>> mean.value
        tensor(3.)
    """

    value: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        """Begin with nothing of that shape."""
        super().__init__()
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def add(self, new: Tensor) -> None:
        """Take a value into account."""
        self.count += 1
        self.value.lerp_(new.to(self.value.dtype), (1 / self.count).clamp_min(_LEAST))


class Scale(nn.Module):
    """The scale of the maps of one point, from what was seen of them."""

    def __init__(self, teacher_channels: int) -> None:
        """Begin with nothing seen."""
        super().__init__()
        self.mean = RunningMean(teacher_channels)
        self.variance = RunningMean(teacher_channels)
        self.student_square = RunningMean()

    def observe(self, mean: Tensor, within: Tensor, student_square: Tensor) -> None:
        """See a batch, of which these are means over samples and pixels.

        Args:
            mean: Of the teacher's map, `[C]`.
            within: Of its squared distance from that, `[C]`.
            student_square: Of the square of the student's, a scalar.
        """
        before = mean - self.mean.value
        self.mean.add(mean)
        # The variance within batches, and that of their means. The difference of mean square and
        # squared mean is the same, but float32 has not the digits for maps far from 0.
        between = before * (mean - self.mean.value)
        self.variance.add(within + between)
        self.student_square.add(student_square)

    @property
    def size(self) -> Tensor:
        """Root mean square of the student's maps, a scalar."""
        return self.student_square.value.clamp_min(_TINY).sqrt()

    def whitened(self, teacher: Tensor) -> Tensor:
        """A teacher's map with mean 0 and variance 1 in each channel."""
        variance = self.variance.value
        deviation = variance.clamp_min(_LEAST**2 * variance.mean() + _TINY).sqrt()
        return (teacher - self.mean.value[:, None, None]) / deviation[:, None, None]


class Whitened(DistillationMethod):
    """A method that sees the teacher's maps with mean 0 and variance 1 in each channel.

    The student's map is divided by its root mean square, one number a point, which the gradient
    takes for a constant: its channels are the student's to choose. All are running means, moved by
    `observe` alone. A channel of the teacher that hardly varies is not blown up: its deviation
    counts as 1 % of the point's at least.

    Example:
        >>> from mkdext.methods import make_method
        >>> method = Whitened(make_method("fitnet", [16], [32]), [32])
        >>> student, teacher = [torch.rand(2, 16, 8, 8)], [255 * torch.rand(2, 32, 8, 8)]
        >>> method.observe(student, teacher)
        >>> bool(method(student, teacher) < 3)
        True
    """

    def __init__(self, method: DistillationMethod, teacher_channels: Sequence[int]) -> None:
        """Take a method, and the channels of the teacher's map at each point."""
        super().__init__(teacher_channels, teacher_channels)
        self.method = method
        self.scales = nn.ModuleList(map(Scale, teacher_channels))

    @property
    def _scales(self) -> list[Scale]:
        return cast(list[Scale], list(self.scales))

    @torch.no_grad()
    def observe(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Let the running means take a batch into account."""
        count = len(teacher)
        means = averaged(
            *(hints.mean((0, 2, 3)) for hints in teacher), *(m.square().mean() for m in student)
        )
        within = averaged(
            *(
                (hints - mean[:, None, None]).square_().mean((0, 2, 3))
                for hints, mean in zip(teacher, means[:count], strict=True)
            )
        )
        for scale, *seen in zip(self._scales, means[:count], within, means[count:], strict=True):
            scale.observe(*seen)
        self.method.observe(*self._whitened(student, teacher))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The method's loss of whitened maps."""
        loss: Tensor = self.method(*self._whitened(student, teacher))
        return loss

    def once_differentiable(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The same loss where one derivative is enough."""
        return self.method.once_differentiable(*self._whitened(student, teacher))

    def gradient(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        create_graph: bool = False,
        parameters: Sequence[Tensor] = (),
    ) -> Descent:
        """What the method descends, with respect to the maps as the student has them."""
        scaled, hints = self._whitened(student, teacher)
        descent = self.method.gradient(scaled, hints, create_graph, parameters)
        slopes = zip(descent.maps, self._scales, strict=True)
        return descent._replace(maps=tuple(slope / scale.size for slope, scale in slopes))

    def meta_parameters(self) -> list[nn.Parameter]:
        """Those of the method."""
        return self.method.meta_parameters()

    def statistics(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, float]:
        """What the method tells of whitened maps."""
        return self.method.statistics(*self._whitened(student, teacher))

    def _whitened(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        points = list(zip(self._scales, student, teacher, strict=True))
        scaled = [maps / scale.size for scale, maps, _ in points]
        return scaled, [scale.whitened(hints) for scale, _, hints in points]
