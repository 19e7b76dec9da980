"""Everything about the CUDA operators that needs a GPU, in one command and under nine minutes.

    python benchmarks/gpu_check.py
    python benchmarks/gpu_check.py --out results/h100 --only build tests

It builds the operators for the PyTorch and the GPU that are there (no network is needed, but nvcc,
setuptools and pybind11), tests them, looks for memory errors and races with compute-sanitizer where
that is installed, measures them, and runs a short training. The parts are independent: each has a
time limit, and one that fails is reported while the others go on. Results are in the folder OUT:
`summary.json`, `summary.txt`, and the output of every part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
LIMIT = 530
"""Seconds for everything."""

MAIN_SIZE = "16,64,64,48"
LARGE_BATCH = "64,64,64,48"

SANITIZED = """
import torch
from mkdext.ops import dynamic_conv2d, texture_kernels

for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for algorithm in ("direct", "tf32") if dtype == torch.float32 else ("direct",):
        for ins, outs, side, k in ((18, 65, 17, 3), (64, 16, 9, 3), (5, 3, 18, 5)):
            x, ggx = (torch.randn(2, ins, side, side, device="cuda").to(dtype) for _ in range(2))
            w, ggw = (torch.randn(2, outs, ins, k, k, device="cuda").to(dtype) for _ in range(2))
            x, w = x.requires_grad_(), w.requires_grad_()
            y = dynamic_conv2d(x, w, algorithm)
            g = torch.randn_like(y).requires_grad_()
            first = torch.autograd.grad(y, (x, w), g, create_graph=True)
            torch.autograd.grad(first, (x, w, g), (ggx, ggw))
            t = texture_kernels(x, 3, 3)
            torch.autograd.grad(t, x, torch.ones_like(t))
torch.cuda.synchronize()
print("done")
"""


@dataclass(frozen=True)
class Part:
    """A command with a time limit."""

    name: str
    command: Sequence[str]
    limit: int
    """Seconds."""


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    name: str
    result: str
    """``passed``, ``failed``, ``timed out`` or ``left out``."""
    seconds: float
    note: str
    """The last line of its output, or why it was left out."""


def parts(out: Path) -> list[Part]:
    """List the parts in their order; what the later ones need comes first."""
    library = out / "lib"
    scripts = ROOT / "benchmarks"
    setup = [PYTHON, "setup.py", "build_ext", "--build-lib", str(library)]
    setup += ["--build-temp", str(out / "objects")]
    tests = [PYTHON, "-m", "pytest", "-q", "--numprocesses=0", "-p", "no:cacheprovider"]
    tests += ["tests/ops/test_on_gpu.py", "tests/test_cuda.py"]
    training_tests = [*tests[:-2], "tests/training/test_transfer.py"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1"]
    small = [PYTHON, "-c", SANITIZED]

    def bench(name: str, *options: str) -> list[str]:
        return [PYTHON, str(scripts / f"{name}.py"), "--device", "cuda", *options]

    def convolution(name: str, *options: str) -> Part:
        sizes = ["--sizes", MAIN_SIZE, LARGE_BATCH, "--repeats", "9"]
        command = bench("bench_dynconv", *sizes, "--json", str(out / f"{name}.json"), *options)
        return Part(name, command, 60)

    train = [PYTHON, "-m", "mkdext.train", "--device", "cuda", "--iterations", "60"]
    train += ["--out", str(out / "training")]
    return [
        Part("build", setup, 240),
        Part("doctor", [PYTHON, "-m", "mkdext.doctor"], 30),
        Part("tests", tests, 120),
        Part("training tests", training_tests, 60),
        convolution("float32"),
        convolution("tf32", "--tf32"),
        convolution("bfloat16", "--dtype", "bfloat16"),
        Part("meta step", bench("bench_meta_step", "--repeats", "5"), 60),
        Part("training", train, 60),
        Part("memcheck", [*sanitizer, "--tool", "memcheck", *small], 60),
        Part("racecheck", [*sanitizer, "--tool", "racecheck", *small], 60),
        Part("texture kernels", bench("bench_texture_kernels", "--repeats", "5"), 45),
        convolution("float32, compiled peers", "--compile"),
    ]


def run(part: Part, out: Path, environment: dict[str, str], left: float) -> Outcome:
    """Run one part; its output goes to a file."""
    if shutil.which(part.command[0]) is None:
        return Outcome(part.name, "left out", 0.0, f"{part.command[0]} is not installed")
    limit = min(part.limit, left)
    if limit < 5:
        return Outcome(part.name, "left out", 0.0, f"the {LIMIT} s are used up")
    log = out / f"{part.name.replace(', ', '-').replace(' ', '-')}.txt"
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            result = "passed" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the process and what it has started
            process.wait()
            result = "timed out"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    note = lines[-1].strip() if lines else ""
    return Outcome(part.name, result, time.monotonic() - start, note)


def describe_machine() -> dict[str, str]:
    """Tell the GPU, the driver and the versions; exit if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu_check: no CUDA device (`python -m mkdext.doctor` tells why)")
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": capability,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
    }


