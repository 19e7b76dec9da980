"""Pictures of the same scenes, to be laid over each other."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from mkdext.metrics import strongest_window

SIDE = 512
"""Largest width and height of a scene, in high-resolution pixels."""

_MOST_BYTES = 3_400_000  # of all pictures, which text makes a third longer


class _Scene(NamedTuple):
    difference: float
    name: str
    width: int
    height: int
    note: str
    pictures: dict[str, tuple[bytes, str]]
    """A file and what to say of it, by name."""

    @property
    def size(self) -> int:
        return sum(len(content) for content, _ in self.pictures.values())


class Gallery:
    """The scenes in which two pictures differ most, as many as a page holds.

    Pictures are kept without loss.

    Example:
        >>> import torch
        >>> gallery, black = Gallery("bicubic", "student"), torch.zeros(3, 64, 48).byte()
        >>> gallery.add("a.png", {"bicubic": black, "student": black}, {"student": "30.00 dB"})
        >>> [(scene["name"], scene["width"]) for scene in gallery.scenes()]
        [('a.png', 48)]
    """

    def __init__(self, one: str, other: str, most_bytes: int = _MOST_BYTES) -> None:
        """Take the names of the two pictures, and how long all files together may be."""
        self.one = one
        self.other = other
        self._most_bytes = most_bytes
        self._scenes: list[_Scene] = []
        self.left_out = 0
        """Scenes for which there was no room."""

    def add(
        self, name: str, pictures: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
    ) -> None:
        """Add a scene, if there is room or it differs more than another.

        Of a larger one the square is kept in which the two pictures differ most.

        Args:
            name: Of the scene.
            pictures: uint8 `[3, H, W]` by name, and smaller versions, of which H and W are
                multiples.
            notes: What to say of a picture.
        """
        height, width = pictures[self.one].shape[1:]
        error = (pictures[self.one].float() - pictures[self.other].float()).square().mean(dim=0)
        difference = float(error.mean())
        if self.left_out and difference <= self._scenes[-1].difference:
            self.left_out += 1
            return
        box, note = (0, 0, width, height), ""
        if max(height, width) > SIDE:
            times = max(height // p.shape[1] for p in pictures.values())
            left, top, side = (n // times * times for n in strongest_window(error, SIDE)[0])
            box, note = (left, top, side, side), f"{side}x{side} of {width}x{height} pixels"
        shown = {n: _cut(p, box, height // p.shape[1]) for n, p in pictures.items()}
        encoded = {n: (_encoded(p), (notes or {}).get(n, "")) for n, p in shown.items()}
        scene = _Scene(difference, name, *box[2:], note, encoded)
        self._scenes = sorted([*self._scenes, scene], key=lambda s: -s.difference)
        while len(self._scenes) > 1 and sum(s.size for s in self._scenes) > self._most_bytes:
            self._scenes.pop()
            self.left_out += 1

    def scenes(self) -> list[dict[str, Any]]:
        """For the page, those that differ most first."""
        return [
            {
                "name": scene.name,
                "width": scene.width,
                "height": scene.height,
                "note": scene.note,
                "pictures": [
                    {"name": name, "note": note, "source": _as_text(content)}
                    for name, (content, note) in scene.pictures.items()
                ],
            }
            for scene in self._scenes
        ]


def _cut(picture: Tensor, box: tuple[int, int, int, int], times: int) -> Tensor:
    """A part of a picture that is so many times smaller than the scene."""
    left, top, width, height = (length // times for length in box)
    return picture[:, top : top + height, left : left + width]


def _encoded(picture: Tensor) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    image.save(content, "webp", lossless=True, quality=40, exact=True)
    return content.getvalue()


def _as_text(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode()
