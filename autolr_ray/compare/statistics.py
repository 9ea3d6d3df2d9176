"""From finished runs to verdicts: the fair-comparison protocol as pure functions on run records.

A grid arm has several points (peak LR x warmup fraction) per batch size. Its point is chosen by mean
validation accuracy, and only the runs of the chosen point are ever asked for their test accuracy: see
:class:`GridPoint`, which has no such field, and :func:`reported_runs`, the one way to test accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from autolr_ray.compare.cost import expected_best, runs_to_match
from autolr_ray.compare.values import ArmSummary, Comparison, Edge, GridPoint, Interval, Tuning, Verdict
from autolr_ray.train.record import RunRecord

__all__ = [
    "CONFIDENCE",
    "ArmSummary",
    "Comparison",
    "Edge",
    "GridPoint",
    "Interval",
    "Tuning",
    "Verdict",
    "arms_of",
    "check_margin",
    "compare",
    "decide",
    "default_baseline",
    "default_candidate",
    "expected_best",
    "is_grid",
    "reported_runs",
    "runs_to_match",
    "summarise",
    "t_interval",
    "tune",
    "without_repeats",
]

CONFIDENCE = 0.95
FEWEST_SEEDS = 3


def arms_of(records: Iterable[RunRecord]) -> tuple[str, ...]:
    """The arms' names, sorted."""
    return tuple(sorted({r.arm for r in records}))


def is_grid(records: Iterable[RunRecord], arm: str) -> bool:
    """Whether an arm has points to choose from, rather than one run per batch size and seed."""
    return any(r.point != "" for r in records if r.arm == arm)


def default_baseline(records: Sequence[RunRecord]) -> str | None:
    """The grid arm with the most points (ties: by name), None where no arm is a grid."""
    points = {
        a: len({r.point for r in records if r.arm == a}) for a in arms_of(records) if is_grid(records, a)
    }
    return min(points, key=lambda a: (-points[a], a)) if points else None


def default_candidate(records: Sequence[RunRecord]) -> str | None:
    """The first arm by name that is no grid, names that begin with "auto" before all others."""
    arms = [a for a in arms_of(records) if not is_grid(records, a)]
    return min(arms, key=lambda a: (not a.startswith("auto"), a)) if arms else None


def without_repeats(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Of several runs with the same arm, point, batch size and seed, the one that finished last."""
    latest: dict[tuple[str, str, int, int], RunRecord] = {}
    for r in sorted(records, key=lambda r: (r.finished_at, r.cell)):
        latest[r.arm, r.point, r.batch_size, r.seed] = r
    return [latest[key] for key in sorted(latest)]


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95% Student-t interval, ``mean ± t(0.975, n-1) s / sqrt(n)``; all NaN where n = 0."""
    n = len(values)
    if n == 0:
        return Interval(mean=math.nan, low=math.nan, high=math.nan)
    mean = math.fsum(values) / n if all(map(math.isfinite, values)) else math.nan
    if n == 1 or math.isnan(mean):
        return Interval(mean=mean, low=math.nan, high=math.nan)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half)


def tune(records: Iterable[RunRecord], arm: str, batch_size: int) -> Tuning:
    """Choose a grid arm's point at one batch size by mean validation accuracy over seeds.

    Ties go to the lower peak LR, then the shorter warmup. A point that ran with fewer seeds than
    another, or whose validation accuracy is not a number, cannot be chosen. ``chosen`` is None where no
    point can. The edge is judged against every peak LR that was tried.
    """
    runs = without_repeats(r for r in records if r.arm == arm and r.batch_size == batch_size)
    names = sorted({r.point for r in runs})
    most = max((sum(r.point == name for r in runs) for name in names), default=0)
    points = [_grid_point([r for r in runs if r.point == name], most) for name in names]
    points.sort(key=lambda p: (p.peak_lr, p.warmup_fraction, p.point))
    # max keeps the first of equals, and the points ascend in peak LR.
    chosen = max((p for p in points if not p.ineligible), key=lambda p: p.validation.mean, default=None)
    return Tuning(
        arm=arm, batch_size=batch_size, points=tuple(points), chosen=chosen, edge=_edge(points, chosen)
    )


def _grid_point(runs: Sequence[RunRecord], most_seeds: int) -> GridPoint:
    validation = t_interval([r.validation_accuracy for r in runs])
    ineligible = ""
    if len(runs) < most_seeds:
        ineligible = f"{len(runs)} of {most_seeds} seeds"
    elif math.isnan(validation.mean):
        ineligible = "validation accuracy is not a number"
    return GridPoint(
        point=runs[0].point,
        peak_lr=float(np.median([r.peak_lr for r in runs])),
        warmup_fraction=float(np.median([r.warmup_fraction for r in runs])),
        seeds=tuple(sorted(r.seed for r in runs)),
        validation=validation,
        device_seconds=math.fsum(r.device_seconds for r in runs),
        ineligible=ineligible,
    )


