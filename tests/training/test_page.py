"""The page of a training, while it goes and at its end."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from rich.console import Console

from mkdext.training import train
from tests.training.test_step import TINY


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])


def test_a_training_shows_itself_while_it_goes_and_at_its_end(photographs, tmp_path):
    folders = {"train_dir": (photographs,), "val_dir": (photographs,)}
    options = dataclasses.replace(
        TINY, method="fitnet", validate_every=2, log_every=1, out=tmp_path / "run", **folders
    )
    page = tmp_path / "run/report.html"
    seen: list[str] = []

    def look(step, values, student):
        if step == 3:
            seen.append(page.read_text(encoding="utf-8"))

    summary = train(options, Console(quiet=True), callback=look)
    meanwhile, at_the_end = data_of(seen[0]), data_of(page.read_text(encoding="utf-8"))
    assert "refresh" in seen[0] and "http-equiv" not in page.read_text(encoding="utf-8")
    assert dict(meanwhile["facts"])["steps"] == "2 of 4"
    assert len(meanwhile["scenes"]) == 1 and len(at_the_end["scenes"]) == 2
    names = [picture["name"] for picture in at_the_end["scenes"][0]["pictures"]]
    assert names == ["low resolution", "bicubic", "student", "teacher", "photograph"]
    (table,) = at_the_end["tables"]
    student = summary["validation"]["photographs"]["student"]["psnr_y"]
    assert f"{student:.2f} dB" in table["rows"][0]
    titles = {curves["title"]: curves for curves in at_the_end["curves"]}
    (scores,) = titles["PSNR-Y on photographs"]["lines"]
    assert [step for step, _ in scores["points"]] == [2, 4]
    assert [line["name"] for line in titles["Losses"]["lines"]] == [
        "reconstruction",
        "distillation",
    ]
    assert "Gradients" in titles and Path(options.out, "summary.json").exists()
