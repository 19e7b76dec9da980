"""The command as a user meets it: a grid of trainings, their report, interruptions, bad input."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

import mkdext.comparison.processes as processes
from mkdext import train
from mkdext._cli import cell
from mkdext._system.files import locked
from mkdext.compare import main, parse
from mkdext.comparison import crops
from mkdext.comparison.cells import as_folder
from mkdext.comparison.results import read_results
from mkdext.models import create_model
from mkdext.page import Gallery
from mkdext.training import TrainOptions
from mkdext.training.photographs import validation_sets
from mkdext.training.run.directory import RunDirectory

METHODS = ("vanilla", "fitnet")
ROOT = Path(__file__).resolve().parents[2]


class InProcess:
    """A training in this process instead of one of its own, which takes seconds to start."""

    commands: list[list[str]]
    stdin = None

    def __init__(self, command, *, stdin, stdout, stderr, env) -> None:
        assert command[1:3] == ["-m", "mkdext._cli.cell"]
        assert env["OMP_NUM_THREADS"] == "1"
        self.commands.append(command)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            self.returncode = cell.train_in(Path(command[4]), command[5])

    def poll(self) -> int:
        return self.returncode

    wait = poll


@pytest.fixture
def trained(monkeypatch) -> list[list[str]]:
    """Train in this process; the commands that were called."""
    monkeypatch.setattr(InProcess, "commands", [], raising=False)
    monkeypatch.setattr(processes.subprocess, "Popen", InProcess)
    monkeypatch.setattr(processes, "_POLL_SECONDS", 0)
    return InProcess.commands


@pytest.fixture(scope="module")
def flags(photographs: Path, tmp_path_factory) -> list[str]:
    """Flags of cells of a second each."""
    return [
        *("--train-dir", str(photographs), "--val-dir", str(photographs)),
        *("--iterations", "2", "--batch-size", "2", "--patch-size", "8", "--validate-every", "1"),
        *("--log-every", "1", "--checkpoint-every", "1", "--jobs", "2", "--imitation", "0"),
    ]


@pytest.fixture(scope="module")
def comparison(flags, tmp_path_factory) -> Path:
    """Two methods, two seeds, a teacher's cache; not to be changed."""
    out = tmp_path_factory.mktemp("comparisons") / "comparison"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "commands", [], raising=False)
        patch.setattr(processes.subprocess, "Popen", InProcess)
        patch.setattr(processes, "_POLL_SECONDS", 0)
        assert main([*flags, *grid(out)]) == 0
        assert len(InProcess.commands) == 4
    return out


def grid(out: Path, methods: str = "vanilla,fitnet", seeds: int = 2) -> list[str]:
    own = ["--method-options", "fitnet", "kd-weight=0.5", "meta.lr=3e-3"]
    return [
        *("--methods", methods, "--seeds", str(seeds), "--out", str(out)),
        *("--teacher-cache", str(out.parent / "cache"), "--teacher-cache-crops", "3"),
        *(own if "fitnet" in methods else []),
    ]


def run(out: Path, method: str, seed: int) -> Path:
    return out / "cells" / "rcan-a" / method / f"seed-{seed}"


def first_loss(run: Path) -> float:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["reconstruction"]


def test_methods_begin_with_the_same_weights_on_the_same_patches(comparison):
    losses = {(m, seed): first_loss(run(comparison, m, seed)) for m in METHODS for seed in (0, 1)}
    assert losses["vanilla", 0] == losses["fitnet", 0] != losses["vanilla", 1]
    assert losses["vanilla", 1] == losses["fitnet", 1]


def test_a_cell_is_an_ordinary_training_with_the_options_of_its_method(comparison):
    vanilla, fitnet = (
        train.parse(["--config", str(run(comparison, method, 1) / "config.yaml")]).options()
        for method in METHODS
    )
    assert (vanilla.seed, fitnet.seed, vanilla.iterations) == (1, 1, 2)
    assert (fitnet.kd_weight, fitnet.meta.lr) == (0.5, 3e-3)
    assert vanilla.meta.lr == 1e-4
    assert fitnet.teacher_cache == comparison.parent / "cache" / "rcan-a" / "seed-1" / "features"


