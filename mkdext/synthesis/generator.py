"""The generator of data-free super-resolution (Zhang et al., DFSR, CVPR 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from mkdext.models.blocks import conv3x3

LATENT = 256
"""Numbers that a noise vector has."""

_WIDE, _NARROW = 128, 64  # channels
_SLOPE = 0.2
_SOFT = 0.8  # epsilon of the later normalisations, as in the public code: they keep some contrast


class Generator(nn.Module):
    """Low-resolution images from noise: `[B, 256]` -> `[B, 3, size, size]`, colours in (0, 1).

    One linear layer makes a map of a quarter of the size, two nearest-neighbour enlargements with a
    convolution each bring it to full size. With one channel the images are grey: red, green and
    blue are the same, as for networks that see Y alone.

    Example:
        >>> import torch
        >>> Generator(size=24)(torch.randn(2, LATENT)).shape
        torch.Size([2, 3, 24, 24])
    """

    def __init__(self, size: int, channels: int = 3) -> None:
        """Make a generator with random weights, drawn from torch's global generator.

        Args:
            size: Width and height of the images, a multiple of 4 and at least 8.
            channels: 3 for colour, 1 for grey.

        Raises:
            ValueError: A number is impossible.
        """
        super().__init__()
        if size < 8 or size % 4:
            raise ValueError(
                f"Generator: size must be a multiple of 4 and at least 8, got {size}; "
                f"the nearest is {max(8, round(size / 4) * 4)}"
            )
        if channels not in (1, 3):
            raise ValueError(f"Generator: channels must be 1 or 3, got {channels}")
        self.size = size
        self.channels = channels
        self.first = nn.Linear(LATENT, _WIDE * (size // 4) ** 2)
        self.layers = nn.Sequential(
            nn.InstanceNorm2d(_WIDE, affine=True),
            nn.Upsample(scale_factor=2),
            conv3x3(_WIDE, _WIDE),
            nn.InstanceNorm2d(_WIDE, eps=_SOFT, affine=True),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Upsample(scale_factor=2),
            conv3x3(_WIDE, _NARROW),
            nn.InstanceNorm2d(_NARROW, eps=_SOFT, affine=True),
            nn.LeakyReLU(_SLOPE, inplace=True),
            conv3x3(_NARROW, channels),
            nn.Tanh(),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, noise: Tensor) -> Tensor:
        """Make one image of each noise vector, `[B, 256]`, normally distributed."""
        side = self.size // 4
        images: Tensor = self.layers(self.first(noise).view(-1, _WIDE, side, side))
        return ((images + 1) / 2).expand(-1, 3, -1, -1)
