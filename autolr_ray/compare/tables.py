"""What the page adds to the findings: regret, peak learning rates side by side, differences on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autolr_ray.compare.values import ArmSummary, Comparison, Interval, Tuning
from autolr_ray.train.record import RunRecord

RunKey = tuple[str, str, int, int]
"""Arm, point, batch size, seed: what tells runs apart. A cell may stand for several of them."""


def key_of(record: RunRecord) -> RunKey:
    """What a run is called in a study."""
    return record.arm, record.point, record.batch_size, record.seed


def reported_keys(summaries: Iterable[ArmSummary]) -> frozenset[RunKey]:
    """The runs whose test accuracy may be shown."""
    return frozenset((s.arm, s.point, s.batch_size, seed) for s in summaries for seed in s.seeds)


@dataclass(frozen=True, kw_only=True)
class Regret:
    """How far one arm's mean test accuracy lies below the best arm's: fractions <= 0.

    ``by_batch`` follows the batch sizes that :func:`regrets` was given; NaN where the arm has no mean
    there. ``mean`` and ``worst`` are NaN unless the arm has one at every batch size: means over different
    batch sizes would not compare.
    """

    arm: str
    by_batch: tuple[float, ...]
    mean: float
    worst: float


def regrets(summaries: Sequence[ArmSummary], batch_sizes: Sequence[int]) -> list[Regret]:
    """Every arm's regret at each batch size, the smallest mean regret first, arms without a mean last."""
    means = {(s.arm, s.batch_size): s.test.mean for s in summaries}
    best = {
        size: max((v for (_, b), v in means.items() if b == size and math.isfinite(v)), default=math.nan)
        for size in batch_sizes
    }
    found = []
    for arm in dict.fromkeys(s.arm for s in summaries):
        by_batch = tuple(means.get((arm, size), math.nan) - best[size] for size in batch_sizes)
        whole = bool(by_batch) and all(map(math.isfinite, by_batch))
        mean = math.fsum(by_batch) / len(by_batch) if whole else math.nan
        found.append(Regret(arm=arm, by_batch=by_batch, mean=mean, worst=min(by_batch) if whole else mean))
    return sorted(found, key=lambda r: (math.isnan(r.mean), -r.mean if math.isfinite(r.mean) else 0.0, r.arm))


@dataclass(frozen=True, kw_only=True)
class PeakRow:
    """The peak learning rates one arm is reported with at one batch size, by seed.

    ``ratio`` is their geometric mean over the baseline's; NaN where either has none.
    """

    batch_size: int
    arm: str
    how: str
    peak_lrs: tuple[float, ...]
    ratio: float


def peak_rows(
    runs: Sequence[RunRecord],
    summaries: Sequence[ArmSummary],
    tunings: Sequence[Tuning],
    baseline: str | None,
) -> list[PeakRow]:
    """Chosen peak learning rates beside those that runs found by themselves, in the summaries' order."""
    by_key = {key_of(r): r for r in runs}
    points = {(t.arm, t.batch_size): len(t.points) for t in tunings}
    middle = {(s.arm, s.batch_size): _geometric_mean(s.peak_lrs) for s in summaries}
    rows = []
    for s in summaries:
        own = [by_key[key] for key in sorted(reported_keys([s])) if key in by_key]
        tuned = points.get((s.arm, s.batch_size))
        if tuned is not None:
            how = f"chosen among {tuned} point{'s' * (tuned != 1)}: {s.point}"
        elif any(r.tuning for r in own):
            how = ", ".join(sorted({r.tuning for r in own if r.tuning}))
        else:
            how = "found during the run" if any(r.receipts for r in own) else "given"
        ratio = middle[s.arm, s.batch_size] / middle.get((baseline or "", s.batch_size), math.nan)
        row = PeakRow(batch_size=s.batch_size, arm=s.arm, how=how, peak_lrs=s.peak_lrs, ratio=ratio)
        rows.append(row)
    return rows


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A difference and its interval as places from 0 (left end) to 100; ``low`` and ``high`` NaN where it
    has no interval. ``cut_low`` and ``cut_high``: the interval goes on past that end. Zero lies at 50.
    """

    mean: float
    low: float
    high: float
    cut_low: bool
    cut_high: bool
    band_low: float
    band_high: float


def deciding(comparison: Comparison) -> Interval:
    """The interval that the verdict follows."""
    return comparison.difference


def strip_reach(comparisons: Iterable[Comparison]) -> float:
    """The accuracy difference at the strips' ends.

    Two seeds can give an interval of twenty points: it may leave the strip, the means and margins may not.
    """
    reach = room = 1e-3
    for c in comparisons:
        interval = deciding(c)
        room = max(room, 4 * c.margin, *(2.5 * abs(v) for v in (interval.mean,) if math.isfinite(v)))
        reach = max(reach, 1.5 * c.margin, *(abs(v) for v in _finite(interval)))
    return 1.08 * min(reach, room)


def strip(comparison: Comparison, reach: float) -> Strip:
    """Where a comparison's numbers lie on a strip whose ends are at ``-reach`` and ``reach``."""
    interval = deciding(comparison)

    def place(value: float) -> float:
        return 50 + 50 * min(1.0, max(-1.0, value / reach)) if math.isfinite(value) else math.nan

    return Strip(
        mean=place(interval.mean), low=place(interval.low), high=place(interval.high),
        cut_low=interval.low < -reach, cut_high=interval.high > reach,
        band_low=place(-comparison.margin), band_high=place(comparison.margin),
    )  # fmt: skip


def _finite(interval: Interval) -> list[float]:
    return [v for v in (interval.mean, interval.low, interval.high) if math.isfinite(v)]


def _geometric_mean(values: Sequence[float]) -> float:
    if not values or not all(v > 0 and math.isfinite(v) for v in values):
        return math.nan
    return math.exp(math.fsum(map(math.log, values)) / len(values))