def _edge(points: Sequence[GridPoint], chosen: GridPoint | None) -> Edge:
    if chosen is None:
        return Edge.INSIDE
    low, high = min(p.peak_lr for p in points), max(p.peak_lr for p in points)
    if low == high:
        return Edge.ONLY
    return {low: Edge.LOWEST, high: Edge.HIGHEST}.get(chosen.peak_lr, Edge.INSIDE)


def reported_runs(records: Sequence[RunRecord], arm: str, batch_size: int) -> list[RunRecord]:
    """The runs whose test accuracy counts: the chosen point's of a grid arm, else all. Sorted by seed."""
    point = ""
    if is_grid(records, arm):
        chosen = tune(records, arm, batch_size).chosen
        if chosen is None:
            return []
        point = chosen.point
    at = without_repeats(r for r in records if r.arm == arm and r.batch_size == batch_size)
    return sorted((r for r in at if r.point == point), key=lambda r: r.seed)


def summarise(records: Sequence[RunRecord], arm: str, batch_size: int) -> ArmSummary | None:
    """One arm at one batch size, None where it has no run to report."""
    reported = reported_runs(records, arm, batch_size)
    if not reported:
        return None
    paid = without_repeats(r for r in records if r.arm == arm and r.batch_size == batch_size)
    by_point: dict[str, list[float]] = {}
    for r in paid:
        by_point.setdefault(r.point, []).append(r.device_seconds)
    one_run = math.fsum(r.device_seconds for r in reported)
    return ArmSummary(
        arm=arm,
        batch_size=batch_size,
        point=reported[0].point,
        seeds=tuple(r.seed for r in reported),
        validation=t_interval([r.validation_accuracy for r in reported]),
        test=t_interval([r.test_accuracy for r in reported]),
        peak_lrs=tuple(r.peak_lr for r in reported),
        switch_steps=tuple(r.switch_step for r in reported),
        runs_all=len(paid),
        runs_per_seed=len(by_point),
        seconds_reported=one_run,
        seconds_all=math.fsum(r.device_seconds for r in paid),
        seconds_reported_per_seed=one_run / len(reported),
        seconds_per_seed=math.fsum(math.fsum(s) / len(s) for s in by_point.values()),
    )


def decide(interval: Interval, margin: float) -> Verdict:
    """The verdict of an interval of differences.

    Equivalent where it lies within [-margin, margin], ends included; otherwise better or worse where it
    lies wholly above or below zero; otherwise, and where the interval is NaN, undecided.

    Raises:
        ValueError: ``margin`` is negative or not a number.
    """
    check_margin(margin)
    if -margin <= interval.low and interval.high <= margin:
        return Verdict.EQUIVALENT
    if interval.low > 0:
        return Verdict.BETTER
    if interval.high < 0:
        return Verdict.WORSE
    return Verdict.UNDECIDED


def check_margin(margin: float) -> None:
    """Refuse a margin that is no accuracy difference: it must be finite and at least 0."""
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin = {margin!r}: must be a finite accuracy difference >= 0, such as 0.005")


def compare(
    records: Sequence[RunRecord], candidate: str, baseline: str, batch_size: int, *, margin: float
) -> Comparison | None:
    """Candidate minus tuned baseline at one batch size over their common seeds; None where there is none.

    Undecided with fewer than three seeds: two differences that happen to agree, as accuracies on a finite
    test set may, would give an interval of no width.

    Raises:
        ValueError: ``margin`` is negative or not a number.
    """
    check_margin(margin)
    ours = {r.seed: r.test_accuracy for r in reported_runs(records, candidate, batch_size)}
    theirs = {r.seed: r.test_accuracy for r in reported_runs(records, baseline, batch_size)}
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    mine, other = summarise(records, candidate, batch_size), summarise(records, baseline, batch_size)
    if not seeds or mine is None or other is None:
        return None
    differences = [ours[s] - theirs[s] for s in seeds]
    interval = t_interval(differences)
    low, high = _bootstrap(differences)
    tuning = tune(records, baseline, batch_size)
    return Comparison(
        batch_size=batch_size,
        candidate=mine,
        baseline=other,
        seeds=seeds,
        candidate_test=t_interval([ours[s] for s in seeds]).mean,
        baseline_test=t_interval([theirs[s] for s in seeds]).mean,
        difference=interval,
        bootstrap_low=low,
        bootstrap_high=high,
        margin=margin,
        verdict=decide(interval, margin) if len(seeds) >= FEWEST_SEEDS else Verdict.UNDECIDED,
        runs_to_match=runs_to_match([p.validation.mean for p in tuning.points], mine.validation.mean)
        if is_grid(records, baseline)
        else None,
    )


def _bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    if len(differences) < 5 or not all(map(math.isfinite, differences)):
        return math.nan, math.nan
    if np.ptp(differences) == 0:  # BCa divides by the spread
        return differences[0], differences[0]
    result = stats.bootstrap(
        (np.asarray(differences),), np.mean, confidence_level=CONFIDENCE, rng=np.random.default_rng(0)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
