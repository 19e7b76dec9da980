"""Does the meta-gradient do what it is for? What a step on MKD's loss does to reconstruction.

KRNets are trained in three ways for one fixed student: by the meta-gradient (MKD eq. 3, `kappa` 0),
by both gradients (`kappa` 1, the default of `mkd`), and by the distillation loss alone (`mkd-case3`
of the paper's Table 2). On photographs' patches that none of them has seen the student then takes
T steps on the distillation loss, each of a given length, with these KRNets and with random ones.
Told is by how much the reconstruction loss falls, the mean of the same batches for all, with a 95 %
confidence interval, and the cosine between the two losses' gradients; as a bound, the same for
steps along the gradient of the reconstruction loss itself.

    python benchmarks/inner_step.py --train-dir BSDS500 --student-weights student.safetensors
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from _harness import machine, write_json
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor

from mkdext._system.terminal import Terminal, track
from mkdext.models import forward_with_features
from mkdext.models.stand_ins import call_with
from mkdext.training import MetaOptions, TrainOptions
from mkdext.training.setup import open_photographs, prepare
from mkdext.training.step import Batch, Distillation, TrainingStep, apply

Theta = dict[str, Tensor]
Direction = Callable[[Theta, Batch], tuple[Tensor, ...]]


def main() -> None:
    """Train KRNets for a student in every way, and take steps with them."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    ways = {
        "random KRNets": ("mkd-case3", None, 0),
        "trained on the distillation loss": ("mkd-case3", None, arguments.steps),
        "meta-gradient, kappa 1": ("mkd", 1.0, arguments.steps),
        "meta-gradient alone, kappa 0": ("mkd", 0.0, arguments.steps),
    }
    console = Console()
    header = machine(torch.device("cpu"))
    console.print(header)
    rows = []
    for way, (method, kappa, steps) in ways.items():
        step, batches = opened(arguments, method, kappa)
        distillation = step.distillation
        assert distillation is not None
        parameters = list(distillation.method.parameters())
        optimizer = torch.optim.Adam(parameters, arguments.meta_lr)
        # Scales of the maps are what they are in a training, also for KRNets that do not learn.
        for index in track(range(max(steps, 20)), way, Terminal()):
            batch = step.taught(next(batches), True, True)
            if index >= steps:
                distillation.method.observe(features(step, batch), batch.maps or [])
            elif method == "mkd":
                step.meta_step(distillation, batch, step.reconstruction(batch, 1.0), None)
            else:
                fit(step, distillation, optimizer, parameters, batch)
        rows += measured(step, batches, way, along_distillation(step), arguments)
    step, batches = opened(arguments, "mkd-case3", None)
    for _ in range(max(arguments.steps, 20)):
        next(batches)
    rows += measured(
        step, batches, "the reconstruction loss itself", along_reconstruction(step), arguments
    )
    show(console, rows, arguments)
    if arguments.json:
        write_json(arguments.json, header, rows)


def parse_arguments() -> argparse.Namespace:
    """What to compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-dir", type=Path, help="photographs; default: the built-in ones")
    parser.add_argument("--student", default="rcan-a", help="network (rcan-a)")
    parser.add_argument("--student-weights", type=Path, help="its weights; default: random")
    parser.add_argument("--teacher-weights", type=Path, help="default: the built-in teacher")
    parser.add_argument("--steps", type=int, default=200, help="trainings' meta steps (200)")
    parser.add_argument("--meta-lr", type=float, default=1e-3, help="rate of their Adam (1e-3)")
    parser.add_argument("--batches", type=int, default=40, help="to measure on (40)")
    parser.add_argument(
        "--lengths",
        type=float,
        nargs="+",
        default=[1e-5, 3e-5, 1e-4],
        help="of a step, as shares of the norm of the student's weights",
    )
    parser.add_argument("--inner", type=int, nargs="+", default=[1, 2, 3], help="steps T (1 2 3)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    return parser.parse_args()


def opened(
    arguments: argparse.Namespace, method: str, kappa: float | None
) -> tuple[TrainingStep, Iterator[Batch]]:
    """The step of such a training, its student not moved, and its batches."""
    options = TrainOptions(
        student=arguments.student,
        student_weights=arguments.student_weights,
        teacher_weights=arguments.teacher_weights,
        train_dir=(arguments.train_dir,) if arguments.train_dir else (),
        method=method,
        meta=MetaOptions(kappa=kappa, lr=arguments.meta_lr, weight_decay=0.0),
        iterations=max(arguments.steps, 20) + arguments.batches,
        batch_size=8,
        patch_size=24,
        imitation=1.0,
        out=Path("no such run"),
    ).resolved()
    training = prepare(options)
    stage = training.student_stages[0]
    stage.begin(None)
    source = open_photographs(training, None, Terminal(quiet=True))
    return stage.step, source.batches(0, options.iterations)


def fit(
    step: TrainingStep,
    distillation: Distillation,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    batch: Batch,
) -> None:
    """Let a method take a step on the distillation loss."""
    seen = features(step, batch)
    distillation.method.observe(seen, batch.maps or [])
    loss = distillation.method.once_differentiable(seen, batch.maps or [])
    apply(optimizer, parameters, torch.autograd.grad(loss, parameters))


def features(step: TrainingStep, batch: Batch) -> list[Tensor]:
    """The student's maps, without their graph."""
    assert step.distillation is not None
    with torch.no_grad():
        return forward_with_features(step.student, step.distillation.points, batch.low)[1]


