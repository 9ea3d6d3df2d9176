"""What tuning costs: how many runs of a grid must be paid until the best of them is good enough."""

from __future__ import annotations

import math
from collections.abc import Sequence


def expected_best(values: Sequence[float], k: int) -> float:
    """Expected maximum of ``k`` of the ``m`` values drawn without replacement.

    ``sum_i v_(i) C(i-1, k-1) / C(m, k)`` over the ascending values v_(1..m).

    >>> expected_best([0.0, 0.5, 1.0], 1), expected_best([0.0, 0.5, 1.0], 3)
    (0.5, 1.0)
    """
    m = len(values)
    if not 1 <= k <= m:
        raise ValueError(f"k = {k}: must be between 1 and the number of values, {m}")
    weighted = (v * math.comb(i, k - 1) for i, v in enumerate(sorted(values)))
    return math.fsum(weighted) / math.comb(m, k)


def runs_to_match(values: Sequence[float], target: float) -> int | None:
    """The least ``k`` whose :func:`expected_best` reaches ``target``; None where even all do not.

    Values that are not a number count as 0: the run was paid and led nowhere.
    """
    finite = [v if math.isfinite(v) else 0.0 for v in values]
    return next((k for k in range(1, len(finite) + 1) if expected_best(finite, k) >= target), None)
