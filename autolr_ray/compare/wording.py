"""Numbers as people read them, the same in every table and sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autolr_ray.compare.values import ArmSummary, Interval


def percent(value: float, digits: int = 1) -> str:
    """A fraction as per cent: ``0.8764`` -> ``"87.6 %"``."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "n/a"


def points(interval: Interval, digits: int = 1) -> str:
    """A difference of accuracies in points: ``"-0.5 points [-1.2, +0.2]"``."""

    def signed(value: float) -> str:
        # Adding 0.0 turns a rounded -0.0 into +0.0.
        return f"{round(100 * value, digits) + 0.0:+.{digits}f}" if math.isfinite(value) else "n/a"

    return f"{signed(interval.mean)} points [{signed(interval.low)}, {signed(interval.high)}]"


def seconds(value: float) -> str:
    """Device time: one decimal below ten seconds, thousands apart."""
    return (f"{value:,.1f} s" if value < 10 else f"{value:,.0f} s") if math.isfinite(value) else "n/a"


def number(value: float) -> str:
    """A learning rate, loss or probability in three digits."""
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def cost(summary: ArmSummary) -> str:
    runs = f"{summary.runs_per_seed} run{'s' * (summary.runs_per_seed != 1)}"
    return f"{runs}, {seconds(summary.seconds_per_seed)}"


def spread(values: Sequence[float]) -> str:
    """One number where all agree, else the range."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
