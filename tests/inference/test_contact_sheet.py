"""Sheets of cuttings."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mkdext.inference import contact_sheet
from mkdext.inference.contact_sheet import ContactSheet

HR = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)


def test_a_sheet_takes_so_many_photographs_and_counts_the_others(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST_ROWS", 2)
    sheet = ContactSheet(["HR", "bicubic"])
    for number in range(5):
        sheet.add(f"{number}.png", HR, {"bicubic": (HR.flip(1), 20.0)})
    sheet.save(tmp_path / "sheet.png")
    assert (sheet.rows, sheet.left_out) == (2, 3)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.height < 1.5 * image.width


def test_a_way_that_failed_leaves_its_place_empty(tmp_path: Path):
    sheet = ContactSheet(["HR", "bicubic", "network"])
    sheet.add("none.png", HR, {})
    sheet.add("a.png", HR, {"network": (HR.flip(1), float("inf"))})
    sheet.save(tmp_path / "sheet.png")
    assert sheet.rows == 1
    with Image.open(tmp_path / "sheet.png") as image:
        width, height = image.size
        middle = image.convert("L").crop(
            (width // 3 + 9, height // 3, 2 * width // 3 - 9, height // 2)
        )
        assert middle.getextrema() == (255, 255)
