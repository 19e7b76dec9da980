"""Photographs: image files and stores of them, MATLAB's bicubic, random training patches."""

from __future__ import annotations

from mkdext.data.builtin import BUILTIN_NAME, builtin_photographs
from mkdext.data.contents import Contents, read_contents
from mkdext.data.decoding import BadImageError, Decoded, Levels, decode, profile_fits, read_header
from mkdext.data.degradation import (
    BICUBIC,
    DEGRADATIONS,
    Degradation,
    degradation_of,
    is_degradation_file,
    is_random_degradation,
    require_degradation,
)
from mkdext.data.duplicates import Duplicate, Fingerprint, find_duplicates, fingerprint
from mkdext.data.fitting import fitted
from mkdext.data.folders import IMAGE_SUFFIXES, find_images, match_low_resolution
from mkdext.data.images import BadImage, bad_images_message, check_images, read_image
from mkdext.data.imresize import imresize
from mkdext.data.in_memory import Image, ImagesInMemory
from mkdext.data.known_sets import KNOWN_SETS, KnownSet, compare_with_known
from mkdext.data.pairs import GivenPair, ImagePairs, LowImages, Photograph, make_pair
from mkdext.data.patches import PatchSampler
from mkdext.data.prepare import Prepared, prepare_store
from mkdext.data.store import (
    StoredPair,
    are_given,
    find_photographs,
    is_store,
    read_store,
    require_made,
)

__all__ = [
    "BICUBIC",
    "BUILTIN_NAME",
    "DEGRADATIONS",
    "IMAGE_SUFFIXES",
    "KNOWN_SETS",
    "BadImage",
    "BadImageError",
    "Contents",
    "Decoded",
    "Degradation",
    "Duplicate",
    "Fingerprint",
    "GivenPair",
    "Image",
    "ImagePairs",
    "ImagesInMemory",
    "KnownSet",
    "Levels",
    "LowImages",
    "PatchSampler",
    "Photograph",
    "Prepared",
    "StoredPair",
    "are_given",
    "bad_images_message",
    "builtin_photographs",
    "check_images",
    "compare_with_known",
    "decode",
    "degradation_of",
    "find_duplicates",
    "find_images",
    "find_photographs",
    "fingerprint",
    "fitted",
    "imresize",
    "is_degradation_file",
    "is_random_degradation",
    "is_store",
    "make_pair",
    "match_low_resolution",
    "prepare_store",
    "profile_fits",
    "read_contents",
    "read_header",
    "read_image",
    "read_store",
    "require_degradation",
    "require_made",
]