@pytest.mark.slow
def test_students_are_compared_on_low_resolution_pictures_alone(trained, photographs, tmp_path):
    flags = [
        *("--train-low-dir", str(photographs), "--methods", "response,at", "--seeds", "1"),
        *("--iterations", "2", "--batch-size", "2", "--patch-size", "8", "--validate-every", "1"),
        *("--out", str(tmp_path / "out")),
    ]
    assert main(flags) == 0
    report = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {row["photographs"] for row in report["methods"]} == {
        "held-out pictures, to the teacher"
    }
    assert [row["method"] for row in report["methods"]] == ["at", "response"]
    assert len(list((tmp_path / "out").glob("crops_*.png"))) == 1


def test_tables_hold_means_gains_and_costs(comparison):
    report = json.loads((comparison / "comparison.json").read_text())
    with (comparison / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["seed"]) for line in lines] == [
        *(("vanilla", "0"), ("vanilla", "1"), ("fitnet", "0"), ("fitnet", "1"))
    ]
    psnr = [float(line["psnr_y"]) for line in lines]
    rows = {row["method"]: row for row in report["methods"]}
    assert rows["vanilla"]["psnr_y"]["mean"] == pytest.approx(sum(psnr[:2]) / 2)
    gain = rows["fitnet"]["psnr_gain"]
    assert gain["mean"] == pytest.approx((psnr[2] - psnr[0] + psnr[3] - psnr[1]) / 2)
    assert rows["vanilla"]["psnr_gain"] is None
    for line in lines:
        cell = run(comparison, line["method"], int(line["seed"]))
        seconds = json.loads((cell / "summary.json").read_text())["seconds"]
        assert float(line["seconds_per_step"]) == pytest.approx(seconds / 2) and seconds > 0
        records = map(json.loads, (cell / "metrics.jsonl").read_text().splitlines())
        peaks = [record["peak_bytes"] for record in records if "peak_bytes" in record]
        assert int(line["peak_bytes"]) == max(peaks) > 10**8
    assert report["students"]["rcan-a"]["paper_flops"] == pytest.approx(22.03e9, rel=1e-3)
    summary = json.loads((run(comparison, "fitnet", 1) / "summary.json").read_text())
    assert psnr[3] == summary["validation"]["photographs"]["student"]["psnr_y"]


def test_the_best_is_marked_in_the_markdown_table(comparison):
    text = (comparison / "comparison.md").read_text()
    report = json.loads((comparison / "comparison.json").read_text())
    means = {row["method"]: row["psnr_y"]["mean"] for row in report["methods"]}
    best, second = sorted(means, key=means.get, reverse=True)
    table = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:2] == "| "}
    assert f"| **{means[best]:.3f} ± " in table[best]
    assert f"| _{means[second]:.3f} ± " in table[second]
    assert {"bicubic", "teacher"} < table.keys()
    assert "![cost](cost.png)" in text


def test_pictures_are_drawn(comparison):
    for name in ("curves.png", "cost.png", "crops_rcan-a_photographs.png"):
        with Image.open(comparison / name) as image:
            assert min(image.size) > 200


def test_crops_are_of_the_photographs_where_methods_differ_most(comparison, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(crops, "_ROWS", 1)
    monkeypatch.setattr(crops.ContactSheet, "add", lambda sheet, name, *_: shown.append(name))
    monkeypatch.setattr(crops.ContactSheet, "save", lambda sheet, path: None)
    results = read_results(comparison)
    gallery = Gallery("vanilla", "fitnet")
    crops.save_crops(tmp_path, results, Console(quiet=True), gallery)
    networks = {result.method: crops._network(result) for result in results if result.seed == 0}
    options = TrainOptions(val_dir=results[0].val_dir)
    (measured,) = validation_sets(options, lambda title: iter).values()
    found = list(crops._differing(measured.pairs, networks, 4))
    assert len(found) == 2 and found[0].variance != found[1].variance
    assert shown == [max(found, key=lambda photograph: photograph.variance).name]
    (scene,) = gallery.scenes()
    assert scene["name"] == f"rcan-a, photographs, {shown[0]}"
    names = [picture["name"] for picture in scene["pictures"]]
    assert names == ["low resolution", "bicubic", "vanilla", "fitnet", "photograph"]


def test_the_page_holds_the_table_curves_and_pictures(comparison):
    text = (comparison / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])
    (table,) = data["tables"]
    assert [row[0] for row in table["rows"]] == ["bicubic", "teacher", "vanilla", "fitnet"]
    (curves,) = data["curves"]
    assert [line["name"] for line in curves["lines"]] == ["vanilla", "fitnet"]
    assert len(data["scenes"]) == 2


