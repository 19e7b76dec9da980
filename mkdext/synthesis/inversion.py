"""Model inversion: images that a teacher's normalisation layers find usual (eq. 7).

Of the other terms of eq. 6, the classification loss (eq. 8) needs classes, which a network that
makes images has not, and the divergence of student and teacher (eq. 9) is, for images, the
adversarial loss of eq. 2.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.processes import var_mean

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


class FeatureStatistics:
    """The gap between the statistics of a batch and those that a teacher has kept (eq. 7).

    As divergence D of the two normal distributions of a layer it takes, like the code of CMI, the
    Euclidean distance of the means plus that of the variances. A context manager: the forward
    passes within it are looked at.

    Example:
        >>> teacher = nn.Sequential(nn.BatchNorm2d(3)).eval()
        >>> with FeatureStatistics(teacher) as statistics:
        ...     image = teacher(torch.zeros(1, 3, 8, 8))
        >>> round(statistics.loss().item(), 3)  # means are 0 as kept, variances 0 instead of 1
        1.732
    """

    def __init__(self, teacher: nn.Module) -> None:
        """Take a network in evaluation mode."""
        self.layers = normalisation_layers(teacher)
        self._gaps: list[Tensor] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> FeatureStatistics:
        """Look at the layers from here on."""
        self._gaps = []
        self._hooks = [layer.register_forward_pre_hook(self._look()) for layer in self.layers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()

    def loss(self) -> Tensor:
        """The sum over the layers of the passes that were looked at, a scalar."""
        return torch.stack(self._gaps).sum()

    def _look(self) -> Callable[[Any, Any], None]:
        def hook(layer: BatchNorm, inputs: tuple[Tensor]) -> None:
            kept_mean, kept_variance = layer.running_mean, layer.running_var
            assert kept_mean is not None and kept_variance is not None
            variance, mean = var_mean(inputs[0], (0, 2, 3))
            self._gaps.append((mean - kept_mean).norm() + (variance - kept_variance).norm())

        return hook


def normalisation_layers(network: nn.Module) -> list[BatchNorm]:
    """The batch normalisation layers of a network that have kept statistics."""
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, BatchNorm) and layer.running_mean is not None
    ]
