"""The HTML page of results, as a file and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mkdext.page import Curves, Gallery, Page, Sheet, write_page

WAYS = ("low resolution", "bicubic", "student", "photograph")
BROWSER = shutil.which("chromium") or shutil.which("chrome")


def scene(side: int = 64, width: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    size = (3, side, width or side)
    pictures = {
        way: torch.randint(0, 256, size, dtype=torch.uint8, generator=numbers) for way in WAYS[1:]
    }
    return {WAYS[0]: pictures["photograph"][:, ::4, ::4], **pictures}


@pytest.fixture
def page() -> Page:
    gallery = Gallery("bicubic", "student")
    for number in range(3):
        gallery.add(f"{number}.png", scene(seed=number), {"student": "30.12 dB"})
    return Page(
        title="a </script> & <b>student</b>",
        facts={"recipe": "best", "steps": "</script><b>1</b>"},
        command="python -m mkdext.train --out 'a b'",
        tables=[Sheet("scores", ["set", "PSNR"], [["b", "9.5 dB"], ["a", "30.1 dB"], ["c", ""]])],
        curves=[
            Curves("losses", {"reconstruction": [(1, 0.1), (2, 0.01)]}, logarithmic=True),
            Curves("PSNR", {"student": [(10, 29.0), (20, 30.5)]}, {"bicubic": 28.4}, " dB"),
            Curves("one point", {"student": [(10, 29.0)], "none": [(1, float("nan"))]}),
        ],
        gallery=gallery,
    )


def data_of(file: Path) -> dict:
    text = file.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])


def test_the_page_needs_no_other_file_and_texts_stay_texts(page, tmp_path):
    write_page(tmp_path / "report.html", page)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(
        r"https?://(?!www\.w3\.org)|url\(|@import|<link(?! rel=\"icon\" href=\"data:)", text
    )
    assert "<b>student" not in text and "{{" not in text
    data = data_of(tmp_path / "report.html")
    assert dict(data["facts"]) == page.facts and data["command"] == page.command
    assert len(data["curves"][2]["lines"]) == 1  # What is not finite is not drawn.


def test_the_pictures_that_differ_most_are_kept_as_far_as_there_is_room():
    gallery = Gallery("bicubic", "student", most_bytes=60_000)
    for number in range(4):
        pictures = scene(seed=number)
        if number != 2:
            pictures["student"] = pictures["bicubic"].clone()
        gallery.add(str(number), pictures)
    kept = [scene["name"] for scene in gallery.scenes()]
    assert kept[0] == "2" and gallery.left_out == 4 - len(kept) > 0


@pytest.mark.parametrize(("height", "width"), [(600, 1000), (1000, 300), (513, 512)])
def test_of_a_large_picture_the_part_is_shown_that_differs_most(height, width):
    height, width = height // 4 * 4, width // 4 * 4
    pictures = {way: torch.zeros(3, height, width, dtype=torch.uint8) for way in WAYS[1:]}
    pictures[WAYS[0]] = torch.zeros(3, height // 4, width // 4, dtype=torch.uint8)
    pictures["student"][:, -40:, -40:] = 255
    gallery = Gallery("bicubic", "student")
    gallery.add("large", pictures)
    (shown,) = gallery.scenes()
    side = min(512, height, width)
    expected = [side, side] if max(height, width) > 512 else [width, height]
    assert [shown["width"], shown["height"]] == expected
    assert f"of {width}x{height}" in shown["note"] or max(height, width) <= 512


CHECKS = (Path(__file__).parent / "checks.js").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1200, True)])
def test_it_works_in_a_browser(page, tmp_path, width, dark):
    write_page(tmp_path / "report.html", page)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "checked.html").write_text(
        text.replace("</body>", f"<script>{CHECKS}</script></body>"), "utf-8"
    )
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *(f"--window-size={width},800", f"--user-data-dir={tmp_path / 'browser'}"),
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        *("--virtual-time-budget=3000", "--dump-dom", (tmp_path / "checked.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout)[1]
    assert title == f"told: ; dark {str(dark).lower()}"
    assert "CONSOLE" not in done.stderr
