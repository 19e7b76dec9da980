"""What one of several processes does in `test_processes.py`: trainings alone and together.

    python several_processes.py RANK SIZE MEETING RESULTS STEPS [NAME ...]

All meet at the file MEETING. For each training and some numbers of processes up to SIZE the first
process writes to the file RESULTS, in JSON, by how much weights and losses differ from those of one
process, and whether they are the same in all.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mkdext._system.processes import Processes, at_work, processes
from mkdext.methods import MKDOptions
from mkdext.models import adapt
from mkdext.synthesis.losses import LossWeights
from mkdext.training import BUILTIN_DEMO, DataFreeOptions, MetaOptions, TrainOptions, setup
from mkdext.training.assembly import Networks
from mkdext.training.batch_norm import normalised_together
from mkdext.training.data_free_options import ContrastiveOptions, GeneratorOptions
from mkdext.training.setup import prepare
from mkdext.training.step import Batch

ROWS, SIDE, SCALE = 7, 8, 4
TINY = dataclasses.replace(
    BUILTIN_DEMO,
    batch_size=ROWS,
    patch_size=SIDE,
    mkd=MKDOptions(grid=2),
    meta=MetaOptions(every=1, inner_lr=0.05),
    student_points=("0", "2"),
    teacher_points=("0", "2"),
)
MADE = DataFreeOptions(
    batch_size=ROWS,
    patch_size=12,
    mkd=MKDOptions(grid=2),
    student_points=("0", "2"),
    teacher_points=("0", "2"),
    generator=GeneratorOptions(every=1),
    contrastive=ContrastiveOptions(bank_bytes=1 << 16, negatives=8),
)


def with_meta(**changes: object) -> MetaOptions:
    return dataclasses.replace(TINY.meta, **changes)


TRAININGS: dict[str, TrainOptions | DataFreeOptions] = {
    "vanilla": dataclasses.replace(TINY, method="vanilla"),
    **{
        name: dataclasses.replace(TINY, method=name)
        for name in (
            *("response", "fitnet", "at", "vid", "fakd", "ickd", "l2t-ww", "pisr"),
            *("mkd", "mkd-case1", "mkd-case2", "mkd-case3"),
        )
    },
    "mkd, unrolled": dataclasses.replace(TINY, meta=with_meta(steps=3)),
    "mkd, replayed": dataclasses.replace(TINY, meta=with_meta(steps=3, mode="replayed")),
    "mkd, replayed adam": dataclasses.replace(
        TINY, meta=with_meta(steps=2, mode="replayed", inner_optimizer="adam", inner_lr=1e-3)
    ),
    "mkd, no rollback": dataclasses.replace(TINY, meta=with_meta(steps=2, rollback=False)),
    "mkd, whole gradient": dataclasses.replace(
        TINY, mkd=MKDOptions(grid=2, detach_kernels=False), meta=with_meta(steps=2)
    ),
    "mkd, not relative": dataclasses.replace(TINY, mkd=MKDOptions(grid=2, relative=False)),
    "mkd, raw maps": dataclasses.replace(TINY, kd_maps="raw"),
    "mkd, all by plain gradients": dataclasses.replace(TINY, method_training="plain"),
    "ickd, all by the meta-gradient": dataclasses.replace(
        TINY, method="ickd", method_training="meta", meta=with_meta(steps=2, mode="replayed")
    ),
    "pisr, all by the meta-gradient": dataclasses.replace(
        TINY, method="pisr", method_training="meta", meta=with_meta(steps=2)
    ),
    "hints": dataclasses.replace(TINY, method="fitnet", hint_share=0.5),
    "ratio of gradients": dataclasses.replace(TINY, method="vid", kd_ratio=0.5),
    "muon": dataclasses.replace(TINY, optimizer="muon", lr=4e-3),
    "imitation": dataclasses.replace(TINY, method="response", imitation=0.3, imitation_end=0.7),
    "mixture": dataclasses.replace(TINY, method="fitnet", imitation=0.5, zoom_out_share=0.5),
    "batch normalisation": dataclasses.replace(TINY, meta=with_meta(steps=2)),
    "generator": dataclasses.replace(MADE, method="fitnet"),
    "generator of DFSR": dataclasses.replace(
        MADE,
        method="vanilla",
        source="generator",
        reduction="sum",
        optimizer="sgd",
        lr=1e-4,
        lr_min=0.0,
        generator=GeneratorOptions(every=1, noise="persistent"),
        weights=LossWeights(contrastive=0.0),
    ),
}
_UNEVEN = 3
_BY_ALL_NUMBERS = "fitnet", "mkd, replayed", "batch normalisation", "generator"
"""Trainings that are taken by every number of processes; the others by three."""

APPROXIMATE = {
    "mkd, local": dataclasses.replace(TINY, meta=with_meta(steps=3, local=True)),
}


def networks(normalised: bool) -> Networks:
    """A student and a teacher of two convolutions before the last."""

    def network(width: int) -> nn.Module:
        norm = nn.BatchNorm2d(width) if normalised else nn.Identity()
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.Sequential(norm, nn.GELU()),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 3 * SCALE**2, 3, padding=1),
            nn.PixelShuffle(SCALE),
        )

    torch.manual_seed(0)
    student, teacher = (adapt(network(width), SCALE, "a network") for width in (6, 8))
    return Networks(student, {SCALE: teacher.eval()})


def photographs(step: int, known: int) -> Batch:
    """This process's rows of a batch, of which the first `known` have a photograph."""
    torch.manual_seed(step)
    low, high = torch.rand(ROWS, 3, SIDE, SIDE), torch.rand(ROWS, 3, SCALE * SIDE, SCALE * SIDE)
    rows, of_known = processes().rows(ROWS), processes().part(0, known)
    return Batch(low[rows], high[of_known], scale=SCALE)


