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

from autolr_ray.compare.intervals import (
    bootstrap_interval,
    decide,
    hull,
    judge,
    stratified_interval,
    t_interval,
)
from autolr_ray.compare.statistics import (
    arms_of,
    best_of_runs,
    compare,
    compare_overall,
    default_baseline,
    default_candidate,
    is_grid,
    reported_runs,
    summarise,
    tune,
    without_repeats,
)
from autolr_ray.compare.values import Comparison, Edge, Interval, Verdict
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
    assert found.paired.differences == pytest.approx((0.02, 0.02, 0.02))


@given(st.lists(st.integers(-400, 400), min_size=3, max_size=8))
def test_both_intervals_must_agree(counts: list[int]) -> None:
    differences = [c / 20000 for c in counts]
    found = judge(differences, 0.005)
    assert found.student == t_interval(differences)
    for one in (found.student, found.bootstrap):
        assert found.interval.low <= one.low
        assert one.high <= found.interval.high
        if found.verdict is not Verdict.UNDECIDED:  # an interval above zero may lie within the margin as well
            assert decide(one, 0.005) in (found.verdict, Verdict.EQUIVALENT)
    assert {found.interval.low, found.interval.high} <= {
        *(found.student.low, found.student.high, found.bootstrap.low, found.bootstrap.high)
    }
    # No mean of resamples leaves the values; up to four of them Student's interval contains them all.
    assert min(differences) - 1e-15 <= found.bootstrap.low <= found.bootstrap.high <= max(differences) + 1e-15
    if len(differences) <= 4:
        assert found.interval.low == pytest.approx(found.student.low, abs=1e-15)
        assert found.interval.high == pytest.approx(found.student.high, abs=1e-15)


def test_stratified_interval_of_one_stratum_is_students() -> None:
    values = [0.1, 0.4, -0.3, 0.2]
    one, other = stratified_interval([values]), t_interval(values)
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))


def test_stratified_interval_of_two_is_welchs() -> None:
    left, right = [0.1, 0.4, -0.3, 0.2], [1.0, 5.0, 2.5]
    found = stratified_interval([left, [-value for value in right]])
    welch = stats.ttest_ind(left, right, equal_var=False).confidence_interval(0.95)
    assert (2 * found.low, 2 * found.high) == pytest.approx((welch.low, welch.high))


@pytest.mark.parametrize("strata", [[], [[]], [[0.1, 0.2], [math.nan, 0.1]]])
def test_stratified_interval_of_nothing_is_nothing(strata: list[list[float]]) -> None:
    assert math.isnan(stratified_interval(strata).mean)


