"""Everything about the CUDA operators that needs a GPU, in one command and under nine minutes.

    python benchmarks/gpu_check.py
    python benchmarks/gpu_check.py --out results/h100 --only build tests

It builds the operators for the PyTorch and the GPU that are there, tests them, looks for memory
errors and races with compute-sanitizer where that is installed, measures them, and runs a short
training. The parts are independent: each has a time limit, and one that fails is reported while the
others go on. Results are in the folder OUT: `summary.json`, `summary.txt`, and the output of every
part.

Needed are nvcc, a PyTorch that has CUDA, the other dependencies of the package (numpy, pillow,
scikit-image, scipy, safetensors, rich, tyro, pyyaml, matplotlib), and pytest, pytest-xdist,
setuptools and pybind11; what is missing is told at once. The package itself need not be installed,
and there need be no network.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "build_backend")]

from cuda_build import architecture_for, find_nvcc, toolkit_version  # noqa: E402

from mkdext.doctor import REQUIRED_PACKAGES  # noqa: E402

NEEDED = {
    "torch": "torch",
    **REQUIRED_PACKAGES,
    "pytest": "pytest",
    "pytest-xdist": "xdist",
    "setuptools": "setuptools",
    "pybind11": "pybind11",
}
"""Distribution name and import name."""

SETUPTOOLS = 77
"""The oldest major version that can read pyproject.toml; others fail with what tells nothing."""

PYTHON = sys.executable
LIMIT = 530
"""Seconds for everything."""

MAIN_SIZE = "16,64,64,48"
LARGE_BATCH = "64,64,64,48"
COMPILED = "float32, compiled peers"
DIRECT, SPLIT = "float32, multiply-add units", "float32, tensor cores"
CONVOLUTIONS = ("float32", DIRECT, SPLIT, "tf32", "bfloat16", "float16", COMPILED)

SANITIZED = """
import torch
from mkdext.ops import dynamic_conv2d, texture_kernels

for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for algorithm in ("direct", "tf32", "tf32x3") if dtype == torch.float32 else ("direct",):
        for ins, outs, side, k in ((18, 65, 17, 3), (24, 72, 24, 3), (40, 8, 16, 3), (5, 3, 18, 5)):
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
    environment: Mapping[str, str] = field(default_factory=dict)

    def file(self, out: Path, suffix: str) -> Path:
        """Return where its output goes."""
        return out / (self.name.replace(", ", "-").replace(" ", "-") + suffix)


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
    pytest = [PYTHON, "-m", "pytest", "-v", "--numprocesses=0", "-p", "no:cacheprovider"]
    tests = [*pytest, "tests/ops/test_on_gpu.py", "tests/_system/test_cuda.py"]
    training_tests = [*pytest, "tests/training/test_sources.py"]
    training_tests += ["tests/training/datafree/test_image_maker.py", "-k", "wait or batch"]
    sanitizer = [find_sanitizer(), "--error-exitcode", "1"]
    # Failed calls of the CUDA API do not count: PyTorch and its libraries try what there is, and a
    # failed launch of ours is an exception.
    memcheck = [*sanitizer, "--tool", "memcheck", "--report-api-errors", "no"]
    small = [PYTHON, "-c", SANITIZED]
    # Memory that PyTorch keeps for later is valid memory for memcheck.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def bench(name: str, script: str, limit: int, *options: str) -> Part:
        part = Part(name, [], limit)
        command = [PYTHON, str(scripts / f"{script}.py"), "--device", "cuda", *options]
        return replace(part, command=[*command, "--json", str(part.file(out, ".json"))])

    def convolution(name: str, *options: str) -> Part:
        sizes = ["--sizes", MAIN_SIZE, LARGE_BATCH, "--repeats", "9"]
        return bench(name, "bench_dynconv", 60, *sizes, *options)

    train = [PYTHON, "-m", "mkdext.train", "--device", "cuda", "--iterations", "60"]
    train += ["--out", str(out / "training")]
    return [
        Part("build", setup, 240),
        Part("doctor", [PYTHON, "-m", "mkdext.doctor"], 30),
        Part("tests", tests, 180),
        Part("training tests", training_tests, 60),
        convolution("float32"),
        convolution("tf32", "--tf32"),
        convolution("bfloat16", "--dtype", "bfloat16"),
        convolution("float16", "--dtype", "float16"),
        bench("meta step", "bench_meta_step", 60, "--repeats", "5"),
        Part("training", train, 60),
        # To import torch under the sanitizer takes most of their time.
        Part("memcheck", [*memcheck, *small], 120, uncached),
        convolution(DIRECT, "--algorithm", "direct"),
        convolution(SPLIT, "--algorithm", "tf32x3"),
        bench(COMPILED, "bench_dynconv", 120, "--sizes", MAIN_SIZE, "--repeats", "9", "--compile"),
        Part("racecheck", [*sanitizer, "--tool", "racecheck", *small], 120),
        bench("texture kernels", "bench_texture_kernels", 45, "--repeats", "5"),
    ]


