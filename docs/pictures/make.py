"""The strip of pictures in README.md, made by a trained student of a photograph held out from it.

    python -m mkdext.train --out runs/demo
    python docs/pictures/make.py --weights runs/demo/checkpoints/student.safetensors

The photograph is scikit-image's astronaut: Eileen Collins, NASA, in the public domain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mkdext.data import builtin_photographs, imresize, read_image
from mkdext.metrics import psnr_y, to_uint8
from mkdext.models import builtin_teacher, load_model

SCALE = 4
WINDOWS = ((70, 174), (344, 126))
"""Top and left of the parts that are shown, in pixels of the photograph."""
SIDE, ZOOM, GAP, LINE = 96, 2, 6, 20
"""Side of a part, how many times it is shown larger, and what is between and above the parts."""


def main() -> None:
    """Write the strip, and print what the whole photograph measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="weights of the student")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("strip.png"))
    options = parser.parse_args()
    pictures = enlarged(options.weights)
    truth = pictures["truth"]
    scores = {name: psnr_y(made, truth, SCALE) for name, made in pictures.items()}
    captions = {
        name: f"{name} {float(score):.2f} dB" if name in {"bicubic", "student", "teacher"} else name
        for name, score in scores.items()
    }
    strip(pictures, captions).save(options.out, optimize=True)
    print(", ".join(captions.values()), "->", options.out)


@torch.no_grad()
def enlarged(weights: Path) -> dict[str, Tensor]:
    """The photograph five ways, each `[3, H, W]` of 8-bit levels."""
    photograph = read_image(builtin_photographs("validation")[0])
    low = to_uint8(imresize(photograph.float() / 255, 1 / SCALE)).float() / 255
    student, teacher = load_model(weights).eval(), builtin_teacher()
    return {
        "low resolution": to_uint8(low.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)),
        "bicubic": to_uint8(imresize(low, SCALE)),
        "student": to_uint8(student(low[None])[0]),
        "teacher": to_uint8(teacher(low[None])[0]),
        "truth": photograph,
    }


def strip(pictures: dict[str, Tensor], captions: dict[str, str]) -> Image.Image:
    """The parts below one another, the ways beside one another."""
    tile = SIDE * ZOOM
    width = len(pictures) * (tile + GAP) - GAP
    sheet = Image.new("RGB", (width, LINE + len(WINDOWS) * (tile + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (name, picture) in enumerate(pictures.items()):
        left = column * (tile + GAP)
        draw.text((left + tile / 2, 1), captions[name], "black", font, anchor="ma")
        for row, (y, x) in enumerate(WINDOWS):
            part = picture[:, y : y + SIDE, x : x + SIDE].permute(1, 2, 0).numpy()
            shown = Image.fromarray(part).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(shown, (left, LINE + row * (tile + GAP)))
    return sheet


if __name__ == "__main__":
    main()