def speeds(out: Path) -> list[dict[str, object]]:
    """Collect the ratios of our form to the fastest peer from the files of the benchmarks."""
    found = []
    for name in ("float32", "tf32", "bfloat16"):
        path = out / f"{name}.json"
        if not path.exists():
            continue
        for row in json.loads(path.read_text())["results"]:
            if row["form"] == "mkdext":
                keys = ("size", "primitive", "median_s", "gflops", "best_peer")
                ratio = row["ratio_to_best_peer"]
                found.append({"precision": name, **{k: row[k] for k in keys}, "ratio": ratio})
    return found


def summarize(
    machine: dict[str, str], outcomes: Sequence[Outcome], found: Sequence[dict[str, object]]
) -> str:
    """Write the readable summary."""
    lines = ["  ".join(f"{key}: {value}" for key, value in machine.items()), ""]
    for o in outcomes:
        lines.append(f"{o.name:<24} {o.result:<10} {o.seconds:6.1f} s  {o.note[:100]}")
    if found:
        header = ("precision", "size", "primitive", "us", "GFLOP/s", "ratio", "to")
        lines += ["", "{:<10} {:<18} {:<12} {:>9} {:>9} {:>6}  {}".format(*header)]
        lines += [
            f"{row['precision']:<10} {row['size']:<18} {row['primitive']:<12} "
            f"{1e6 * float(str(row['median_s'])):>9.1f} {row['gflops']:>9.0f} "
            f"{row['ratio']:>6.2f}  {row['best_peer']}"
            for row in found
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the parts; exit with 1 if one failed or timed out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_check", metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="PART", help="leave out the other parts")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    start = time.monotonic()
    machine = describe_machine()
    chosen = parts(out)
    if options.only:
        unknown = set(options.only) - {part.name for part in chosen}
        if unknown:
            names = ", ".join(part.name for part in chosen)
            parser.error(f"--only takes {names}; got {', '.join(sorted(unknown))}")
        chosen = [part for part in chosen if part.name in options.only]
    shutil.rmtree(out / "training", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "MKDEXT_CUDA": "1",
        "MKDEXT_CUDA_ARCHITECTURES": machine["capability"] + "+PTX",
        "MKDEXT_REQUIRE_EXT": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT), str(out / "lib"), os.environ.get("PYTHONPATH")])
        ),
        "PYTHONUNBUFFERED": "1",
    }
    outcomes = []
    for part in chosen:
        print(f"{part.name} ...", flush=True)
        outcome = run(part, out, environment, LIMIT - (time.monotonic() - start))
        print(f"  {outcome.result}, {outcome.seconds:.0f} s: {outcome.note[:120]}", flush=True)
        outcomes.append(outcome)
        found = speeds(out)
        summary = {"machine": machine, "parts": [*map(asdict, outcomes)], "speeds": found}
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (out / "summary.txt").write_text(summarize(machine, outcomes, found))
    print(f"\n{(out / 'summary.txt').read_text()}written to {out}")
    sys.exit(any(outcome.result in ("failed", "timed out") for outcome in outcomes))


if __name__ == "__main__":
    main()
