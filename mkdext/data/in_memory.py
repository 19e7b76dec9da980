"""Photographs that are given as tensors or arrays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mkdext.data.degradation import BICUBIC, Degradation
from mkdext.data.pairs import ImagePairs

Image = Tensor | npt.NDArray[np.uint8]


class ImagesInMemory(ImagePairs):
    """Images with their low-resolution versions, made by a degradation on 8-bit levels."""

    def __init__(
        self,
        images: Sequence[Image],
        scale: int,
        minimum_side: int,
        degradation: Degradation = BICUBIC,
        pad: bool = False,
    ) -> None:
        """Take uint8 images, tensors `[3, H, W]` or arrays `[H, W, 3]`.

        Args:
            images: The images.
            scale: Downscaling factor.
            minimum_side: Smallest width and height, in pixels, that is large enough.
            degradation: What makes low-resolution versions.
            pad: Whether smaller images are mirrored up to `minimum_side`.

        Raises:
            TypeError: One is not of uint8.
            ValueError: There is none, or one has another shape or is smaller than `minimum_side`.
        """
        if not len(images):
            raise ValueError("distill: images must hold at least one image, got none")
        least = scale if pad else minimum_side
        high = [_tensor(image, index, least) for index, image in enumerate(images)]
        names = [Path(f"image {index}") for index in range(len(high))]
        padded = minimum_side if pad else 0
        super().__init__(names, scale, sys.maxsize, degradation, padded)
        for name, image in zip(names, high, strict=True):
            self._keep(name, image)


def _tensor(image: Image, index: int, minimum_side: int) -> Tensor:
    what = f"distill: image {index}"
    if not isinstance(image, Tensor | np.ndarray):
        kind = type(image).__name__
        raise TypeError(f"{what} must be a tensor [3, H, W] or an array [H, W, 3], got {kind}")
    if image.dtype not in (torch.uint8, np.uint8):
        raise TypeError(f"{what} must be of uint8, got {image.dtype}")
    if image.ndim != 3 or image.shape[0 if isinstance(image, Tensor) else 2] != 3:
        raise ValueError(
            f"{what} must be a tensor [3, H, W] or an array [H, W, 3], got {list(image.shape)}"
        )
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    height, width = image.shape[1:]
    if min(height, width) < minimum_side:
        raise ValueError(
            f"{what} is {width}x{height} pixels, needs at least {minimum_side} on each side"
        )
    return image.cpu()
