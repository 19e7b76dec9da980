"""Photographs: decoding and checking them, MATLAB's bicubic, random training patches."""

from mkdext.data.builtin import builtin_photographs
from mkdext.data.images import (
    IMAGE_SUFFIXES,
    BadImage,
    BadImageError,
    bad_images_message,
    check_images,
    find_images,
    read_image,
)
from mkdext.data.imresize import imresize
from mkdext.data.patches import ImagePairs, PatchSampler, make_pair

__all__ = [
    "IMAGE_SUFFIXES",
    "BadImage",
    "BadImageError",
    "ImagePairs",
    "PatchSampler",
    "bad_images_message",
    "builtin_photographs",
    "check_images",
    "find_images",
    "imresize",
    "make_pair",
    "read_image",
]
