"""What the statistics say, as values: verdicts, intervals, tunings, summaries, comparisons.

Accuracies are fractions in [0, 1], costs device-seconds. "Per seed" means what one result costs
somebody with one seed: one run, or one pass over the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What the paired differences say. The values are the sentences users read."""

    BETTER = "Better: the whole interval lies above zero."
    EQUIVALENT = "Equivalent: the whole interval lies within the margin."
    WORSE = "Worse: the whole interval lies below zero."
    UNDECIDED = "Undecided: the runs leave room for both; more seeds would narrow the interval."

    @property
    def word(self) -> str:
        """The verdict in one lower-case word."""
        return self.name.lower()


class Edge(Enum):
    """Where in its grid the chosen peak LR lies. The values are the sentences users read."""

    INSIDE = "inside the grid"
    LOWEST = "the lowest peak LR of the grid: a lower one might do better"
    HIGHEST = "the highest peak LR of the grid: a higher one might do better"
    ONLY = "the only peak LR of the grid: others might do better"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its two-sided interval; bounds are NaN where one value, or NaN, gives none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class FailureRow:
    """A cell of the study that has no result: how often it was tried, and why the last try failed.

    ``reason`` may have several lines. ``given_up``: it will not be tried again.
    """

    cell: str
    arm: str
    point: str
    batch_size: int
    seed: int
    attempts: int
    reason: str
    given_up: bool


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One point of a grid at one batch size, as the choice sees it: no test accuracy, on purpose.

    ``ineligible`` says why the point could not be chosen, "" where it could.
    """

    point: str
    peak_lr: float
    warmup_fraction: float
    seeds: tuple[int, ...]
    validation: Interval
    device_seconds: float
    ineligible: str


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How one grid arm was tuned at one batch size. ``points`` ascend in peak LR."""

    arm: str
    batch_size: int
    points: tuple[GridPoint, ...]
    chosen: GridPoint | None
    edge: Edge


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm at one batch size. Of a grid arm, the chosen point's runs are the reported ones.

    ``seconds_reported`` and ``seconds_all`` are device-seconds summed over the reported runs and over
    every run of the arm, tuning included; the ``..._per_seed`` fields are per result (module docstring).
    ``tuning_seconds_per_seed`` is the part of ``seconds_per_seed`` that went into the choice of a learning
    rate: the other runs of a grid, and what the runs themselves say of it; ``tuning`` names both.
    """

    arm: str
    batch_size: int
    point: str
    seeds: tuple[int, ...]
    validation: Interval
    test: Interval
    peak_lrs: tuple[float, ...]
    switch_steps: tuple[int, ...]
    runs_all: int
    runs_per_seed: int
    seconds_reported: float
    seconds_all: float
    seconds_reported_per_seed: float
    seconds_per_seed: float
    tuning_seconds_per_seed: float
    tuning: str

    @property
    def n_seeds(self) -> int:
        """How many seeds the means are over."""
        return len(self.seeds)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Paired differences and what they say. ``interval`` decides: the hull of ``student`` and ``bootstrap``
    (with fewer than three differences, where nothing is decided, the former).
    """

    differences: tuple[float, ...]
    interval: Interval
    student: Interval
    bootstrap: Interval
    margin: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class RunsToBeat:
    """How many runs of a grid of ``points``, drawn at random, are expected to beat one run of another arm.

    ``points + 1`` stands for "more than all of them". ``low`` and ``high`` bound it with 95% confidence, None
    below three seeds.
    """

    runs: int
    low: int | None
    high: int | None
    points: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """What ``runs`` runs drawn at random from a grid are expected to cost, and the best of them to reach."""

    runs: int
    device_seconds: float
    validation_accuracy: float


class _Judged:
    """The parts of ``paired`` that everybody asks for."""

    paired: Paired

    @property
    def difference(self) -> Interval:
        """The mean difference and the interval that decides."""
        return self.paired.interval

    @property
    def margin(self) -> float:
        """The difference that counts as none."""
        return self.paired.margin

    @property
    def verdict(self) -> Verdict:
        """What the differences say."""
        return self.paired.verdict


@dataclass(frozen=True, kw_only=True)
class Comparison(_Judged):
    """Candidate minus baseline in test accuracy at one batch size, paired over the common seeds.

    ``runs_to_beat``: what the baseline's grid needs to beat one run of the candidate in validation accuracy;
    None where the baseline is no grid, the candidate is one, or no common seed has finished the grid.
    """

    batch_size: int
    candidate: ArmSummary
    baseline: ArmSummary
    seeds: tuple[int, ...]
    candidate_test: float
    baseline_test: float
    paired: Paired
    runs_to_beat: RunsToBeat | None


@dataclass(frozen=True, kw_only=True)
class Overall(_Judged):
    """Candidate minus baseline over all batch sizes: each seed's mean difference, paired as ever."""

    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    paired: Paired
