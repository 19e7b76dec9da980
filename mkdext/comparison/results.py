"""What the finished trainings of a comparison reached, and how sure their differences are."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy.special import stdtrit

from mkdext.comparison.cells import REFERENCE
from mkdext.models import MODEL_NAMES
from mkdext.training.options import METHOD_NAMES
from mkdext.training.run_directory import RunDirectory

CONFIDENCE = 0.95


class Result(NamedTuple):
    """A finished training."""

    student: str
    method: str
    seed: int
    run: RunDirectory
    scale: int
    val_dir: tuple[Path, ...]
    iterations: int
    parameters: int
    seconds_per_step: float
    """Validations included."""
    peak_bytes: int | None
    """Most memory in use at a step, libraries and photographs included; none: not recorded."""
    validation: dict[str, dict[str, dict[str, float]]]
    """`psnr_y` (dB) and `ssim_y` by set and by way of enlarging."""
    curve: dict[str, dict[int, float]]
    """PSNR-Y (dB) by set and step."""


class Spread(NamedTuple):
    """Of the values of several seeds."""

    seeds: int
    mean: float
    deviation: float | None
    """Standard deviation of a sample; none: of a single or an infinite value there is none."""


class Difference(NamedTuple):
    """To the training without a teacher, paired by seed."""

    seeds: int
    mean: float
    interval: float | None
    """The mean's 95 % confidence interval reaches so far to both sides, by Student's t; none: a
    single pair has none."""

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and abs(self.mean) > self.interval


def read_results(out: Path) -> list[Result]:
    """All finished trainings of a comparison, by student, method and seed.

    Raises:
        ValueError: A file is damaged.
    """
    results = [_read(RunDirectory(file.parent)) for file in out.glob("cells/*/*/*/summary.json")]

    def order(result: Result) -> tuple[Any, ...]:
        return (
            *_position(result.student, MODEL_NAMES),
            *_position(result.method, METHOD_NAMES),
            result.seed,
        )

    return sorted(results, key=order)


def _position(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known)), name


def _read(run: RunDirectory) -> Result:
    try:
        summary = json.loads(run.summary.read_text())
        config = yaml.safe_load(run.config.read_text())
        records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        curve: dict[str, dict[int, float]] = {}
        for record in records:
            for data, scores in record.get("validation", {}).items():
                curve.setdefault(data, {})[record["step"]] = _psnr_of(scores)
        return Result(
            student=config["student"],
            method=summary["method"],
            seed=summary["seed"],
            run=run,
            scale=summary["scale"],
            val_dir=tuple(map(Path, config["val_dir"])),
            iterations=summary["iterations"],
            parameters=summary["parameters"],
            seconds_per_step=summary["seconds"] / summary["iterations"],
            peak_bytes=max((r["peak_bytes"] for r in records if "peak_bytes" in r), default=None),
            validation={
                data: {
                    way: {"psnr_y": _psnr_of(scores), "ssim_y": scores["ssim_y"]}
                    for way, scores in ways.items()
                }
                for data, ways in summary["validation"].items()
            },
            curve=curve,
        )
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{run.root} is damaged ({error!r}): delete it, and the same command trains it again"
        ) from None


def _psnr_of(scores: Mapping[str, Any]) -> float:
    """JSON has no infinity, which photographs have that are all met exactly."""
    return math.inf if scores["psnr_y"] is None else float(scores["psnr_y"])


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(seeds=3, mean=2.0, deviation=1.0)
    """
    measurable = len(values) > 1 and all(map(math.isfinite, values))
    deviation = statistics.stdev(values) if measurable else None
    return Spread(len(values), statistics.fmean(values), deviation)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Mean difference over the seeds that both have, with a paired confidence interval.

    Args:
        values: One value a seed.
        reference: What to subtract.

    Returns:
        None if they have no seed in common where both are finite.

    Example:
        >>> difference({0: 2.0, 1: 4.0}, {0: 1.0, 1: 1.0, 2: 9.0}).mean
        2.0
    """
    pairs = [values[seed] - reference[seed] for seed in values if seed in reference]
    pairs = [pair for pair in pairs if math.isfinite(pair)]
    if not pairs:
        return None
    count, mean, deviation = spread(pairs)
    if deviation is None:
        return Difference(count, mean, None)
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Difference(count, mean, quantile * deviation / math.sqrt(count))


class Row(NamedTuple):
    """A method for a student on a set of photographs."""

    student: str
    method: str
    photographs: str
    psnr_y: Spread
    ssim_y: Spread
    psnr_gain: Difference | None
    """dB; none: this is the training without a teacher, or there is none to compare with."""
    ssim_gain: Difference | None


def rows(results: Iterable[Result]) -> list[Row]:
    """Means and differences by student, method and set, in the order of the results."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.student, result.method), []).append(result)
    table = []
    for (student, method), group in groups.items():
        base = groups.get((student, REFERENCE), []) if method != REFERENCE else []
        for data in group[0].validation:
            psnr, ssim = (
                {r.seed: r.validation[data]["student"][s] for r in group} for s in _SCORES
            )
            psnr_base, ssim_base = (
                {r.seed: r.validation[data]["student"][s] for r in base} for s in _SCORES
            )
            table.append(
                Row(
                    student,
                    method,
                    data,
                    spread(list(psnr.values())),
                    spread(list(ssim.values())),
                    difference(psnr, psnr_base),
                    difference(ssim, ssim_base),
                )
            )
    return table


_SCORES = ("psnr_y", "ssim_y")
