"""Several processes train one student, and end and go on together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mkdext.training.run.directory import RunDirectory
from tests.training.launching import free_port, launched, scripted

pytestmark = pytest.mark.slow

SIZES = [
    *("--iterations", "8", "--batch-size", "5", "--patch-size", "8", "--log-every", "1"),
    *("--checkpoint-every", "2", "--validate-every", "4"),
]
MKD = [
    *("--method", "mkd", "--mkd.grid", "2", "--meta.every", "2", "--optimizer", "adam"),
    *("--recipe", "mkd-paper"),
]

SLOW = """
import time
from mkdext.training.stages import StudentStage
take = StudentStage.take
def slow(self, step, batch):
    time.sleep(1.5 if step >= 3 else 0)
    return take(self, step, batch)
StudentStage.take = slow
"""


@pytest.fixture(scope="module")
def flags(photographs) -> list[str]:
    return ["--train-dir", str(photographs), "--val-dir", str(photographs), *SIZES, *MKD]


@pytest.fixture(scope="module")
def reference(flags, tmp_path_factory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    with launched(1, "train", [*flags, "--out", str(folder / "run")], folder) as alone:
        assert alone.ended() == [0], alone.said()
    return folder / "run"


TOGETHER = Path(__file__).with_name("several_processes.py")
CHOSEN = [
    *("vanilla", "response", "fitnet", "vid", "fakd", "ickd", "l2t-ww", "pisr", "mkd-case2"),
    *("mkd", "mkd, unrolled", "mkd, replayed", "mkd, replayed adam", "mkd, no rollback"),
    *("mkd, whole gradient", "mkd, not relative", "ickd, all by the meta-gradient", "hints"),
    *("ratio of gradients", "muon", "mixture", "batch normalisation"),
    *("generator", "generator of DFSR", "mkd, local"),
]


def test_every_training_is_that_of_one_process(tmp_path):
    """In float64: all values of all steps, and all weights."""
    results = tmp_path / "results.json"
    given = [str(tmp_path / "meeting"), str(results), "3", *CHOSEN]
    with scripted(4, TOGETHER, given, tmp_path) as four:
        assert four.ended() == [0, 0, 0, 0], four.said()
    found = json.loads(results.read_text())
    assert len(found) == len(CHOSEN) + 2 * 4  # four of them by two and four processes too
    assert all(each["same"] for each in found.values())
    gaps = {name: each["difference"] for name, each in found.items()}
    exact = {name: gap for name, gap in gaps.items() if not name.startswith("mkd, local")}
    assert {name: gap for name, gap in exact.items() if gap > 1e-9} == {}
    assert all(gap > 1e-6 for name, gap in gaps.items() if name not in exact)


def assert_same_run(out: Path, reference: Path) -> None:
    one, other = (
        load_file(run / "checkpoints" / "student.safetensors") for run in (out, reference)
    )
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, rtol=0, atol=1e-5)
    records, expected = RunDirectory(out).records(), RunDirectory(reference).records()
    assert [r["step"] for r in records] == [r["step"] for r in expected]
    costs = {"patches_per_second", "peak_bytes"}
    for record, own in zip(records, expected, strict=True):
        assert record.keys() == own.keys()
        for name in own.keys() - costs - {"validation"}:
            assert record[name] == pytest.approx(own[name], rel=1e-3, abs=1e-5), name


def test_killed_stopped_and_continued_by_others_they_end_with_the_weights_of_one(
    flags, reference, tmp_path
):
    out = tmp_path / "run"
    metrics, flags = out / "metrics.jsonl", [*flags, "--out", str(out)]
    with launched(2, "train", flags, tmp_path / "killed", before=SLOW) as two:
        two.wait_for(metrics, '"step": 3')
        two.send(1, signal.SIGKILL)
        assert two.ended() == [1, -signal.SIGKILL]
    assert "process 1 of 2 (counted from 0) ended or did not answer" in two.said()
    assert "Traceback" not in two.said()
    with launched(3, "train", flags, tmp_path / "stopped", before=SLOW) as three:
        three.wait_for(metrics, '"step": 5')
        three.send(2, signal.SIGTERM)
        assert three.ended() == [128 + signal.SIGTERM] * 3
    assert re.search("continuing after step [24] of 8", three.said())
    assert "the same command continues from" in three.said()
    assert three.said(1) == three.said(2) == ""
    with launched(4, "train", flags, tmp_path / "ended") as four:
        assert four.ended() == [0, 0, 0, 0], four.said()
    assert [four.said(rank) for rank in (1, 2, 3)] == ["", "", ""]
    assert_same_run(out, reference)


CACHED = ["--method", "fitnet", "--optimizer", "adam", "--teacher-cache-crops", "12"]
MIXED = [
    *("--method", "response", "--optimizer", "adam", "--imitation", "0.5", "--augment-colours"),
    *("--zoom-out-share", "0.2", "--made-share", "0.4", "--teacher-cache-crops", "4"),
]
PRIVILEGED = ["--method", "pisr", "--optimizer", "adam", "--privileged-iterations", "4"]
MADE = [
    *("--patch-size", "12", "--generator.every", "2", "--method", "fitnet", "--stages", "2"),
    *("--recipe", "plain", "--source", "mixed"),
]


@pytest.mark.parametrize(
    ("command", "given", "keeps"),
    [
        ("train", CACHED, True),
        ("train", MIXED, True),
        ("train", MIXED, False),
        ("train", PRIVILEGED, False),
        ("datafree", MADE, False),
    ],
    ids=["feature maps kept", "mixture of pictures kept", "mixture", "privileged", "made"],
)
def test_they_end_with_the_weights_of_one(command, given, keeps, photographs, tmp_path):
    folders = ["--train-dir", str(photographs)] if command == "train" else []
    flags = [*folders, "--val-dir", str(photographs), *SIZES, *given]
    for size, name in ((1, "alone"), (3, "together")):
        own = ["--teacher-cache", str(tmp_path / f"{name}-kept")] if keeps else []
        out = ["--out", str(tmp_path / name / "run")]
        with launched(size, command, [*flags, *own, *out], tmp_path / name) as processes:
            assert processes.ended() == [0] * size, processes.said()
    one, other = (tmp_path / name / "run" for name in ("together", "alone"))
    kept = "teacher_cache" if keeps else ""
    assert kept in (one / "config.yaml").read_text()
    assert_same_run(one, other)


def test_options_that_are_not_the_same_are_named(flags, tmp_path):
    flags = [*flags, "--out", str(tmp_path / "run")]
    with launched(2, "train", flags, tmp_path, flags_of={1: ["--lr", "0.5"]}) as two:
        assert two.ended() == [2, 2]
    assert "process 1 on" in two.said()
    assert "--lr is 0.5 there" in two.said()
    assert two.said(1) == ""
    assert not (tmp_path / "run").exists()


def test_more_processes_than_rows_are_refused(flags, tmp_path):
    flags = [*flags, "--batch-size", "2", "--out", str(tmp_path / "run")]
    with launched(3, "train", flags, tmp_path) as three:
        assert three.ended() == [2, 2, 2]
    assert "--batch-size must be at least the number of processes, 3" in three.said()


def test_processes_that_do_not_come_are_named(flags, tmp_path):
    few = {"WORLD_SIZE": "3", "MKDEXT_PROCESS_TIMEOUT": "3"}
    with launched(2, "train", [*flags, "--out", str(tmp_path / "run")], tmp_path, few) as two:
        assert two.ended() == [1, 1]
    assert "1 of 3 processes did not come within 3 seconds: 2" in two.said()


def test_a_port_that_is_in_use_is_named(flags, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        taken = {"MASTER_PORT": port, "MKDEXT_PROCESS_TIMEOUT": "3"}
        flags = [*flags, "--out", str(tmp_path / "run")]
        with launched(2, "train", flags, tmp_path, taken) as two:
            assert two.ended()[0] == 2
    assert f"port {port} of 127.0.0.1 is in use" in two.said()


def test_a_folder_that_is_not_shared_is_refused(flags, tmp_path):
    apart = f"os.chdir(os.makedirs({str(tmp_path)!r} + '/' + os.environ['RANK'], exist_ok=True)"
    apart += f" or {str(tmp_path)!r} + '/' + os.environ['RANK'])"
    quick = f"{apart}\nfrom mkdext.training import trainer\ntrainer._SHARED_WITHIN = 0.1"
    flags = [*flags, "--out", "run"]
    with launched(2, "train", flags, tmp_path / "logs", before=quick) as two:
        assert two.ended() == [2, 2]
    assert "must be one folder for all processes" in two.said()
    assert "process 1 on" in two.said()


def test_one_that_stands_still_is_named(flags, tmp_path):
    out = tmp_path / "run"
    flags, limit = [*flags, "--out", str(out)], {"MKDEXT_PROCESS_TIMEOUT": "6"}
    with launched(2, "train", flags, tmp_path / "logs", limit, before=SLOW) as two:
        two.wait_for(out / "metrics.jsonl", '"step": 3')
        two.send(1, signal.SIGSTOP)
        two.processes[0].join(100)
        assert two.processes[0].exitcode == 1
    assert "process 1 of 2 (counted from 0) ended or did not answer within 6 sec" in two.said()


def test_of_two_machines_one_is_lost(photographs, tmp_path):
    """Two agents of torchrun on one machine, of which one is killed with its process."""
    out = tmp_path / "run"
    flags = ["--train-dir", str(photographs), "--val-dir", str(photographs), *SIZES]
    flags += ["--method", "vanilla", "--iterations", "1000000", "--out", str(out)]
    place = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    place += ["--master-port", str(free_port())]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *place]
    limits = {"GLOO_SOCKET_IFNAME": "lo", "MKDEXT_PROCESS_TIMEOUT": "60"}
    agents = []
    try:
        for rank in (0, 1):
            command = [*torchrun, "--node-rank", str(rank), "-m", "mkdext.train", *flags]
            with (tmp_path / f"{rank}.txt").open("wb") as log:
                agents.append(
                    subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        env=os.environ | limits,
                        start_new_session=True,
                    )
                )
        until = time.monotonic() + 300
        while not (out / "checkpoints" / "state.pt").exists():
            assert time.monotonic() < until, (tmp_path / "0.txt").read_text()
            time.sleep(0.1)
        workers = subprocess.run(
            ["pgrep", "-P", str(agents[1].pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        for pid in (agents[1].pid, *map(int, workers)):
            os.kill(pid, signal.SIGKILL)
        assert agents[0].wait(200) == 1
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    said = (tmp_path / "0.txt").read_text()
    assert "process 1 of 2 (counted from 0) ended or did not answer" in said
    assert (out / "checkpoints" / "state.pt").exists()