def trained(name: str, options: TrainOptions | DataFreeOptions, steps: int) -> list[Tensor]:
    """All weights and the values of all steps, after so many steps of each network."""
    options = dataclasses.replace(options, iterations=steps, warmup=0)
    normalised = name == "batch normalisation"
    own = networks(normalised or name == "generator")
    if options.method in ("vanilla", "response"):
        options = dataclasses.replace(options, student_points=(), teacher_points=())
    if options.privileged or (options.method == "vanilla" and isinstance(options, TrainOptions)):
        own = own._replace(teachers={})
        options = dataclasses.replace(options, teacher_points=())
    with at_work(Processes()):
        training = prepare(options.resolved(), own)
    known = ROWS - sum(getattr(options, "mixture", {}).values())
    found: list[Tensor] = []
    for stages in training.by_network.values():
        before = None
        for stage in stages:
            stage.begin(before)
            before = stage
            with normalised_together([*stage.modules, *training.teachers.values()]):
                for step in range(stage.schedule.first, stage.schedule.end):
                    found += values(training, stage, step, known)
        stage.end()
        found += [tensor.detach().clone().double() for tensor in state(stage)]
    if training.made:
        maker = training.made.makers[SCALE]
        if maker.generator is not None:
            found += [tensor.detach().clone() for tensor in maker.trained]
    return found


def values(training, stage, step: int, known: int) -> list[Tensor]:
    if training.made is None:
        batch = photographs(step, known)
    else:
        (batch,) = training.made.batches(step, step + 1)
    taken = stage.take(step, batch)
    if training.made:
        taken |= training.made.improve(step, stage.networks)
    told = processes().averaged_numbers(stage.statistics(batch))
    return [value.detach().double() for value in taken.values()] + [
        torch.tensor(number, dtype=torch.float64) for number in told.values()
    ]


def state(stage) -> Iterator[Tensor]:
    for module in stage.modules:
        yield from module.state_dict().values()


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    assert len(found) == len(expected)
    gaps = [
        float(((a - b).abs() / b.abs().clamp_min(1)).max())
        for a, b in zip(found, expected, strict=True)
        if a.numel()
    ]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.inf


def main() -> None:
    rank, size, meeting, results, steps, *names = sys.argv[1:]
    rank, size, steps = int(rank), int(size), int(steps)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # What is rounded to float32 shall not be.
    setup.estimate_memory = lambda *given: None
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    groups = {count: dist.new_group(list(range(count))) for count in range(2, size + 1)}
    everything = TRAININGS | APPROXIMATE
    found: dict[str, dict[str, object]] = {}
    for name in names or everything:
        expected = trained(name, everything[name], steps) if rank == 0 else []
        for count, group in groups.items():
            if rank >= count or (count != _UNEVEN and name not in _BY_ALL_NUMBERS):
                continue
            together = Processes(rank, count, group, limit=60)
            together.divide(ROWS)
            with at_work(together):
                got = trained(name, everything[name], steps)
                total = sum(tensor.sum().item() for tensor in got)
                same = len(set(together.all_of(total))) == 1
            if rank == 0:
                gap = difference(got, expected)
                found[f"{name}, {count} processes"] = {"difference": gap, "same": same}
        if rank == 0:
            Path(results).write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
