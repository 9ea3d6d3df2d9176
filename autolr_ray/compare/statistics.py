"""From finished runs to verdicts: the fair-comparison protocol as pure functions on run records.

A grid arm has several points (peak LR x warmup fraction) per batch size. Its point is chosen by mean
validation accuracy, and only the runs of the chosen point are ever asked for their test accuracy: see
:class:`GridPoint`, which has no such field, and :func:`reported_runs`, the one way to test accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from autolr_ray.compare.cost import Array, best_of_each, runs_to_beat
from autolr_ray.compare.intervals import check_margin, judge, t_interval
from autolr_ray.compare.values import (
    ArmSummary,
    BestOf,
    Comparison,
    Edge,
    GridPoint,
    Interval,
    Overall,
    RunsToBeat,
    Tuning,
)
from autolr_ray.train.record import RunRecord


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


def _of_accuracies(values: Sequence[float]) -> Interval:
    """Their mean and interval; what lies beyond 0 and 1, where no accuracy can, is cut off."""
    found = t_interval(values)
    if math.isnan(found.low) or not 0.0 <= found.mean <= 1.0:  # a score of the user's own may leave them
        return found
    return Interval(mean=found.mean, low=max(found.low, 0.0), high=min(found.high, 1.0))


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
    per_seed = math.fsum(math.fsum(s) / len(s) for s in by_point.values())
    # What is no tuning is what the reported runs would have cost had their settings been known.
    known = math.fsum(r.device_seconds - r.tuning_seconds for r in reported) / len(reported)
    others = len(by_point) - 1
    found_by = [f"{others} other run{'s' * (others != 1)} of the grid"] if others else []
    found_by += sorted({r.tuning for r in reported if r.tuning})
    return ArmSummary(
        arm=arm,
        batch_size=batch_size,
        point=reported[0].point,
        seeds=tuple(r.seed for r in reported),
        validation=_of_accuracies([r.validation_accuracy for r in reported]),
        test=_of_accuracies([r.test_accuracy for r in reported]),
        peak_lrs=tuple(r.peak_lr for r in reported),
        switch_steps=tuple(r.switch_step for r in reported),
        runs_all=len(paid),
        runs_per_seed=len(by_point),
        seconds_reported=one_run,
        seconds_all=math.fsum(r.device_seconds for r in paid),
        seconds_reported_per_seed=one_run / len(reported),
        seconds_per_seed=per_seed,
        tuning_seconds_per_seed=per_seed - known,
        tuning=", ".join(found_by),
    )


def compare(
    records: Sequence[RunRecord], candidate: str, baseline: str, batch_size: int, *, margin: float
) -> Comparison | None:
    """Candidate minus tuned baseline at one batch size over their common seeds; None where there is none.

    See :mod:`autolr_ray.compare.intervals` for the rule of the verdict. The baseline's point is chosen over
    the same seeds that it is reported for: luck that a choice picks up counts for the baseline.

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
    return Comparison(
        batch_size=batch_size,
        candidate=mine,
        baseline=other,
        seeds=seeds,
        candidate_test=t_interval([ours[s] for s in seeds]).mean,
        baseline_test=t_interval([theirs[s] for s in seeds]).mean,
        paired=judge([ours[s] - theirs[s] for s in seeds], margin),
        runs_to_beat=_runs_to_beat(records, candidate, baseline, batch_size),
    )


def compare_overall(comparisons: Sequence[Comparison]) -> Overall | None:
    """One verdict over several batch sizes: of each seed's mean difference over them, by the same rule.

    Only seeds that every comparison has count; None where there is none, or fewer than two comparisons.
    """
    if len(comparisons) < 2:
        return None
    seeds = sorted(set.intersection(*(set(c.seeds) for c in comparisons)))
    if not seeds:
        return None
    by_seed = [dict(zip(c.seeds, c.paired.differences, strict=True)) for c in comparisons]
    means = [math.fsum(d[s] for d in by_seed) / len(by_seed) for s in seeds]
    return Overall(
        batch_sizes=tuple(c.batch_size for c in comparisons),
        seeds=tuple(seeds),
        paired=judge(means, comparisons[0].margin),
    )


def best_of_runs(records: Sequence[RunRecord], arm: str, batch_size: int) -> list[BestOf]:
    """What ``k`` runs drawn at random from a grid are expected to cost and to find, k = 1 .. all points.

    Mean over the seeds that have finished every point; empty where there is none.
    """
    seeds, validation, seconds = _grid_table(records, arm, batch_size)
    if not seeds:
        return []
    return [
        BestOf(runs=k, device_seconds=k * float(seconds.mean()), validation_accuracy=float(best))
        for k, best in enumerate(best_of_each(validation).mean(axis=0), start=1)
    ]


def _runs_to_beat(
    records: Sequence[RunRecord], candidate: str, baseline: str, batch_size: int
) -> RunsToBeat | None:
    if not is_grid(records, baseline) or is_grid(records, candidate):
        return None
    seeds, validation, _ = _grid_table(records, baseline, batch_size)
    ours = {r.seed: r.validation_accuracy for r in reported_runs(records, candidate, batch_size)}
    common = [i for i, s in enumerate(seeds) if s in ours]
    return runs_to_beat(validation[common], np.array([ours[seeds[i]] for i in common]))


def _grid_table(records: Sequence[RunRecord], arm: str, batch_size: int) -> tuple[list[int], Array, Array]:
    """The seeds that have finished every point of a grid, their validation accuracies and device-seconds,
    both (seeds, points).
    """
    runs = without_repeats(r for r in records if r.arm == arm and r.batch_size == batch_size)
    at = {(r.seed, r.point): r for r in runs}
    points = sorted({r.point for r in runs})
    seeds = sorted(s for s in {r.seed for r in runs} if all((s, p) in at for p in points))
    shape = (len(seeds), len(points))
    table = [at[s, p] for s in seeds for p in points]
    return (
        seeds,
        np.array([r.validation_accuracy for r in table]).reshape(shape),
        np.array([r.device_seconds for r in table]).reshape(shape),
    )
