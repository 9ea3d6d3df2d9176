"""From paired differences to a verdict: two intervals, and the rule that both must agree.

A verdict's interval is the hull of the 95% Student t interval and the 95% bootstrap interval (BCa) of the
mean difference, from three seeds on: what it says holds for both. The levels that are meant, for an
arm whose true difference is ``d`` at margin ``m``:

- P(better | d <= 0) <= 2.5% and P(worse | d >= 0) <= 2.5%,
- P(equivalent | abs(d) >= m) <= 5%.

``experiments/benchmarks/verdict_errors.py`` measures them on whole simulated studies; its output is
``experiments/results/compare/verdict_errors.jsonl``. What it says, and why the rule is this one:

- With normal differences, and with accuracies on 2,000 test examples, all three hold at 3, 5 and 10 seeds.
- The bootstrap alone is far too sure of itself: at three seeds it calls an equal arm better in 11% to 15%
  of studies, as no resample of three values leaves their range. Up to four seeds the t interval contains
  that range, and with it every bootstrap interval; from five on the bootstrap widens the hull on the side
  of a long tail.
- With long tails no rule keeps the levels: none sees a bad seed that has not come up. With a tail of
  skewness 1 an equal arm is called better in 3%; where one run in ten of an arm loses five standard
  deviations, in 6%, 8% and 10% of studies at 3, 5 and 10 seeds, and equivalent at the margin as often. The
  mirror image holds for the baseline's tail.
- A studentised bootstrap does no better there, can decide nothing at three seeds, and at five finds half of
  the equal arms equivalent where this rule finds four in five.
- The baseline's point is chosen by the seeds that it is reported for. What luck validation and test data
  share counts for the baseline: at the worst (all of it shared, three equally good points) an equal arm is
  called worse in 5% to 6% of studies, better in less than 1%, and one better by the margin equivalent in 5%
  to 6%.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

from autolr_ray.compare.values import Interval, Paired, Verdict

CONFIDENCE = 0.95
FEWEST_SEEDS = 3

_NOTHING = Interval(mean=math.nan, low=math.nan, high=math.nan)


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95% Student-t interval, ``mean ± t(0.975, n-1) s / sqrt(n)``; all NaN where n = 0."""
    n = len(values)
    if n == 0 or not all(map(math.isfinite, values)):
        return _NOTHING
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    if min(values) == max(values):  # summed up, they would leave a width of rounding errors
        return Interval(mean=values[0], low=values[0], high=values[0])
    half = _quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half)


def stratified_interval(strata: Sequence[Sequence[float]]) -> Interval:
    """Mean of the strata's means and its 95% interval, by Welch and Satterthwaite.

    For several comparisons together, each with a spread of its own: their values are independent of each
    other, as those of other tasks are even where the seeds have the same numbers. The degrees of freedom are
    Satterthwaite's (1946, Biometrics Bulletin 2:110). At three values a stratum it holds what it should in 93
    to 97% (``tests/compare/test_statistics.py``).

    Args:
        strata: each with its values; bounds are NaN where one has fewer than two.
    """
    if not strata or not all(len(values) and all(map(math.isfinite, values)) for values in strata):
        return _NOTHING
    mean = math.fsum(math.fsum(values) / len(values) for values in strata) / len(strata)
    if min(map(len, strata)) < 2:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    parts = [
        0.0 if min(values) == max(values) else float(np.var(values, ddof=1)) / len(values)
        for values in strata
    ]
    if not any(parts):
        return Interval(mean=mean, low=mean, high=mean)
    freedom = math.fsum(parts) ** 2 / math.fsum(
        part**2 / (len(values) - 1) for part, values in zip(parts, strata, strict=True)
    )
    half = _quantile(freedom) * math.sqrt(math.fsum(parts)) / len(strata)
    return Interval(mean=mean, low=mean - half, high=mean + half)


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """Mean and 95% bootstrap interval (BCa, 9999 resamples, the same at every call).

    Bounds are NaN below three values, where there is next to nothing to resample, and where a value is not
    finite. Of equal values they are that value.
    """
    n = len(values)
    if n == 0 or not all(map(math.isfinite, values)):
        return _NOTHING
    mean = math.fsum(values) / n
    if n < FEWEST_SEEDS:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    if min(values) == max(values):  # BCa divides by the spread
        return Interval(mean=values[0], low=values[0], high=values[0])
    with warnings.catch_warnings():
        # A spread near the smallest float: NaN bounds say it.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.asarray(values),), np.mean, confidence_level=CONFIDENCE, rng=np.random.default_rng(0)
        ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high))


def hull(first: Interval, second: Interval) -> Interval:
    """The least interval that contains both; a NaN bound of either makes it NaN."""
    bounds = (first.low, first.high, second.low, second.high)
    if any(map(math.isnan, bounds)):
        return Interval(mean=first.mean, low=math.nan, high=math.nan)
    return Interval(mean=first.mean, low=min(bounds), high=max(bounds))


def judge(differences: Sequence[float], margin: float) -> Paired:
    """The verdict of paired differences, by the rule and at the levels of this module.

    Below three differences the t interval is shown and the verdict is undecided: two that happen to agree,
    as accuracies on a finite test set may, would give an interval of no width.

    Raises:
        ValueError: ``margin`` is negative or not a number.
    """
    check_margin(margin)
    student, bootstrap = t_interval(differences), bootstrap_interval(differences)
    enough = len(differences) >= FEWEST_SEEDS
    interval = hull(student, bootstrap) if enough else student
    return Paired(
        differences=tuple(differences),
        interval=interval,
        student=student,
        bootstrap=bootstrap,
        margin=margin,
        verdict=decide(interval, margin) if enough else Verdict.UNDECIDED,
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


@functools.cache
def _quantile(freedom: float) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
