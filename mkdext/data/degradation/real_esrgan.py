"""Blur, resize, noise and JPEG in two orders, as Real-ESRGAN degrades (arXiv 2107.10833).

Its code sharpens the photograph before it degrades it; here that is left out.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zlib

import numpy as np
from PIL import Image as PillowImage
from scipy.signal import fftconvolve

from mkdext.data.degradation.base import Degradation, Levels
from mkdext.data.degradation.kernels import Kernel, between, drawn_kernel, drawn_size, sinc_kernel
from mkdext.data.degradation.parameters import Blur, Jpeg, Noise, Parameters, Resize
from mkdext.data.degradation.resampling import MODES, Image, resized

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


class RealESRGAN(Degradation):
    """Degrades at random, by parameters.

    Example:
        >>> degradation = RealESRGAN("realesrgan", Parameters())
        >>> high = np.full((3, 64, 48), 128, np.uint8)
        >>> degradation.low(high, 4, np.random.default_rng(0)).shape
        (3, 16, 12)
    """

    is_random = True
    margin = 4

    def __init__(self, name: str, parameters: Parameters) -> None:
        """Take what it is called, and what it draws."""
        self.name = name
        self.parameters = parameters

    @property
    def identity(self) -> str:
        """With a checksum of the parameters."""
        text = json.dumps(dataclasses.asdict(self.parameters), sort_keys=True)
        return f"{self.name} of parameters {zlib.crc32(text.encode()):08x}"

    def low(self, high: Levels, scale: int, random: np.random.Generator) -> Levels:
        """Degrade a photograph; every draw is of `random`."""
        first, second = self.parameters.first, self.parameters.second
        whole = high.shape[1], high.shape[2]
        size = whole[0] // scale, whole[1] // scale
        image: Image = high.astype(np.float32) / 255
        image = _blurred(image, first.blur, random)
        image = _resized(image, first.resize, whole, random)
        image = _noisy(image, first.noise, random)
        image = _compressed(image, first.jpeg, random)
        image = _blurred(image, second.blur, random)
        image = _resized(image, second.resize, size, random)
        image = _noisy(image, second.noise, random)
        compresses_last = random.random() < 0.5
        if not compresses_last:
            image = _compressed(image, second.jpeg, random)
        image = resized(image, size, MODES[random.integers(len(MODES))])
        if random.random() < self.parameters.final_sinc:
            side = drawn_size(second.blur, random)
            image = _convolved(image, sinc_kernel(side, random.uniform(math.pi / 3, math.pi)))
        if compresses_last:
            image = _compressed(image, second.jpeg, random)
        return _levels(image)


def _blurred(image: Image, blur: Blur, random: np.random.Generator) -> Image:
    if random.random() >= blur.probability:
        return image
    return _convolved(image, drawn_kernel(blur, random))


def _convolved(image: Image, kernel: Kernel) -> Image:
    reach = len(kernel) // 2
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), "reflect")
    result: Image = fftconvolve(padded, kernel[None], "valid", axes=(1, 2))
    return result


def _resized(
    image: Image, resize: Resize, size: tuple[int, int], random: np.random.Generator
) -> Image:
    """Resize to a random multiple of `size`."""
    weights = np.array([resize.up, resize.down, resize.keep])
    way = random.choice(3, p=weights / weights.sum())
    least, most = resize.range
    factor = (random.uniform(1, most), random.uniform(least, 1), 1.0)[way]
    mode = MODES[random.integers(len(MODES))]
    height, width = (max(int(side * factor), 1) for side in size)
    return resized(image, (height, width), mode)


def _noisy(image: Image, noise: Noise, random: np.random.Generator) -> Image:
    if random.random() >= noise.probability:
        return image
    is_grey = random.random() < noise.grey
    if random.random() < noise.gaussian:
        sigma = between(noise.sigma, random) / 255
        shape = (1 if is_grey else 3, *image.shape[1:])
        added = random.standard_normal(shape, np.float32) * np.float32(sigma)
    else:
        light = np.tensordot(_LUMA, image, 1)[None] if is_grey else image
        added = _poisson(light, random) * np.float32(between(noise.poisson, random))
    return (image + added).clip(0, 1)


def _poisson(light: Image, random: np.random.Generator) -> Image:
    """Noise as of so many photons for white as there are different levels, rounded up to 2^n."""
    levels = _levels(light)
    photons = 2.0 ** math.ceil(math.log2(len(np.unique(levels))))
    expected = levels / np.float32(255)
    counted = random.poisson(expected * photons)
    return (counted / photons - expected).astype(np.float32)


def _compressed(image: Image, jpeg: Jpeg, random: np.random.Generator) -> Image:
    if random.random() >= jpeg.probability:
        return image
    least, most = jpeg.quality
    file = io.BytesIO()
    levels = np.ascontiguousarray(_levels(image).transpose(1, 2, 0))
    quality = int(random.integers(least, most + 1))
    PillowImage.fromarray(levels).save(file, "jpeg", quality=quality)
    with PillowImage.open(file) as opened:
        decoded = np.asarray(opened)
    return decoded.transpose(2, 0, 1).astype(np.float32) / 255


def _levels(image: Image) -> Levels:
    levels: Levels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    return levels
