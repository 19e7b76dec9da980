"""What the finished trainings of a comparison reached, and how sure their differences are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from mkdext._system.reading import entry
from mkdext.comparison.cells import REFERENCE
from mkdext.models import MODEL_NAMES
from mkdext.training.options import known_methods
from mkdext.training.run.directory import RunDirectory

CONFIDENCE = 0.95


class Result(NamedTuple):
    """A finished training."""

    student: str
    student_options: tuple[str, ...]
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
    runs = [RunDirectory(file.parent) for file in out.glob("cells/*/*/*/summary.json")]
    # One whose summary is damaged counts as not finished.
    results = [_read(run, summary) for run in runs if (summary := run.read_summary())]

    def order(result: Result) -> tuple[Any, ...]:
        return (
            *_position(result.student, MODEL_NAMES),
            *_position(result.method, known_methods()),
            result.seed,
        )

    return sorted(results, key=order)


def _position(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known)), name


def _read(run: RunDirectory, summary: Mapping[str, Any]) -> Result:
    try:
        config, records = run.options(), run.records()
        curve: dict[str, dict[int, float]] = {}
        for record in records:
            for data, scores in record.get("validation", {}).items():
                curve.setdefault(data, {})[record["step"]] = _score(scores, "psnr_y")
        iterations, scale, seed, parameters = (
            entry(summary, name, int, run.summary.name)
            for name in ("iterations", "scale", "seed", "parameters")
        )
        if iterations < 1:
            raise ValueError(f"{run.summary.name}: 'iterations' is {iterations}")
        return Result(
            student=entry(config, "student", str, run.config.name),
            # A run of an older version has none.
            student_options=tuple(map(str, config.get("student_options") or ())),
            method=entry(summary, "method", str, run.summary.name),
            seed=seed,
            run=run,
            scale=scale,
            val_dir=tuple(Path(str(f)) for f in entry(config, "val_dir", list, run.config.name)),
            iterations=iterations,
            parameters=parameters,
            seconds_per_step=entry(summary, "seconds", float, run.summary.name) / iterations,
            peak_bytes=max((r["peak_bytes"] for r in records if r.get("peak_bytes")), default=None),
            validation={
                data: {
                    way: {name: _score(scores, name) for name in _SCORES}
                    for way, scores in _mapping(ways, data).items()
                }
                for data, ways in summary["validation"].items()
            },
            curve=curve,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{run.root} is damaged ({error}): delete it, and the same command trains it again"
        ) from None


def _mapping(value: Any, of: str) -> dict[str, Any]:
    return entry({of: value}, of, dict, "the validation")


def _score(scores: Any, name: str) -> float:
    """A score, which has no number where it is infinite."""
    if isinstance(scores, Mapping) and name in scores and scores[name] is None:
        return math.inf
    return entry(scores, name, float, "the validation")


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
