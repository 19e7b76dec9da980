"""Whether trainings still end with the same weights, bit for bit, after the code was recut.

    python benchmarks/golden_trainings.py write golden.json    # before
    python benchmarks/golden_trainings.py check golden.json    # after

Every training runs twice, the second time stopped in the middle and resumed. Hashes hold for one
machine and one PyTorch. The package that is imported is the one that is measured: with
`PYTHONPATH=checkout` that of another checkout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NETWORK = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1),
        nn.Conv2d(8, 48, 3, padding=1), nn.PixelShuffle(4),
    )
"""
STEPS = (
    "--iterations 6 --batch-size 2 --patch-size 8 --validate-every 6 --checkpoint-every 2 "
    "--log-every 1"
)
TRAIN = f"train {STEPS} --mkd.grid 2 --meta.every 2"
MADE = f"datafree {STEPS} --patch-size 12 --generator.every 2 --mkd.grid 2 --meta.every 2"
TRAININGS = {
    "vanilla": f"{TRAIN} --method vanilla",
    "vanilla, stock convolutions": f"{TRAIN} --method vanilla --stock-convolutions",
    "mkd": TRAIN,
    "mkd, as printed": f"{TRAIN} --mkd.no-detach-kernels --mkd.no-normalize-kernels "
    "--mkd.no-relative --mkd.correlation raw --meta.kappa 0 --no-kd-fade --meta.inner-lr 1e-6",
    "mkd, replayed adam": f"{TRAIN} --meta.steps 2 --meta.mode replayed "
    "--meta.inner-optimizer adam",
    "mkd, all by plain gradients": f"{TRAIN} --method-training plain",
    "hints first": f"{TRAIN} --hint-share 0.5 --method fitnet",
    "pisr": f"{TRAIN} --method pisr --privileged-iterations 4",
    "l2t-ww": f"{TRAIN} --method l2t-ww",
    "fakd": f"{TRAIN} --student edsr-s --method fakd",
    "imitation": f"{TRAIN} --imitation 0.5",
    "teacher cache": f"{TRAIN} --teacher-cache cache --teacher-cache-crops 4 --imitation 0.5",
    "teacher's pictures": f"{TRAIN} --method response --kd-weight 0 --imitation 1 "
    "--imitation-end 0 --teacher-cache pictures --teacher-cache-crops 4 --made-share 0.5 "
    "--augment-colours",
    "user's network": f"{TRAIN} --student net.py:small --student-points 0 4",
    "made by rules": f"{MADE} --source procedural",
    "made by a generator": f"{MADE} --source generator --method mkd",
    "made by both, growing": f"{MADE} --stages 2 --student rcan-t --method fitnet",
    "made by both, growing, three scales": f"{MADE} --stages 2 --scale 2 3 4 --student vdsr-half "
    "--patch-size 24 --teacher-weights vdsr.safetensors --allow-weak-teacher",
}


def main() -> None:
    """Run all trainings, then write or compare the hashes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", help="part of the names of the trainings to run")
    given = parser.parse_args()
    before = json.loads(given.file.read_text(encoding="utf-8")) if given.what == "check" else {}
    found: dict[str, list[str]] = {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name, flags in TRAININGS.items():
            if given.only and given.only not in name:
                continue
            whole, resumed = (hash_of(Path(folder), name, flags, stop) for stop in (False, True))
            found[name] = [whole, resumed]
            same = whole == resumed and before.get(name, found[name]) == found[name]
            failed |= not same
            print(
                f"{'same  ' if same else 'DIFFER'} {name}: {whole[:16]} {resumed[:16]}", flush=True
            )
    if given.what == "write":
        given.file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.exit(failed)


def prepare(folder: Path) -> None:
    """Write what the trainings name."""
    import torch

    from mkdext.models import create_model, save_model

    (folder / "net.py").write_text(NETWORK, encoding="utf-8")
    torch.manual_seed(0)
    save_model(folder / "vdsr.safetensors", create_model("vdsr", 2), {})


def hash_of(folder: Path, name: str, flags: str, stop: bool) -> str:
    """SHA-256 of the student's weights after a training, which may be stopped after three steps."""
    from safetensors.numpy import load_file

    out = folder / f"{name}{' resumed' * stop}"
    command = [sys.executable, "-W", "ignore", "-m", *f"mkdext.{flags}".split(), "--out", str(out)]
    log = (folder / "log").open("w+", encoding="utf-8")
    settings = {"cwd": folder, "stdout": log, "stderr": log}
    settings["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    if stop:
        process = subprocess.Popen(command, **settings)
        metrics = out / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= 3:
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(0.01)
    if subprocess.run(command, **settings, check=False).returncode:
        log.seek(0)
        return f"failed: {log.read()[-300:]}"
    digest = hashlib.sha256()
    for key, array in sorted(load_file(out / "checkpoints/student.safetensors").items()):
        digest.update(f"{key} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
