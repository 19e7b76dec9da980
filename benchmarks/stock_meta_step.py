"""The meta step in stock PyTorch: the equations of MKD as a user writes them down.

Nothing of `mkdext` is used but the student and the hooks that read its feature maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mkdext.models import forward_with_features


class StockKRNet(nn.Module):
    """Knowledge representation network (MKD eq. 4-6), with the defaults of `MKDOptions`."""

    def __init__(self, student_channels: int, teacher_channels: int, grid: int) -> None:
        """Make the network for `C_s` student and `C_t` teacher channels."""
        super().__init__()
        self.grid = grid
        self.match = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.kernel1 = nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False)
        self.kernel2 = nn.Conv2d(teacher_channels, grid**2, 1, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, source: Tensor) -> Tensor:
        """Gap between the knowledge of student and teacher, relative to the teacher's."""
        height, width = source.shape[2:]
        rows = F.normalize(source.flatten(2), dim=2)
        columns = F.normalize(teacher.flatten(2), dim=2)
        product = rows @ columns.transpose(1, 2) * math.sqrt(height * width)
        corrected = torch.einsum("bst,bshw->bthw", product.softmax(dim=1), source)
        first, second = self.kernels(self.kernel1(corrected)), self.kernels(self.kernel2(corrected))
        of_student = extract(self.match(student), first, second)
        of_teacher = extract(teacher, first, second)
        return F.l1_loss(of_student, of_teacher) / of_teacher.abs().mean()

    def kernels(self, maps: Tensor) -> Tensor:
        """Average each patch to a 3x3 kernel of norm 1: `[B, grid^2, C, 3, 3]`."""
        grid, (batch, channels) = self.grid, maps.shape[:2]
        pooled = F.adaptive_avg_pool2d(maps, 3 * grid)  # grid divides height and width
        patches = pooled.reshape(batch, channels, grid, 3, grid, 3).permute(0, 2, 4, 1, 3, 5)
        kernels = F.normalize(patches.reshape(batch, grid**2, channels * 9), dim=2)
        return kernels.view(batch, grid**2, channels, 3, 3)


def unit(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Of norm 1 together; mkdext divides by the mean norm of the steps so far."""
    norm = nn.utils.get_total_norm(gradients)
    return [gradient / norm for gradient in gradients]


def extract(features: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Two convolutions of each sample with its own kernels."""
    return convolve(F.leaky_relu(convolve(features, first), 0.2), second)


def convolve(features: Tensor, kernels: Tensor) -> Tensor:
    """Samples as groups: the fastest per-sample convolution that PyTorch has."""
    batch, outputs = kernels.shape[:2]
    result = F.conv2d(
        features.reshape(1, -1, *features.shape[2:]), kernels.flatten(0, 1), padding=1, groups=batch
    )
    return result.view(batch, outputs, *features.shape[2:])


class StockMetaStep:
    """A meta step of one inner step (MKD eq. 2 and 3), then the student's own step."""

    def __init__(
        self,
        student: nn.Module,
        points: Sequence[str],
        krnets: nn.ModuleList,
        student_optimizer: torch.optim.Optimizer,
        krnet_optimizer: torch.optim.Optimizer,
        inner_lr: float,
        kappa: float,
        kd_weight: float,
    ) -> None:
        """Take what is trained, and the weights of the losses."""
        self.student, self.points, self.krnets = student, points, krnets
        self.student_optimizer, self.krnet_optimizer = student_optimizer, krnet_optimizer
        self.inner_lr, self.kappa, self.kd_weight = inner_lr, kappa, kd_weight

    def __call__(self, lr: Tensor, hr: Tensor, hints: Sequence[Tensor]) -> None:
        """Change KRNets and student once; `hints` are the teacher's feature maps."""
        theta = dict(self.student.named_parameters())
        _, features = forward_with_features(self.student, self.points, lr)
        # The kernels are constant in what the student descends, and not in the meta-gradient.
        maps = [feature.view_as(feature) for feature in features]
        loss = self.distillation(maps, hints, features)
        slopes = torch.autograd.grad(loss, maps, create_graph=True)
        gradients = torch.autograd.grad(
            features, list(theta.values()), slopes, create_graph=True, materialize_grads=True
        )
        moved = {
            name: parameter - self.inner_lr * gradient
            for (name, parameter), gradient in zip(theta.items(), gradients, strict=True)
        }
        sr, _ = forward_with_features(self.student, self.points, lr, moved)
        phi = list(self.krnets.parameters())
        of_error = unit(torch.autograd.grad(F.l1_loss(sr, hr), phi))
        sources = [feature.detach() for feature in features]
        of_loss = unit(torch.autograd.grad(self.distillation(sources, hints, sources), phi))
        for parameter, error, kept in zip(phi, of_error, of_loss, strict=True):
            parameter.grad = error + self.kappa * kept
        self.krnet_optimizer.step()

        self.student_optimizer.zero_grad()
        sr, features = forward_with_features(self.student, self.points, lr)
        sources = [feature.detach() for feature in features]
        loss = self.kd_weight * self.distillation(features, hints, sources)
        (F.l1_loss(sr, hr) + loss).backward(inputs=list(theta.values()))
        self.student_optimizer.step()

    def distillation(
        self, maps: Sequence[Tensor], hints: Sequence[Tensor], sources: Sequence[Tensor]
    ) -> Tensor:
        """MKD eq. 7."""
        points = zip(self.krnets, maps, hints, sources, strict=True)
        return torch.stack([net(*features) for net, *features in points]).sum()