def find_sanitizer() -> str:
    """Locate compute-sanitizer: on the PATH, beside nvcc, or in the toolkit's usual folders."""
    folders = [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    if nvcc := find_nvcc():
        for binaries in (nvcc.resolve().parent, nvcc.parent):
            folders[:0] = [binaries, binaries.parent / "compute-sanitizer"]
    name = "compute-sanitizer"
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))
    return found or name


def run(part: Part, out: Path, environment: dict[str, str], left: float) -> Outcome:
    """Run one part; its output goes to a file."""
    if shutil.which(part.command[0]) is None:
        return Outcome(part.name, "left out", 0.0, f"{part.command[0]} is not installed")
    limit = min(part.limit, left)
    if limit < 5:
        return Outcome(part.name, "left out", 0.0, f"the {LIMIT} s are used up")
    log = part.file(out, ".txt")
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env={**environment, **part.environment},
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


def to_install() -> list[str]:
    """List what is missing or too old, as pip takes it."""
    wanted = [name for name, module in NEEDED.items() if not importlib.util.find_spec(module)]
    if "setuptools" not in wanted:
        major, *_ = importlib.metadata.version("setuptools").split(".")
        wanted += [f"'setuptools>={SETUPTOOLS}'"] if int(major) < SETUPTOOLS else []
    return wanted


def describe_machine() -> dict[str, str]:
    """Tell the GPU, the driver and the versions; exit if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu_check: no CUDA device (`python -m mkdext.doctor` tells why)")
    nvcc = find_nvcc()
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": driver(),
        "nvcc": toolkit_version(nvcc) if nvcc else "none",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
    }


def driver() -> str:
    """Return the version of the NVIDIA driver, "unknown" if nothing tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.splitlines()[0] if answer.stdout else "unknown"


Row = dict[str, Any]


def results(chosen: Sequence[Part], out: Path) -> dict[str, list[Row]]:
    """Read the rows of the benchmarks that have ended, by the names of their parts."""
    files = {part.name: part.file(out, ".json") for part in chosen}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))["results"]
        for name, path in files.items()
        if path.exists()
    }


def convolutions(found: Mapping[str, list[Row]]) -> list[Row]:
    """Compare our forms with the fastest peer, and with what the GPU allows."""
    compared = []
    for name in CONVOLUTIONS:
        case: dict[str, Row] = {}
        for row in found.get(name, ()):
            if row["form"] == "mkdext":  # the first one of its case
                case = {}
            case[row["form"]] = row
            keys = ("size", "primitive", "form", "median_s", "gflops", "best_peer")
            if row["form"].startswith("mkdext"):
                compared.append({"precision": name, "case": case, **{k: row[k] for k in keys}})
                compared[-1] |= {"ratio": row["ratio_to_best_peer"]}
                compared[-1] |= {k: row[k] for k in ("share_of_limit", "peak_bytes")}
    for row in compared:
        row["peer_peak_bytes"] = row.pop("case")[row["best_peer"]]["peak_bytes"]
    return compared