def test_stratified_interval_needs_a_spread_of_each() -> None:
    found = stratified_interval([[0.1, 0.3], [0.6]])
    assert found.mean == pytest.approx(0.4)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    still = stratified_interval([[0.2, 0.2], [0.4, 0.4]])
    assert still.low == still.high == still.mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("sizes", "spreads"),
    [
        ((3, 3, 3, 3), (1, 1, 1, 1)),
        ((3, 3, 3, 3), (0.2, 0.3, 0.5, 5)),
        ((3, 3, 9), (1, 0.2, 1)),
        ((3, 3), (1, 5)),
    ],
)
def test_stratified_interval_holds_what_it_says(sizes: tuple[int, ...], spreads: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(4000):
        strata = [rng.normal(scale=sd, size=n).tolist() for n, sd in zip(sizes, spreads, strict=True)]
        found = stratified_interval(strata)
        held += found.low <= 0.0 <= found.high
    assert 0.92 < held / 4000 < 0.98


def test_a_long_tail_widens_the_interval_by_the_bootstrap() -> None:
    differences = [0.004, 0.005, 0.005, 0.006, 0.004, 0.005, 0.006, 0.005, 0.004, -0.012]
    found = judge(differences, 0.0005)
    assert found.bootstrap.low < found.student.low
    assert found.interval == Interval(
        mean=found.student.mean, low=found.bootstrap.low, high=found.student.high
    )


def test_the_bootstrap_is_scipys_and_the_same_every_time() -> None:
    values = [0.01, -0.02, 0.0, 0.03, 0.01]
    expected = stats.bootstrap((np.array(values),), np.mean, rng=np.random.default_rng(0)).confidence_interval
    found = bootstrap_interval(values)
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found == bootstrap_interval(values)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_equal_differences_are_an_interval_of_no_width(seeds: int) -> None:
    for value, verdict in ((0.0, Verdict.EQUIVALENT), (0.02, Verdict.BETTER), (-0.02, Verdict.WORSE)):
        found = judge([value] * seeds, 0.005)
        assert (found.interval.low, found.interval.high) == (value, value)
        assert found.verdict is verdict


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("seeds", [1, 2, 3, 10])
def test_a_difference_that_is_no_number_leaves_it_undecided(seeds: int, odd: float) -> None:
    found = judge([0.02] * (seeds - 1) + [odd], 0.005)
    assert found.verdict is Verdict.UNDECIDED
    for one in (found.interval, found.student, found.bootstrap):
        assert all(map(math.isnan, (one.mean, one.low, one.high)))


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_fewer_than_three_differences_decide_nothing(seeds: int) -> None:
    found = judge([0.02] * seeds, 0.005)
    assert found.verdict is Verdict.UNDECIDED
    assert math.isnan(found.bootstrap.low)
    assert math.isnan(found.interval.low) is (seeds < 2)


def test_a_hull_with_a_missing_bound_has_none() -> None:
    whole, half = Interval(mean=1.0, low=0.0, high=2.0), Interval(mean=1.0, low=-1.0, high=math.nan)
    assert math.isnan(hull(whole, half).low)
    assert math.isnan(hull(half, whole).high)


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


def several(differences: dict[int, list[float]], seeds: dict[int, list[int]]) -> list[Comparison]:
    """Comparisons at several batch sizes from their differences."""
    records = [
        changed(run(arm, "", size, seed, 0.1, 0.1), test_accuracy=0.7 + (d if arm == "ours" else 0.0))
        for size, values in differences.items()
        for seed, d in zip(seeds[size], values, strict=True)
        for arm in ("ours", "theirs")
    ]
    found = [compare(records, "ours", "theirs", size, margin=0.005) for size in differences]
    return [c for c in found if c is not None]


def test_overall_is_the_mean_difference_of_each_seed() -> None:
    found = compare_overall(
        several(
            {64: [0.01, 0.02, 0.03], 512: [0.03, 0.02, 0.01], 4096: [0.01, 0.01, 0.01]},
            {64: [0, 1, 2], 512: [0, 1, 2], 4096: [0, 1, 2]},
        )
    )
    assert found is not None
    assert found.batch_sizes == (64, 512, 4096)
    # Two of the sizes vary, their mean does not: seeds are paired over sizes as well.
    assert found.paired.differences == pytest.approx([0.05 / 3] * 3)
    assert found.verdict is Verdict.BETTER
    assert found.paired == judge(found.paired.differences, 0.005)


def test_overall_counts_only_seeds_that_every_batch_size_has() -> None:
    found = compare_overall(
        several({64: [0.01, 0.02, 0.03, 0.9], 512: [0.01, 0.02, 0.03]}, {64: [0, 1, 2, 3], 512: [1, 2, 3]})
    )
    assert found is not None
    assert found.seeds == (1, 2, 3)
    assert found.paired.differences == pytest.approx((0.015, 0.025, 0.465))
    apart = several({64: [0.01, 0.02], 512: [0.01, 0.02]}, {64: [0, 1], 512: [2, 3]})
    assert compare_overall(apart) is None
    assert compare_overall(apart[:1]) is None
    assert compare_overall([]) is None


def test_tuning_inside_a_run_is_part_of_its_cost() -> None:
    probed = auto([0.5, 0.5], device_seconds=12.0, tuning_seconds=3.0, tuning="range test")
    found = summarise(probed, "auto", 64)
    assert found is not None
    assert (found.seconds_per_seed, found.tuning_seconds_per_seed) == (12.0, 3.0)
    assert found.tuning == "range test"
    plain = summarise(auto([0.5, 0.5], device_seconds=7.0), "auto", 64)
    assert plain is not None
    assert (plain.tuning_seconds_per_seed, plain.tuning) == (0.0, "")
    both = summarise(
        grid({0.1: [0.7, 0.7], 0.2: [0.6, 0.6], 0.3: [0.5, 0.5]}, tuning_seconds=1.0, tuning="probe"),
        "grid",
        64,
    )
    assert both is not None
    # Two other runs of 10 s, and one second of the run itself.
    assert (both.seconds_per_seed, both.tuning_seconds_per_seed) == (30.0, 21.0)
    assert both.tuning == "2 other runs of the grid, probe"


def test_a_run_that_stands_for_two_arms_counts_for_both() -> None:
    records = grid({0.1: [0.7, 0.8, 0.9], 0.2: [0.5, 0.6, 0.6]})
    shared = [r.model_copy(update={"arm": "fixed", "point": ""}) for r in records if r.point == "lr=0.1"]
    assert {r.cell for r in shared} < {r.cell for r in records}
    both = [*records, *shared]
    assert len(without_repeats(both)) == len(both)
    found = compare(both, "fixed", "grid", 64, margin=0.005)
    assert found is not None
    assert found.paired.differences == (0.0, 0.0, 0.0)
    assert found.verdict is Verdict.EQUIVALENT
    assert (found.candidate.seconds_per_seed, found.baseline.seconds_per_seed) == (10.0, 20.0)


def test_best_of_runs_goes_from_one_run_to_the_whole_grid() -> None:
    records = grid({0.1: [0.7, 0.8], 0.2: [0.9, 0.6], 0.3: [0.5, 0.4]})
    records = [changed(r, device_seconds=10.0 * (1 + r.seed)) for r in records]
    curve = best_of_runs(records, "grid", 64)
    assert [c.runs for c in curve] == [1, 2, 3]
    assert [c.device_seconds for c in curve] == pytest.approx([15.0, 30.0, 45.0])
    # Of each seed by itself: means 0.7 and 0.6; best of all three 0.9 and 0.8.
    assert curve[0].validation_accuracy == pytest.approx(0.65)
    assert curve[2].validation_accuracy == pytest.approx(0.85)
    # A seed that lacks a point is no pass over the grid.
    short = best_of_runs([r for r in records if (r.seed, r.peak_lr) != (1, 0.3)], "grid", 64)
    assert [c.validation_accuracy for c in short] == pytest.approx([0.7, 2.5 / 3, 0.9])
    assert best_of_runs([], "grid", 64) == []


def test_the_comparison_says_how_many_grid_runs_beat_the_candidate() -> None:
    records = grid({0.1: [0.70, 0.72, 0.71], 0.2: [0.80, 0.81, 0.82], 0.3: [0.60, 0.61, 0.62]})
    ours = [changed(r, validation_accuracy=0.75) for r in auto([0.8, 0.8, 0.8, 0.8])]
    found = compare([*records, *ours], "auto", "grid", 64, margin=0.005)
    assert found is not None
    needed = found.runs_to_beat
    assert needed is not None
    # One run: 0.71 on average; two: (0.81 + 0.81 + 0.71) / 3.
    assert (needed.runs, needed.low, needed.high, needed.points, needed.seeds) == (2, 2, 2, 3, 3)
    swapped = compare([*records, *ours], "grid", "auto", 64, margin=0.005)
    assert swapped is not None
    assert swapped.runs_to_beat is None