def test_a_finished_comparison_only_writes_its_report_again(comparison, flags, trained, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(comparison, out)
    table = (out / "comparison.md").read_text()
    (out / "comparison.md").unlink()
    flags = [*flags, *grid(out), "--teacher-cache", str(comparison.parent / "cache")]
    assert main(flags) == 0
    assert not trained
    assert (out / "comparison.md").read_text() == table


@pytest.mark.slow
def test_a_method_or_a_seed_more_trains_only_what_is_missing(comparison, flags, trained, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(comparison, out)
    shutil.rmtree(run(out, "vanilla", 1))
    cache = ["--teacher-cache", str(comparison.parent / "cache")]
    assert main([*flags, *grid(out, "vanilla", 2), *cache]) == 0
    assert main([*flags, *grid(out, "response", 1), *cache]) == 0
    assert [Path(command[4]) for command in trained] == [
        run(out, "vanilla", 1),
        run(out, "response", 0),
    ]
    # What was there counts all the same.
    methods = json.loads((out / "comparison.json").read_text())["methods"]
    assert [(row["method"], row["psnr_y"]["seeds"]) for row in methods] == [
        *(("vanilla", 2), ("fitnet", 2), ("response", 1))
    ]
    again, before = (run(where, "vanilla", 1) for where in (out, comparison))
    weights = "checkpoints/student.safetensors"
    assert (again / weights).read_bytes() == (before / weights).read_bytes()


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_stops_no_other(flags, trained, tmp_path, capsys):
    out = tmp_path / "out"
    wild = ["--method-options", "fitnet", "lr=1e20"]
    assert (
        main([*flags, "--methods", "fitnet,vanilla", "--out", str(out), "--seeds", "1", *wild]) == 1
    )
    assert len(trained) == 2
    error = capsys.readouterr().err
    assert error.startswith("mkdext.compare: rcan-a, fitnet, seed 0 failed: step 1: ")
    assert "Lower --lr" in error
    assert json.loads((out / "comparison.json").read_text())["methods"][0]["method"] == "vanilla"


@pytest.mark.slow
def test_a_stopped_comparison_checkpoints_its_trainings(flags, tmp_path, capsys):
    out = tmp_path / "out"
    metrics = run(out, "vanilla", 0) / "metrics.jsonl"

    def stop() -> None:
        while not metrics.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    long = ["--methods", "vanilla", "--seeds", "1", "--iterations", "100000", "--out", str(out)]
    assert main([*flags, *long, "--checkpoint-every", "100000"]) == 128 + signal.SIGTERM
    assert "the same command continues" in capsys.readouterr().err
    log = (run(out, "vanilla", 0) / "output.log").read_text()
    step = torch.load(run(out, "vanilla", 0) / "checkpoints" / "state.pt")["step"]
    assert f"stopped after step {step}; the same command continues" in log


@pytest.mark.slow
def test_a_training_ends_with_a_comparison_that_is_killed(flags, tmp_path):
    out = tmp_path / "out"
    cell = run(out, "vanilla", 0)
    given = ["--methods", "vanilla", "--seeds", "1", "--iterations", "100000", "--out", str(out)]
    command = [sys.executable, "-m", "mkdext.compare", *flags, *given]
    comparison = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while comparison.poll() is None and not (cell / "metrics.jsonl").exists():
        time.sleep(0.02)
    with pytest.raises(ValueError, match="is in use"), locked(cell, "`out`", "training"):
        pass
    comparison.kill()
    comparison.communicate()
    ended = time.monotonic()
    while time.monotonic() < ended + 20:
        with contextlib.suppress(ValueError), locked(cell, "`out`", "training"):
            return
        time.sleep(0.02)
    pytest.fail("the training goes on")


def test_one_comparison_at_a_time(flags, trained, tmp_path, capsys):
    command = parse([*flags, "--seeds", "1", "--methods", "vanilla", "--out", str(tmp_path)])
    with command.comparison().opened():
        assert main([*flags, "--seeds", "1", "--methods", "vanilla", "--out", str(tmp_path)]) == 2
    assert "is in use by another comparison" in capsys.readouterr().err
    assert not trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "vanilla,fitnett"], "fitnett is unknown, there are vanilla, .*fitnet"),
        (["--methods", "mkd", "mkd"], "--methods has mkd twice"),
        (["--methods"], "--methods must name at least one"),
        (["--students", "rcan-d"], "rcan-d, vanilla: --student rcan-d is unknown.*did you mean"),
        (
            ["--teacher-weights", "x2.safetensors"],
            "rcan-a, fitnet: .*x2.safetensors.* is for x2",
        ),
        (["--method-options", "fitnet", "kd-weight"], "takes name=value, got 'kd-weight'"),
        (["--method-options", "fitnet", "kd-wait=1"], "did you mean kd_weight"),
        (["--method-options", "fitnett", "kd-weight=1"], "fitnett is unknown"),
        (
            ["--method-options", "vid", "kd-weight=1"],
            "--method-options vid: vid is not compared, --methods are vanilla, fitnet",
        ),
        (["--method-options"], "--method-options takes a method and name=value, got nothing"),
        (["--method-options", "fitnet"], "--method-options fitnet takes name=value, got nothing"),
        (["--method-options", "fitnet", "kd-weight=[1"], r"as in YAML, got 'kd-weight=\[1'"),
        (["--method-options", "fitnet", "batch-size=4"], "--batch-size must be the same for all"),
        (["--method-options", "fitnet", "teacher-cache=c"], "teacher-cache must be the same for a"),
        (["--val-dir", "nowhere"], "nowhere does not exist"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_bad_input_gets_one_clear_message_before_any_work(
    arguments, message, flags, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_file(create_model("rcan-a", 2).state_dict(), "x2.safetensors")
    flags = [*flags, "--methods", *METHODS, "--out", "out", *arguments]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("mkdext.compare: ")
    assert re.search(message, error), error
    assert not trained
    assert not Path("out").exists()


def test_what_does_not_fit_into_memory_is_refused(estimated, flags, trained, tmp_path, capsys):
    many = [*flags, "--methods", "vanilla", "--batch-size", "1000000"]
    assert main([*many, "--out", str(tmp_path / "out")]) == 2
    assert "of memory" in capsys.readouterr().err
    assert not trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be from 1 to 1000, got 0"),
        (["--seeds", "1001"], "--seeds must be from 1 to 1000, got 1001"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--method-options", "fitnet", "kd-weight=-1"], "--kd-weight must be at least 0, got -1"),
        (["--method-options", "fitnet", "lr=fast"], "'lr' must be a number, got 'fast'"),
    ],
)
def test_an_impossible_value_is_refused(arguments, message, flags, trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*flags, "--methods", *METHODS, "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mkdext.compare: ") and message in error
    assert not out.exists()


def test_a_flag_that_is_that_of_a_single_training_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--method", "fitnet"])
    assert stopped.value.code == 2
    assert "Perhaps you meant" in capsys.readouterr().err


def test_a_comparison_of_other_settings_is_refused(comparison, flags, trained, capsys):
    assert main([*flags, *grid(comparison), "--lr", "3e-4"]) == 2
    assert "holds a run with other options (lr was 0.004, now 0.0003)" in capsys.readouterr().err
    other = ["--method-options", "fitnet", "kd-weight=0.25"]
    assert main([*flags, *grid(comparison), *other]) == 2
    error = capsys.readouterr().err
    assert "rcan-a, fitnet, seed 0: " in error
    assert "kd_weight was 0.5, now 0.25" in error
    assert not trained


def test_a_configuration_file_may_be_that_of_a_training(comparison, tmp_path):
    config = run(comparison, "fitnet", 1) / "config.yaml"
    command = parse(["--config", str(config), "--methods", "vanilla,fitnet"])
    assert (command.students, command.seed, command.iterations) == (("rcan-a",), 1, 2)
    assert command.methods == ("vanilla,fitnet",)
    assert parse(["--config", str(config)]).methods == ("fitnet",)


@pytest.mark.parametrize("key", ["method_options", "method-options"])
def test_a_configuration_file_holds_options_of_methods(key, tmp_path):
    file = tmp_path / "compare.yaml"
    file.write_text(
        "methods: vanilla, mkd\nseeds: 5\nseed: 2\n"
        f"{key}:\n"
        "  mkd: {kd-weight: 1e-2, meta: {every: 4}, kd_fade: false}\n"
    )
    comparison = parse(["--config", str(file), "--method-options", "mkd", "lr=2e-4"]).comparison()
    assert list(comparison.seeds) == [2, 3, 4, 5, 6]
    options = comparison.cells()[1].options
    assert (options.method, options.kd_weight, options.meta.every) == ("mkd", 0.01, 4)
    assert (options.kd_fade, options.lr) == (False, 2e-4)
    assert comparison.cells()[0].options.kd_fade


@pytest.mark.parametrize("given", ["[mkd]", "{mkd: 3}"])
def test_options_of_methods_in_a_file_need_names(given, tmp_path, capsys):
    file = tmp_path / "compare.yaml"
    file.write_text(f"method_options: {given}\n")
    assert main(["--config", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "method_options must hold names and values by method" in capsys.readouterr().err


def test_two_that_fill_one_cache_do_not_start_together(flags, tmp_path):
    cache = ["--teacher-cache", str(tmp_path / "cache")]
    methods = ["--methods", "fitnet,at,vanilla,pisr"]
    command = parse([*flags, *cache, *methods, "--out", str(tmp_path)])
    fitnet, at, vanilla, pisr, other_seed, *_ = command.comparison().cells()
    running = type("Running", (), {"cell": fitnet})
    assert processes._startable([at, vanilla], [running]) is vanilla
    assert processes._startable([at, pisr], [running]) is pisr
    assert processes._startable([at, other_seed], [running]) is other_seed
    assert processes._startable([at], [running]) is None
    fitnet.run.root.mkdir(parents=True)
    fitnet.run.metrics.write_text('{"step": 1, "patches_per_second": 2.0}\n')
    assert processes._startable([at], [running]) is at


def test_progress_reads_the_last_whole_line_of_the_steps(tmp_path):
    run = RunDirectory(tmp_path)
    assert processes._latest(run) is None
    run.metrics.write_text(
        '{"step": 7, "patches_per_second": 4.0}\n{"step": 8, "validation": {}}\n{"st'
    )
    assert processes._latest(run) == (7, 0, 0.25)


def test_time_left_knows_slow_methods(flags, tmp_path):
    command = parse([*flags, "--iterations", "10", "--methods", "vanilla,mkd", "--seeds", "1"])
    vanilla, mkd = command.comparison().cells()
    speeds = {("rcan-a", "vanilla"): 1.0, ("rcan-a", "mkd"): 5.0}
    assert processes._seconds_left({vanilla: 8, mkd: 4}, speeds, jobs=1) == 2 * 1 + 6 * 5
    # The longest that remains has to be waited for.
    assert processes._seconds_left({vanilla: 8, mkd: 4}, speeds, jobs=2) == 6 * 5
    some = {("rcan-a", "vanilla"): 1.0}
    assert processes._seconds_left({vanilla: 8, mkd: 0}, some, jobs=1) == 2 + 10


def test_a_method_with_a_teacher_of_its_own_is_not_given_another(flags):
    flags = [*flags, "--teacher-weights", "large.pt", "--teacher-points", "body.*"]
    flags += ["--teacher", "large.py:make", "--teacher-options", "nf=64"]
    command = parse([*flags, "--methods", "pisr,fitnet", "--seeds", "1"])
    pisr, fitnet = command.comparison().cells()
    assert (pisr.options.teacher, pisr.options.teacher_options) == (None, ())
    assert (pisr.options.teacher_weights, pisr.options.teacher_points) == (None, ())
    assert fitnet.options.teacher_options == ("nf=64",)
    assert (fitnet.options.teacher_weights, fitnet.options.teacher_points) == (
        Path("large.pt"),
        ("body.*",),
    )
    # Its teacher's steps are work too.
    assert (pisr.teacher_steps, fitnet.teacher_steps) == (2, 0)
    assert processes._done(pisr, processes._Latest(0, 1, 0.1)) == 1
    assert processes._done(pisr, processes._Latest(1, 0, 0.1)) == 3


def test_a_students_file_becomes_one_folder():
    assert as_folder("/home/me/nets/espcn.py:ESPCN") == "_home_me_nets_espcn.py_ESPCN"


@pytest.mark.usefixtures("has_winograd")
def test_all_cells_take_the_convolutions_of_those_that_were_trained_before(
    flags, trained, tmp_path
):
    def taken(method: str) -> str:
        return json.loads((run(tmp_path, method, 0) / "summary.json").read_text())["convolutions"]

    def compare(*methods: str) -> int:
        return main(
            [*flags, "--methods", ",".join(methods), "--seeds", "1", "--out", str(tmp_path)]
        )

    assert compare("vanilla") == 0 and taken("vanilla") == "winograd"
    state = RunDirectory(run(tmp_path, "vanilla", 0)).state
    older = torch.load(state)
    del older["convolutions"]
    torch.save(older, state)
    assert compare("response") == 0 and taken("response") == "stock"