def forms(found: Mapping[str, list[Row]]) -> list[Row]:
    """Reduce the rounds of meta steps and texture kernels to medians."""
    return [
        {
            "benchmark": name,
            **{k: v for k, v in row.items() if k != "seconds"},
            "median_s": statistics.median(row["seconds"]),
        }
        for name in ("meta step", "texture kernels")
        for row in found.get(name, ())
    ]


def summarize(
    machine: Mapping[str, str],
    outcomes: Sequence[Outcome],
    compared: Sequence[Row],
    others: Sequence[Row],
) -> str:
    """Write the readable summary."""
    lines = ["  ".join(f"{key}: {value}" for key, value in machine.items()), ""]
    for o in outcomes:
        lines.append(f"{o.name:<24} {o.result:<10} {o.seconds:6.1f} s  {o.note[:100]}")
    if compared:
        lines += ["", "of limit: the longest of operations, bytes and launches, measured, over us"]
        lines.append(
            f"{'precision':<24} {'size':<16} {'primitive':<12} {'form':<22} {'us':>9} "
            f"{'GFLOP/s':>9} {'of limit':>8} {'MiB':>7} {'its MiB':>7} {'ratio':>6}  to"
        )
    for row in compared:
        memory = (mebibytes(row[key]) for key in ("peak_bytes", "peer_peak_bytes"))
        lines.append(
            f"{row['precision']:<24} {row['size']:<16} {row['primitive']:<12} {row['form']:<22} "
            f"{1e6 * row['median_s']:>9.1f} {row['gflops']:>9.0f} {row['share_of_limit']:>8.0%} "
            f"{next(memory):>7} {next(memory):>7} {row['ratio']:>6.2f}  {row['best_peer']}"
        )
    for name in dict.fromkeys(row["benchmark"] for row in others):
        lines += ["", f"{name:<50} {'us':>9} {'MiB':>7}"]
        for row in (row for row in others if row["benchmark"] == name):
            keys = ("size", "dtype", "direction", "form")
            case = "  ".join(str(row[key]) for key in keys if key in row)
            us = 1e6 * row["median_s"]
            lines.append(f"{case:<50} {us:>9.1f} {mebibytes(row.get('peak_bytes')):>7}")
    return "\n".join(lines) + "\n"


def mebibytes(size: int | None) -> str:
    """Write a size, or nothing."""
    return "" if size is None else f"{size / 2**20:.0f}"


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
    if missing := to_install():
        command = f"{PYTHON} -m pip install {' '.join(missing)}"
        sys.exit(f"gpu_check: {', '.join(missing)} must be installed: `{command}`")
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
    for part in parts(out):  # nothing of an earlier run may count
        for suffix in (".txt", ".json"):
            part.file(out, suffix).unlink(missing_ok=True)
    nvcc, (major, minor) = find_nvcc(), map(int, machine["capability"].split("."))
    environment = {
        **os.environ,
        "MKDEXT_CUDA": "1",
        "MKDEXT_CUDA_ARCHITECTURES": architecture_for((major, minor), nvcc) if nvcc else "",
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
        found = results(chosen, out)
        compared, others = convolutions(found), forms(found)
        summary = {"machine": machine, "parts": [*map(asdict, outcomes)]}
        summary |= {"convolutions": compared, "others": others}
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (out / "summary.txt").write_text(
            summarize(machine, outcomes, compared, others), encoding="utf-8"
        )
    print(f"\n{(out / 'summary.txt').read_text(encoding='utf-8')}written to {out}")
    sys.exit(any(outcome.result in ("failed", "timed out") for outcome in outcomes))


if __name__ == "__main__":
    main()
