"""Networks that fill their weights while they run, which exporters cannot follow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def weights_kept(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Have a network that fills its weights in every forward pass do it once, before.

    Networks of several branches put the weights of one convolution, which computes the same, into
    `weight.data` in evaluation mode. Exporters cannot follow that, and may crash. Within,
    `parameter.data = tensor` does nothing, for any network of this process.
    """
    usual: Any = Tensor.data
    assigned: list[Tensor] = []

    def read(tensor: Tensor) -> Tensor:
        data: Tensor = usual.__get__(tensor)
        return data

    def fill(tensor: Tensor, data: Tensor) -> None:
        assigned.append(data)
        usual.__set__(tensor, data)

    def keep(tensor: Tensor, data: Tensor) -> None:
        """Leave the tensor as it is."""

    try:
        Tensor.data = property(read, fill)  # type: ignore[assignment]
        model(example)
        del Tensor.data
        if assigned:
            Tensor.data = property(Tensor.detach, keep)  # type: ignore[assignment]
        yield
    finally:
        if "data" in vars(Tensor):
            del Tensor.data
