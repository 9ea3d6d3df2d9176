"""The protocol: the choice by validation, paired intervals, verdicts and costs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic import changed, run, study

from autolr_ray.compare.statistics import (
    Edge,
    Interval,
    Verdict,
    arms_of,
    compare,
    decide,
    default_baseline,
    default_candidate,
    expected_best,
    is_grid,
    reported_runs,
    runs_to_match,
    summarise,
    t_interval,
    tune,
    without_repeats,
)
from autolr_ray.train.record import RunRecord


def grid(points: dict[float, list[float]], **fields: object) -> list[RunRecord]:
    """A grid arm at batch size 64: peak LR -> validation accuracy of each seed."""
    return [
        changed(
            run("grid", f"lr={lr:g}", 64, seed, lr, 0.1),
            **{"validation_accuracy": v, "test_accuracy": v - 0.01, "device_seconds": 10.0, **fields},
        )
        for lr, values in points.items()
        for seed, v in enumerate(values)
    ]


def auto(test: list[float], **fields: object) -> list[RunRecord]:
    return [
        changed(run("auto", "", 64, seed, 0.1, 0.1), test_accuracy=v, **fields) for seed, v in enumerate(test)
    ]


def test_the_best_mean_validation_accuracy_wins() -> None:
    tuning = tune(grid({0.1: [0.80, 0.90], 0.01: [0.84, 0.84], 1.0: [0.95, 0.70]}), "grid", 64)
    assert tuning.chosen is not None
    assert tuning.chosen.point == "lr=0.1"
    assert [p.peak_lr for p in tuning.points] == [0.01, 0.1, 1.0]
    assert tuning.edge is Edge.INSIDE


def test_ties_go_to_the_lower_peak_lr() -> None:
    for order in itertools.permutations([0.1, 0.01, 1.0]):
        tuning = tune(grid({lr: [0.8, 0.7] if lr != 0.01 else [0.1, 0.2] for lr in order}), "grid", 64)
        assert tuning.chosen is not None
        assert tuning.chosen.peak_lr == 0.1


@pytest.mark.parametrize(("best", "edge"), [(0.01, Edge.LOWEST), (0.1, Edge.INSIDE), (1.0, Edge.HIGHEST)])
def test_the_edge_of_the_grid_is_flagged(best: float, edge: Edge) -> None:
    assert tune(grid({lr: [0.9 if lr == best else 0.5] for lr in (0.01, 0.1, 1.0)}), "grid", 64).edge is edge
    assert tune(grid({best: [0.9]}), "grid", 64).edge is Edge.ONLY


def test_an_unfinished_point_is_not_eligible_but_still_bounds_the_grid() -> None:
    tuning = tune(grid({0.01: [0.5, 0.5, 0.5], 0.1: [0.6, 0.6, 0.6], 1.0: [0.99, 0.99]}), "grid", 64)
    assert tuning.chosen is not None
    assert tuning.chosen.peak_lr == 0.1
    assert tuning.edge is Edge.INSIDE
    assert [p.ineligible for p in tuning.points] == ["", "", "2 of 3 seeds"]


def test_a_point_that_is_not_a_number_is_never_chosen() -> None:
    tuning = tune(grid({0.01: [0.5, 0.5], 0.1: [0.99, math.nan]}), "grid", 64)
    assert tuning.chosen is not None
    assert tuning.chosen.peak_lr == 0.01
    nothing = grid({0.1: [math.nan]})
    assert tune(nothing, "grid", 64).chosen is None
    assert reported_runs(nothing, "grid", 64) == []
    assert summarise(nothing, "grid", 64) is None
    assert tune([], "grid", 64).points == ()


def test_test_accuracy_of_the_losers_changes_nothing() -> None:
    records = study(batch_sizes=(128, 512), seeds=(0, 1, 2))
    poisoned = [
        r
        if r in reported_runs(records, r.arm, r.batch_size)
        else r.model_copy(update={"test_accuracy": value})
        for r, value in zip(records, itertools.cycle([1.0, 0.0, math.nan]), strict=False)
    ]
    changed_runs = sum(a is not b for a, b in zip(records, poisoned, strict=True))
    assert changed_runs == 2 * 3 * 9
    for size in (128, 512):
        assert tune(records, "linear_warmup", size) == tune(poisoned, "linear_warmup", size)
        for arm in arms_of(records):
            assert summarise(records, arm, size) == summarise(poisoned, arm, size)
        pair = [compare(r, "auto_warmup", "linear_warmup", size, margin=0.005) for r in (records, poisoned)]
        assert repr(pair[0]) == repr(pair[1])


def test_t_interval_in_closed_form() -> None:
    # n = 2: t(0.975, 1) = tan(0.475 pi), s / sqrt(2) = |a - b| / 2
    found = t_interval([1.0, 3.0])
    assert found.mean == 2.0
    assert found.high - 2.0 == pytest.approx(math.tan(0.475 * math.pi))
    assert 2.0 - found.low == pytest.approx(math.tan(0.475 * math.pi))
    assert t_interval([0.5, 0.5, 0.5]) == Interval(mean=0.5, low=0.5, high=0.5)


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf, 1.0, 2.0]])
def test_no_number_gives_no_interval(values: list[float]) -> None:
    found = t_interval(values)
    assert all(map(math.isnan, (found.mean, found.low, found.high)))


def test_one_seed_gives_a_mean_without_bounds() -> None:
    found = t_interval([0.7])
    assert found.mean == 0.7
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_paired_interval_is_scipys(values: list[float]) -> None:
    found = t_interval(values)
    if np.std(values) > 1e-9:
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.low <= found.mean <= found.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.004, Verdict.EQUIVALENT),
        (-0.005, 0.005, Verdict.EQUIVALENT),
        (0.001, 0.006, Verdict.BETTER),
        (-0.006, -0.001, Verdict.WORSE),
        (-0.006, 0.001, Verdict.UNDECIDED),
        (0.0, 0.006, Verdict.UNDECIDED),
        (math.nan, math.nan, Verdict.UNDECIDED),
    ],
)
def test_verdicts(low: float, high: float, verdict: Verdict) -> None:
    assert decide(Interval(mean=(low + high) / 2, low=low, high=high), 0.005) is verdict


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_swapping_the_arms_swaps_the_verdict(mean: float, half: float, margin: float) -> None:
    mirror = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    ours = decide(Interval(mean=mean, low=mean - half, high=mean + half), margin)
    theirs = decide(Interval(mean=-mean, low=-mean - half, high=-mean + half), margin)
    assert mirror.get(ours, ours) is theirs


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_margin_must_be_a_difference(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        decide(Interval(mean=0, low=0, high=0), margin)
    with pytest.raises(ValueError, match="margin"):
        compare([], "a", "b", 1, margin=margin)


def test_differences_are_paired_over_common_seeds() -> None:
    # Seeds differ a lot, the arms by a constant: unpaired this would be undecided.
    records = auto([0.60, 0.71, 0.79, 0.9]) + grid({0.1: [0.61, 0.71, 0.81]}, test_accuracy=math.nan)
    records = [
        r if r.arm == "auto" else changed(r, test_accuracy=(0.58, 0.69, 0.77)[r.seed]) for r in records
    ]
    found = compare(records, "auto", "grid", 64, margin=0.005)
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.difference.mean == pytest.approx(0.02)
    assert found.candidate_test == pytest.approx(0.70)
    assert found.verdict is Verdict.BETTER
    assert math.isnan(found.bootstrap_low)


def test_bootstrap_from_five_seeds_on() -> None:
    noise = [0.01, -0.02, 0.0, 0.03, 0.01]
    records = grid({0.1: [0.7] * 5}) + auto([0.69 + d for d in noise])
    found = compare(records, "auto", "grid", 64, margin=0.005)
    assert found is not None
    assert min(noise) <= found.bootstrap_low < found.difference.mean < found.bootstrap_high <= max(noise)
    same = compare(grid({0.1: [0.7] * 5}) + auto([0.69] * 5), "auto", "grid", 64, margin=0.005)
    assert same is not None
    assert same.bootstrap_low == same.bootstrap_high == pytest.approx(0.0, abs=1e-12)
    assert same.verdict is Verdict.EQUIVALENT


def test_no_common_seed_no_comparison() -> None:
    shifted = [changed(r, seed=r.seed + 7) for r in auto([0.5, 0.5])]
    assert compare(shifted + grid({0.1: [0.5, 0.5]}), "auto", "grid", 64, margin=0.005) is None
    assert compare(shifted, "auto", "grid", 64, margin=0.005) is None


def test_two_seeds_that_agree_are_no_verdict() -> None:
    """An interval of no width from two equal differences: chance, on a finite test set."""
    for seeds, verdict in ((2, Verdict.UNDECIDED), (3, Verdict.EQUIVALENT)):
        found = compare(auto([0.689] * seeds) + grid({0.1: [0.7] * seeds}), "auto", "grid", 64, margin=0.005)
        assert found is not None
        assert found.difference.high - found.difference.low == pytest.approx(0.0, abs=1e-12)
        assert found.verdict is verdict


def test_one_seed_or_nan_is_undecided() -> None:
    one = compare(auto([0.9]) + grid({0.1: [0.1]}), "auto", "grid", 64, margin=0.005)
    assert one is not None
    assert one.verdict is Verdict.UNDECIDED
    lost = compare(auto([0.9, math.nan]) + grid({0.1: [0.1, 0.1]}), "auto", "grid", 64, margin=0.005)
    assert lost is not None
    assert lost.verdict is Verdict.UNDECIDED
    assert math.isnan(lost.difference.mean)


def test_costs_count_the_tuning() -> None:
    records = grid({0.1: [0.7, 0.7], 0.2: [0.6, 0.6], 0.3: [0.5]})
    found = summarise(records, "grid", 64)
    assert found is not None
    assert (found.runs_all, found.runs_per_seed, found.n_seeds) == (5, 3, 2)
    assert (found.seconds_reported, found.seconds_all) == (20.0, 50.0)
    assert (found.seconds_reported_per_seed, found.seconds_per_seed) == (10.0, 30.0)
    single = summarise(auto([0.5, 0.5], device_seconds=7.0), "auto", 64)
    assert single is not None
    assert (single.runs_per_seed, single.seconds_per_seed, single.seconds_all) == (1, 7.0, 14.0)


def test_default_arms() -> None:
    records = study(batch_sizes=(128,), seeds=(0,))
    assert default_baseline(records) == "linear_warmup"
    assert default_candidate(records) == "auto_warmup"
    assert default_candidate([r for r in records if r.arm != "auto_warmup"]) == "adamw_fixed"
    assert (default_baseline([]), default_candidate([])) == (None, None)
    assert [a for a in arms_of(records) if is_grid(records, a)] == ["linear_warmup"]


def test_the_last_of_repeated_runs_counts() -> None:
    first = run("auto", "", 64, 0, 0.1, 0.1, finished_at="2026-01-01T00:00:00")
    again = changed(first, finished_at="2026-01-02T00:00:00")
    assert without_repeats([again, first]) == [again] == without_repeats([first, again])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
def test_expected_best_is_the_mean_over_all_choices(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    every = [max(choice) for choice in itertools.combinations(values, k)]
    assert expected_best(values, k) == pytest.approx(sum(every) / len(every), abs=1e-12)


def test_runs_to_match() -> None:
    assert runs_to_match([0.1, 0.2, 0.3], 0.19) == 1
    assert runs_to_match([0.1, 0.2, 0.3], 0.25) == 2
    assert runs_to_match([0.1, 0.2, 0.3], 0.3) == 3
    assert runs_to_match([0.1, 0.2, 0.3], 0.31) is None
    assert runs_to_match([math.nan, 0.2], 0.1) == 1
    assert runs_to_match([], 0.1) is None
    with pytest.raises(ValueError, match="k = 0"):
        expected_best([1.0], 0)
