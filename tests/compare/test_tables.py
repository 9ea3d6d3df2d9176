"""Regret, peak learning rates side by side, and strips: what the page shows beside the findings."""

import math
from dataclasses import replace

import pytest
from synthetic import changed, run, study

from autolr_ray.compare.statistics import compare, reported_runs, summarise, tune
from autolr_ray.compare.tables import key_of, peak_rows, regrets, reported_keys, strip, strip_reach
from autolr_ray.compare.values import Interval

SIZES = (128, 512)
ARMS = ("auto_warmup", "linear_warmup", "adamw_fixed")


def accurate(arm, size, seed, test, **changes):
    return run(arm, "", size, seed, 0.01, 0.1, test_accuracy=test, **changes)


def summaries(records, arms):
    found = [summarise(records, arm, size) for size in SIZES for arm in arms]
    return [s for s in found if s is not None]


def test_regret_is_the_distance_to_the_best_mean():
    table = {("a", 128): (0.8, 0.9), ("a", 512): (0.6, 0.6), ("b", 128): (0.7, 0.8), ("b", 512): (0.7, 0.8)}
    records = [accurate(a, b, seed, v) for (a, b), both in table.items() for seed, v in enumerate(both)]
    best, other = regrets(summaries(records, "ab"), SIZES)
    assert (best.arm, other.arm) == ("b", "a")  # the smaller mean regret first
    assert best.by_batch == pytest.approx((-0.1, 0.0))
    assert (best.mean, best.worst) == pytest.approx((-0.05, -0.1))
    assert other.by_batch == pytest.approx((0.0, -0.15))
    assert (other.mean, other.worst) == pytest.approx((-0.075, -0.15))


def test_an_arm_with_a_gap_has_no_mean_regret_and_sets_no_best():
    records = [accurate("a", 128, 0, 0.9), accurate("b", 128, 0, 0.8), accurate("b", 512, 0, 0.7)]
    records.append(accurate("c", 128, 0, math.nan))
    found = {r.arm: r for r in regrets(summaries(records, "abc"), SIZES)}
    assert list(found) == ["b", "a", "c"]  # without a mean: last
    assert found["b"].by_batch == pytest.approx((-0.1, 0.0))
    assert found["a"].by_batch[0] == 0.0
    assert all(map(math.isnan, (found["a"].by_batch[1], found["a"].mean, found["a"].worst)))
    assert all(map(math.isnan, (*found["c"].by_batch, found["c"].mean)))
    assert regrets([], SIZES) == []


def test_reported_keys_are_the_reported_runs():
    records = study(SIZES, seeds=(0, 1), peaks=(0.01, 0.03))
    wanted = {key_of(r) for arm in ARMS for size in SIZES for r in reported_runs(records, arm, size)}
    assert reported_keys(summaries(records, ARMS)) == wanted
    twin = changed(records[0], arm="twin", cell=records[0].cell)  # one cell that stands for two arms
    assert key_of(twin) not in reported_keys(summaries([*records, twin], ARMS))


def test_peak_rows_set_found_rates_beside_chosen_ones():
    records = study(SIZES, seeds=(0, 1), peaks=(0.01, 0.03, 0.1), warmups=(0.05,))
    ranged = [run("ranged", "", 128, s, 0.04, 0.1, tuning="range test of 100 steps") for s in (0, 1)]
    records += ranged
    tunings = [tune(records, "linear_warmup", size) for size in SIZES]
    rows = peak_rows(records, summaries(records, (*ARMS, "ranged")), tunings, "linear_warmup")
    found = {(r.arm, r.batch_size): r for r in rows}
    chosen = tunings[0].chosen
    assert chosen is not None
    base = found["linear_warmup", 128]
    assert base.how == f"chosen among 3 points: {chosen.point}"
    assert base.ratio == pytest.approx(1)
    auto = found["auto_warmup", 128]
    own = [r.peak_lr for r in reported_runs(records, "auto_warmup", 128)]
    assert auto.peak_lrs == tuple(own)
    assert auto.how == "found during the run"
    assert auto.ratio == pytest.approx(math.sqrt(own[0] * own[1]) / chosen.peak_lr)
    assert found["adamw_fixed", 512].how == "given"
    assert found["ranged", 128].how == "range test of 100 steps"
    assert all(math.isnan(r.ratio) for r in peak_rows(records, summaries(records, ARMS), tunings, None))


def comparison(interval, margin=0.01):
    records = study((128,), seeds=(0, 1, 2), peaks=(0.01, 0.03))
    found = compare(records, "auto_warmup", "linear_warmup", 128, margin=margin)
    return replace(found, paired=replace(found.paired, interval=interval))


def test_a_strip_keeps_proportions_and_cuts_what_leaves_it():
    narrow = comparison(Interval(mean=0.005, low=-0.01, high=0.02))
    reach = strip_reach([narrow])
    assert reach == pytest.approx(1.08 * 0.02)
    places = strip(narrow, reach)
    assert (places.mean - 50) / (places.high - 50) == pytest.approx(0.25)
    assert 50 - places.low == pytest.approx((places.high - 50) / 2)
    assert (places.band_low + places.band_high) / 2 == pytest.approx(50)
    assert not places.cut_low
    assert not places.cut_high

    wide = comparison(Interval(mean=0.0, low=-0.5, high=0.03))
    reach = strip_reach([narrow, wide])
    assert reach < 0.1  # one wide interval does not press the others together
    places = strip(wide, reach)
    assert (places.low, places.cut_low, places.cut_high) == (0, True, False)


def test_a_strip_without_an_interval_has_a_mean_alone():
    lone = comparison(Interval(mean=-0.01, low=math.nan, high=math.nan))
    places = strip(lone, strip_reach([lone]))
    assert 0 < places.mean < 50
    assert math.isnan(places.low)
    assert math.isnan(places.high)
    assert not places.cut_low
    nothing = comparison(Interval(mean=math.nan, low=math.nan, high=math.nan), margin=0.0)
    assert strip_reach([nothing]) > 0
    assert math.isnan(strip(nothing, strip_reach([nothing])).mean)
