"""What tuning costs: the expected best of k runs, and how many runs beat one of another arm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolr_ray.compare.cost import best_of_each, expected_best, runs_to_beat
from autolr_ray.compare.values import RunsToBeat
from autolr_ray.compare.wording import runs_needed


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
def test_expected_best_is_the_mean_over_all_choices(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    every = [max(choice) for choice in itertools.combinations(values, k)]
    assert expected_best(values, k) == pytest.approx(sum(every) / len(every), abs=1e-12)


def test_expected_best_counts_a_lost_run_as_nothing_won() -> None:
    assert expected_best([math.nan, 0.5], 1) == expected_best([0.0, 0.5], 1) == 0.25
    assert expected_best([math.nan, 0.5], 2) == 0.5
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k = {k}"):
            expected_best([0.1, 0.2], k)


def needed(grid: list[list[float]], candidate: list[float]) -> RunsToBeat:
    found = runs_to_beat(np.array(grid), np.array(candidate))
    assert found is not None
    return found


def test_the_least_number_of_runs_that_beats_the_candidate() -> None:
    grid = [[0.1, 0.2, 0.3]]
    # Expected best: 0.2, 0.2667, 0.3.
    assert [needed(grid, [v]).runs for v in (0.19, 0.25, 0.29)] == [1, 2, 3]
    assert needed(grid, [0.3]).runs == 4  # equal is not beaten
    assert needed(grid, [math.nan]).runs == 1
    assert needed([[math.nan, 0.2]], [0.15]).runs == 2
    found = needed(grid, [0.31])
    assert (found.runs, found.points, found.low, found.high) == (4, 3, None, None)


def test_each_seed_is_tuned_by_itself() -> None:
    # Two points that take turns at being best: no mean over seeds is 0.9, the best of each seed is.
    assert needed([[0.9, 0.1], [0.1, 0.9]], [0.6, 0.6]).runs == 2


def test_no_seed_or_no_point_says_nothing() -> None:
    assert runs_to_beat(np.empty((0, 4)), np.empty(0)) is None
    assert runs_to_beat(np.empty((3, 0)), np.empty(3)) is None


def test_the_interval_is_over_seeds_drawn_jointly_for_both_arms() -> None:
    base = np.array([[0.1, 0.2, 0.3]])
    shared = np.array([[0.0], [0.3], [0.6]])
    # What moves both arms alike moves nothing.
    found = needed((base + shared).tolist(), (0.25 + shared[:, 0]).tolist())
    assert (found.runs, found.low, found.high, found.seeds) == (2, 2, 2, 3)
    apart = needed((base + shared).tolist(), [0.25, 0.25, 0.25])
    assert (apart.runs, apart.low, apart.high) == (1, 1, 2)
    # Three seeds, one of which alone says "even all do not": 1 of 27 resamples is that one three times.
    mixed = needed([[0.1, 0.2, 0.3]] * 3, [0.25, 0.25, 0.5])
    assert mixed.high == 4
    assert mixed.low == 2


def test_the_interval_covers_the_true_number() -> None:
    """Ten seeds, five points with a known answer of three runs: at least 90% of the intervals hold it."""
    rng = np.random.default_rng(5)
    level = np.array([0.60, 0.65, 0.70, 0.75, 0.80])
    target = (expected_best(level.tolist(), 2) + expected_best(level.tolist(), 3)) / 2
    held = 0
    for _ in range(100):
        grid = level + rng.normal(0.0, 0.003, (10, 5))
        candidate = target + rng.normal(0.0, 0.02, 10)
        found = runs_to_beat(grid, candidate)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 3 <= found.high
    assert held >= 90


def test_best_of_each_ascends_from_the_mean_to_the_best() -> None:
    grid = np.random.default_rng(0).random((4, 6))
    found = best_of_each(grid)
    assert found.shape == grid.shape
    assert found[:, 0] == pytest.approx(grid.mean(axis=1))
    assert found[:, -1] == pytest.approx(grid.max(axis=1))
    assert (np.diff(found, axis=1) > 0).all()


def test_in_words() -> None:
    whole = RunsToBeat(runs=1, low=None, high=None, points=10, seeds=2)
    assert runs_needed(whole) == "1 run drawn at random"
    open_end = RunsToBeat(runs=3, low=2, high=11, points=10, seeds=3)
    assert runs_needed(open_end) == "3 runs drawn at random (95 % over seeds: 2 to more than 10)"
    never = RunsToBeat(runs=11, low=11, high=11, points=10, seeds=3)
    assert runs_needed(never).startswith("more than 10 runs drawn at random")
