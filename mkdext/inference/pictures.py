"""Pictures with all that belongs to them: grey or colour, alpha, 16 bits, profile, EXIF."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from mkdext.data import BadImageError
from mkdext.inference.png import Levels

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_BIG, _LITTLE = ";16B", ";16L"  # Pillow's names of byte orders
_OTHER_ORDER = {
    _BIG: _LITTLE,
    _LITTLE: _BIG,
    ";16N": _BIG if sys.byteorder == "little" else _LITTLE,
}
_SPREAD = 32  # pixels, more than what a network's output mostly depends on
_GREY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture, upright."""

    levels: Levels
    """uint8 or uint16 `[H, W, channels]`: grey, grey and alpha, RGB or RGBA."""
    icc_profile: bytes | None
    """Meaning of the colours."""
    exif: bytes | None
    """The camera's notes, without orientation."""

    @property
    def bits(self) -> int:
        """8 or 16, of one channel of one pixel."""
        return self.levels.itemsize * 8

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is opacity."""
        return self.levels.shape[2] in (2, 4)

    @property
    def white(self) -> int:
        """The highest level."""
        return int(2**self.bits - 1)

    def colours(self) -> Tensor:
        """What a network takes: `[3, H, W]` in [0, 1], grey three times.

        Pixels that cannot be seen take their colour from those around them that can, so that what a
        file hides under full transparency does not come to light at the edges.
        """
        levels = self.levels[..., :-1] if self.has_alpha else self.levels
        planes = torch.from_numpy(levels.astype(np.float32) / self.white).permute(2, 0, 1)
        if self.has_alpha:
            planes = _spread(planes, torch.from_numpy(self.levels[..., -1] > 0))
        return planes.expand(3, -1, -1)

    def alpha(self) -> Tensor | None:
        """Opacity `[1, H, W]` in [0, 1]; none if there is no such channel."""
        if not self.has_alpha:
            return None
        return torch.from_numpy(self.levels[None, ..., -1].astype(np.float32) / self.white)

    def like(self, colours: Tensor, alpha: Tensor | None) -> Levels:
        """Levels of the same kind as this picture's.

        Args:
            colours: `[3, h, w]` in [0, 1], clipped.
            alpha: `[1, h, w]` in [0, 1], clipped; none if this picture has none.

        Returns:
            `[h, w, channels]`.
        """
        if self.levels.shape[2] <= 2:
            weights = torch.tensor(_GREY_WEIGHTS).view(3, 1, 1)
            colours = (colours * weights).sum(dim=0, keepdim=True)
        planes = colours if alpha is None else torch.cat((colours, alpha))
        levels = (planes * self.white).round_().clamp_(0, self.white)
        return levels.permute(1, 2, 0).numpy().astype(self.levels.dtype)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as stored, without decoding.

    Raises:
        BadImageError: The file is no picture that can be enlarged.
    """
    with _opened(path) as file:
        return file.size


def read_picture(path: Path) -> Picture:
    """Decode a picture.

    A palette becomes RGB, CMYK becomes RGB by its profile, a camera's orientation is applied.

    Raises:
        BadImageError: The file is missing, unreadable, no picture, damaged, of several pages or
            frames, or has 32-bit or floating-point pixels.
    """
    with _opened(path) as file:
        try:
            return _decoded(file, path)
        except BadImageError:
            raise
        # Pillow's decoders raise whatever a damaged file makes them stumble over.
        except Exception as error:
            raise BadImageError(
                f"cannot be decoded ({str(error) or type(error).__name__})"
            ) from None


def _spread(planes: Tensor, visible: Tensor) -> Tensor:
    """Planes `[C, H, W]` whose visible pixels `[H, W]` have grown over the others near them."""
    known = visible[None].float()
    planes = planes * known
    for _ in range(_SPREAD):
        if known.all() or not known.any():
            break
        total = functional.avg_pool2d(torch.cat((planes, known)), 3, stride=1, padding=1)
        mean = total[:-1] / total[-1:].clamp(min=1e-6)
        planes, known = torch.where(known > 0, planes, mean), (total[-1:] > 0).float()
    return planes


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    try:
        with warnings.catch_warnings():
            # Whoever decodes it knows how much memory there is.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        reason = "not an image of a known format, whatever its name says"
        raise BadImageError(reason if path.stat().st_size else "is empty (0 bytes)") from None
    except Image.DecompressionBombError as error:
        raise BadImageError(f"is too large ({error})") from None
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror or error})") from None
    with file:
        yield file


def _decoded(file: ImageFile.ImageFile, path: Path) -> Picture:
    # A camera's MPO file holds the photograph first, then previews or a second view.
    frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
    if frames > 1:
        raise BadImageError(f"holds {frames} pages or frames; save one as a still image")
    if file.mode in ("I", "F", "LAB"):
        raise BadImageError(f"has pixels of type {file.mode}; save it as RGB with 8 or 16 bits")
    icc_profile = file.info.get("icc_profile")
    if any(_raw_mode(tile)[-4:] in _OTHER_ORDER for tile in file.tile) and file.mode[0] != "I":
        levels = _levels_of_16_bits(file, path)
    else:
        image: Image.Image = file
        if file.mode == "CMYK":
            image, icc_profile = _rgb_of_cmyk(file, icc_profile), None
        levels = _levels(_upright(_plain(image)))
    # The tags of a TIFF are about how it is stored.
    exif = file.getexif() if file.format != "TIFF" else Image.Exif()
    exif.pop(ExifTags.Base.Orientation, None)
    notes = exif.tobytes().removeprefix(b"Exif\0\0") if len(exif) else None
    return Picture(levels, icc_profile, notes)


def _plain(image: Image.Image) -> Image.Image:
    """The image in one of the modes L, LA, RGB, RGBA, I;16."""
    if image.mode == "1":
        image = image.convert("L")
    if image.mode.startswith("I;16"):
        return image
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _levels(image: Image.Image) -> Levels:
    levels = np.asarray(image)
    levels = levels if levels.ndim == 3 else levels[..., None]
    return levels.astype(np.uint16) if levels.itemsize > 1 else levels


def _rgb_of_cmyk(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile is None:
        return image.convert("RGB")
    converted = ImageCms.profileToProfile(
        image, io.BytesIO(icc_profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None  # It is none only when converted in place.
    return converted


def _levels_of_16_bits(file: ImageFile.ImageFile, path: Path) -> Levels:
    """Decode a picture of 16-bit colours, of which Pillow gives the higher byte.

    With the bytes declared in the other order it takes the lower for the higher.
    """
    if _raw_mode(file.tile[0]) == f"LA{_BIG}":
        # Its four bytes a pixel are declared as four channels.
        file.tile = [tile._replace(args="RGBA") for tile in file.tile]
        return np.ascontiguousarray(_levels(_upright(file))).view(">u2").astype(np.uint16)
    high = _levels(_upright(file))
    with _opened(path) as again:
        again.tile = [_in_other_order(tile) for tile in again.tile]
        low = _levels(_upright(again))
    return high.astype(np.uint16) << 8 | low


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])


def _in_other_order(tile: Any) -> Any:
    mode = _raw_mode(tile)
    other = mode[:-4] + _OTHER_ORDER[mode[-4:]]
    arguments = other if isinstance(tile[3], str) else (other, *tile[3][1:])
    return tile._replace(args=arguments)