def along_distillation(step: TrainingStep) -> Direction:
    """The gradient of the distillation loss."""
    distillation = step.distillation
    assert distillation is not None

    def direction(theta: Theta, batch: Batch) -> tuple[Tensor, ...]:
        _, maps = forward_with_features(step.student, distillation.points, batch.low, theta)
        descent = distillation.method.gradient(maps, batch.maps or [])
        return torch.autograd.grad(
            maps, list(theta.values()), descent.maps, allow_unused=True, materialize_grads=True
        )

    return direction


def along_reconstruction(step: TrainingStep) -> Direction:
    """The gradient of the reconstruction loss."""

    def direction(theta: Theta, batch: Batch) -> tuple[Tensor, ...]:
        loss = step.reconstruction(batch, 1.0)(call_with(step.student, theta, batch.low))
        return torch.autograd.grad(
            loss, list(theta.values()), allow_unused=True, materialize_grads=True
        )

    return direction


def measured(
    step: TrainingStep,
    batches: Iterator[Batch],
    way: str,
    direction: Direction,
    arguments: argparse.Namespace,
) -> list[dict[str, object]]:
    """What steps along a direction do, by their length and number."""
    theta = {n: p.detach().clone().requires_grad_() for n, p in step.student.named_parameters()}
    size = torch.nn.utils.get_total_norm(theta.values()).item()
    along = along_reconstruction(step)
    falls: dict[tuple[float, int], list[float]] = {}
    cosines = []
    for _, given in zip(range(arguments.batches), batches, strict=False):
        batch = step.taught(given, True, True)
        first, wanted = direction(theta, batch), along(theta, batch)
        cosines.append(cosine(first, wanted))
        before = error(step, theta, batch)
        for length in arguments.lengths:
            moved = theta
            for inner in range(1, max(arguments.inner) + 1):
                gradients = first if inner == 1 else direction(moved, batch)
                norm = torch.nn.utils.get_total_norm(gradients).clamp_min(1e-30)
                moved = {
                    name: (p - length * size / norm * g).detach().requires_grad_()
                    for (name, p), g in zip(moved.items(), gradients, strict=True)
                }
                if inner in arguments.inner:
                    fall = 100 * (1 - error(step, moved, batch) / before)
                    falls.setdefault((length, inner), []).append(fall)
    return [
        {
            "way": way,
            "length": length,
            "T": inner,
            "fall": statistics.mean(values),
            "interval": interval(values),
            "cosine": statistics.mean(cosines),
            "cosine_interval": interval(cosines),
        }
        for (length, inner), values in falls.items()
    ]


def error(step: TrainingStep, theta: Theta, batch: Batch) -> float:
    """The reconstruction loss."""
    with torch.no_grad():
        return step.reconstruction(batch, 1.0)(call_with(step.student, theta, batch.low)).item()


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Of two gradients."""
    flat = [torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (one, other)]
    return torch.nn.functional.cosine_similarity(*flat, dim=0).item()


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean."""
    size = len(values)
    return float(stats.t.ppf(0.975, size - 1)) * statistics.stdev(values) / size**0.5


def show(console: Console, rows: list[dict[str, object]], arguments: argparse.Namespace) -> None:
    """A table: a row for each way, a column for each length and number of steps."""
    table = Table(title="reconstruction loss falls by, in percent, after T steps of that length")
    table.add_column("steps along")
    table.add_column("cosine", justify="right")
    columns = [(length, inner) for length in arguments.lengths for inner in arguments.inner]
    for length, inner in columns:
        table.add_column(f"{length:g}, T={inner}", justify="right")
    for way in dict.fromkeys(row["way"] for row in rows):
        own = {(row["length"], row["T"]): row for row in rows if row["way"] == way}
        first = next(iter(own.values()))
        cells = [f"{own[c]['fall']:+.2f} ± {own[c]['interval']:.2f}" for c in columns]
        cosines = f"{first['cosine']:+.3f} ± {first['cosine_interval']:.3f}"
        table.add_row(str(way), cosines, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
