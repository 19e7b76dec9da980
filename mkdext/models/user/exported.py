"""A user's network in operators that ONNX has, for any size."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext.data import imresize
from mkdext.models.user.interface import Interface

_BICUBIC_REACH = 2


class ExportedAdapted(nn.Module):
    """An adapted network whose bicubic is a convolution: MATLAB's is a matrix made for one size."""

    kernels: Tensor
    to_y: Tensor

    def __init__(self, network: nn.Module, scale: int, interface: Interface) -> None:
        """Take what an `AdaptedNetwork` holds, and copy the network."""
        super().__init__()
        self.network = copy.deepcopy(network)
        self.scale, self.interface = scale, interface
        # What an impulse in the middle becomes tells what each output pixel takes from it.
        size = 4 * _BICUBIC_REACH + 1
        impulse = torch.zeros(1, 1, size, size, dtype=torch.float64)
        impulse[..., size // 2, size // 2] = 1
        answer = functional.pixel_unshuffle(imresize(impulse, self.scale), self.scale)
        inner = slice(_BICUBIC_REACH, -_BICUBIC_REACH)
        self.register_buffer("kernels", answer[0, :, None, inner, inner].flip(2, 3).float())
        to_y = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
        self.register_buffer("to_y", to_y)

    def forward(self, low: Tensor) -> Tensor:
        """Map `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`."""
        of_colours, takes_enlarged = self.interface.channels == 3, self.interface.enlarged
        if of_colours:
            source = self._enlarged(low) if takes_enlarged else low
            return self.interface.run(self.network, source, self.scale)
        enlarged = self._enlarged(low)
        source = self._y(enlarged if takes_enlarged else low)
        change = self.interface.run(self.network, source, self.scale) - self._y(enlarged)
        colours: Tensor = enlarged + change * (255 / 219)
        return colours

    def _enlarged(self, low: Tensor) -> Tensor:
        planes = _mirrored(_mirrored(low, 2), 3).transpose(0, 1)
        shuffled = functional.pixel_shuffle(functional.conv2d(planes, self.kernels), self.scale)
        return shuffled.transpose(0, 1)

    def _y(self, image: Tensor) -> Tensor:
        return functional.conv2d(image, self.to_y) + 16 / 255


def _mirrored(image: Tensor, dim: int) -> Tensor:
    """The image with two more pixels at both ends, mirrored, the edge pixel repeated."""
    length = image.shape[dim]
    first = image.narrow(dim, 0, _BICUBIC_REACH).flip(dim)
    last = image.narrow(dim, length - _BICUBIC_REACH, _BICUBIC_REACH).flip(dim)
    return torch.cat((first, image, last), dim)
