"""What tuning costs: how many runs of a grid must be paid until the best of them is good enough.

Everything here is in validation accuracy, as that is what somebody sees who tunes: test accuracy is read
once, for the winner alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from autolr_ray.compare.intervals import CONFIDENCE, FEWEST_SEEDS
from autolr_ray.compare.values import RunsToBeat

Array = NDArray[np.float64]


def expected_best(values: Sequence[float], k: int) -> float:
    """Expected maximum of ``k`` of the ``m`` values drawn without replacement.

    ``sum_i v_(i) C(i-1, k-1) / C(m, k)`` over the ascending values v_(1..m). Values that are not a number
    count as 0: the run was paid and led nowhere.

    >>> expected_best([0.0, 0.5, 1.0], 1), expected_best([0.0, 0.5, 1.0], 3)
    (0.5, 1.0)
    """
    m = len(values)
    if not 1 <= k <= m:
        raise ValueError(f"k = {k}: must be between 1 and the number of values, {m}")
    ascending = sorted(v if math.isfinite(v) else 0.0 for v in values)
    weighted = (v * math.comb(i, k - 1) for i, v in enumerate(ascending))
    return math.fsum(weighted) / math.comb(m, k)


def best_of_each(grid: Array) -> Array:
    """:func:`expected_best` of k = 1 .. points in each row of ``grid`` (seeds, points); the same shape."""
    seeds, points = grid.shape
    return np.array([[expected_best(row, k) for k in range(1, points + 1)] for row in grid]).reshape(
        seeds, points
    )


def runs_to_beat(grid: Array, candidate: Array) -> RunsToBeat | None:
    """The least number of runs, drawn at random from the grid, whose best is expected to beat the candidate.

    Each seed is tuned by itself, as somebody with one seed would: ``k`` is the least for which the mean over
    seeds of :func:`expected_best` is above the candidate's mean. Points that are lucky on one seed are taken
    at their word, so the number errs in the grid's favour.

    The interval is the 95% percentile bootstrap over seeds, drawn jointly for both arms; bounds are whole
    runs, rounded outwards. From three seeds it says little more than what single seeds say.

    Args:
        grid: validation accuracies of every point, (seeds, points); NaN counts as 0.
        candidate: validation accuracies of the same seeds, (seeds,); NaN counts as 0.

    Returns:
        None where there is no seed or no point.
    """
    if grid.size == 0:
        return None
    points = grid.shape[1]
    ahead = best_of_each(grid) - np.where(np.isfinite(candidate), candidate, 0.0)[:, None]

    def least(rows: Array, axis: int = -1) -> Array:
        """The first k that wins over the seeds of the last axis; points + 1 where none does."""
        wins = ahead[rows.astype(int)].mean(axis=-2) > 0
        first: Array = np.where(wins.any(axis=-1), wins.argmax(axis=-1), points) + 1.0
        return first

    seeds = np.arange(len(grid), dtype=float)
    low = high = None
    if len(grid) >= FEWEST_SEEDS:
        drawn = stats.bootstrap(
            (seeds,), least, method="percentile", vectorized=True, batch=1000, rng=np.random.default_rng(0)
        ).bootstrap_distribution
        tail = (1 - CONFIDENCE) / 2
        low = int(np.quantile(drawn, tail, method="lower"))
        high = int(np.quantile(drawn, 1 - tail, method="higher"))
    return RunsToBeat(runs=int(least(seeds)), low=low, high=high, points=points, seeds=len(grid))
