"""Networks that compute the same with operators that ONNX has, for any size."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext.data import imresize
from mkdext.models import SAN, VDSR, AdaptedNetwork
from mkdext.models.san import RegionNonLocal

_BICUBIC_REACH = 2


def exportable(model: nn.Module) -> nn.Module:
    """The network in the usual layout, or one that computes the same.

    The network itself may be changed.
    """
    if isinstance(model, VDSR):
        adapted = AdaptedNetwork(model.luma, model.scale, 1, enlarged=True)
        return _contiguous(_ExportableAdapted(adapted))
    if isinstance(model, AdaptedNetwork):
        does_all_itself = model.channels == 3 and not model.enlarged
        return _contiguous(model.network if does_all_itself else _ExportableAdapted(model))
    if isinstance(model, SAN):
        model = copy.deepcopy(model)
        model.non_local = _ExportableQuarters(model.non_local)  # type: ignore[assignment]
    return _contiguous(model)


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


def _contiguous(model: nn.Module) -> nn.Module:
    """Kernels in the order of ONNX; in another order exporters write them as views, and reshape."""
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


class _ExportableAdapted(nn.Module):
    """An adapted network whose bicubic is a convolution: MATLAB's is a matrix made for one size."""

    kernels: Tensor
    to_y: Tensor

    def __init__(self, model: AdaptedNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.network)
        self.scale, self.channels, self.enlarged = model.scale, model.channels, model.enlarged
        # What an impulse in the middle becomes tells what each output pixel takes from it.
        size = 4 * _BICUBIC_REACH + 1
        impulse = torch.zeros(1, 1, size, size, dtype=torch.float64)
        impulse[..., size // 2, size // 2] = 1
        answer = functional.pixel_unshuffle(imresize(impulse, self.scale), self.scale)
        inner = slice(_BICUBIC_REACH, -_BICUBIC_REACH)
        self.register_buffer("kernels", answer[0, :, None, inner, inner].flip(2, 3).float())
        to_y = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
        self.register_buffer("to_y", to_y)

    def forward(self, lr: Tensor) -> Tensor:
        planes = _mirrored(_mirrored(lr, 2), 3).transpose(0, 1)
        enlarged = functional.pixel_shuffle(
            functional.conv2d(planes, self.kernels), self.scale
        ).transpose(0, 1)
        source = enlarged if self.enlarged else lr
        if self.channels == 3:
            sr: Tensor = self.network(source)
            return sr
        change = self.network(self._y(source)) - self._y(enlarged)
        colours: Tensor = enlarged + change * (255 / 219)
        return colours

    def _y(self, image: Tensor) -> Tensor:
        return functional.conv2d(image, self.to_y) + 16 / 255


class _ExportableQuarters(nn.Module):
    """SAN's non-local block on each quarter of a map, which has at least two rows and columns."""

    def __init__(self, quarters: RegionNonLocal) -> None:
        super().__init__()
        self.non_local = quarters.non_local

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        halves = [
            torch.cat((self.non_local(half[..., :width]), self.non_local(half[..., width:])), dim=3)
            for half in (x[:, :, :height], x[:, :, height:])
        ]
        return torch.cat(halves, dim=2)


def _mirrored(image: Tensor, dim: int) -> Tensor:
    """The image with two more pixels at both ends, mirrored, the edge pixel repeated."""
    length = image.shape[dim]
    first = image.narrow(dim, 0, _BICUBIC_REACH).flip(dim)
    last = image.narrow(dim, length - _BICUBIC_REACH, _BICUBIC_REACH).flip(dim)
    return torch.cat((first, image, last), dim)
