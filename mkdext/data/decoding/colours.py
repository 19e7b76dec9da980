"""Colour profiles: which ones fit, and inks that become light."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from mkdext.data.decoding.decoded import Levels

_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}


def profile_fits(icc_profile: bytes, is_grey: bool) -> bool:
    """Whether grey or RGB pictures can be converted by a profile: it is whole, and of these."""
    return _transform(icc_profile, "L" if is_grey else "RGB") is not None


def rgb_of_cmyk(image: Image.Image, icc_profile: bytes | None) -> Levels:
    """Inks as RGB `[H, W, 3]`.

    They are converted to sRGB by their profile, and where there is none, or it is damaged or of
    other colours, as if each ink took away one third of the light.
    """
    transform = None if icc_profile is None else _transform(icc_profile, "CMYK")
    if transform is None:
        return np.asarray(image.convert("RGB"))
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # It is none only when converted in place.
    return np.asarray(converted)


@functools.lru_cache(maxsize=8)
def _transform(icc_profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if profile.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
