"""Numbers as people read them, the same in every table and sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autolr_ray.compare.values import ArmSummary, Interval, RunsToBeat


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


def paid(summary: ArmSummary) -> str:
    """What one seed's result costs, and what part of that was the search for a learning rate."""
    if not summary.tuning:
        return cost(summary)
    return f"{cost(summary)} ({seconds(summary.tuning_seconds_per_seed)} of it tuning: {summary.tuning})"


def runs_needed(found: RunsToBeat) -> str:
    """How many of a grid's runs: ``"3 runs drawn at random (95 % over seeds: 2 to more than 10)"``."""

    def count(k: int) -> str:
        return f"{k}" if k <= found.points else f"more than {found.points}"

    text = f"{count(found.runs)} run{'s' * (found.runs != 1)} drawn at random"
    if found.low is None or found.high is None:
        return text
    return f"{text} (95 % over seeds: {count(found.low)} to {count(found.high)})"


def spread(values: Sequence[float]) -> str:
    """One number where all agree, else the range."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


# The rule of the verdicts for readers, with what it is known not to do.
PROTOCOL = (
    "A verdict's interval is the hull of two for the mean of the paired differences, Student's t and the "
    "bootstrap (BCa), 95 % each: what it says holds for both. Fewer than three seeds stay undecided.",
    "Levels meant: an arm that is no better is called better, one that is no worse worse, in at most "
    "2.5 % of studies; one that differs by the margin or more is called equivalent in at most 5 %. "
    "Simulated studies keep them with normal differences and with accuracies on 2,000 test examples, at "
    "3, 5 and 10 seeds.",
    "They are not kept with long tails, by this rule or any: a bad seed that has not come up cannot be seen. "
    "Where one run in ten of an arm loses five standard deviations, the arm is wrongly called better in 6 %, "
    "8 % and 10 % of studies at 3, 5 and 10 seeds, and wrongly called equivalent as often.",
    "The baseline's point is chosen by the seeds that it is reported for, so that luck which validation and "
    "test data share counts for the baseline: at the worst an equal candidate is wrongly called worse in 5 % "
    "to 6 % of studies, and better in less than 1 %.",
    "The grid's runs are drawn at random, each seed is tuned by itself and a lucky run is taken at its word: "
    "the number of runs needed errs in the grid's favour.",
)
