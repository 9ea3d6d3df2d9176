"""A loss that falls at the end of the warmup as it has all along asks for more than the warmup's peak."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_helpers import Run, assert_same, runs_of_older_state, saved_and_loaded, whole_run_that_resumes

from autolr_ray.schedule import Verdict
from autolr_ray.schedule.leg import Leg
from autolr_ray.schedule.pace import Pace
from autolr_ray.schedule.swing import Swing


def pace_of(losses, warmup=24, parts=1):
    pace = Pace(warmup)
    for part in np.array_split(np.array(losses, dtype=np.float64), parts):
        pace.observe(part)
    return pace


def line(first, last, steps=24):
    """Losses on a straight line that starts a half step below ``first``."""
    return first + (last - first) * (np.arange(steps) + 0.5) / steps


# --- the pace ------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 5, 24])
def test_a_straight_line_has_the_mean_pace(parts):
    assert pace_of(line(2.0, 1.0), parts=parts).share(2.0) == pytest.approx(1.0)


def test_a_loss_whose_fall_lies_behind_it_has_little_and_one_that_accelerates_more():
    fast = 1.0 + np.exp(-np.arange(24) / 4.0)
    assert 0.0 < pace_of(fast).share(2.0) < 0.1
    assert pace_of(2.0 - (np.arange(24) / 24) ** 2).share(2.0) > 1.5


def test_the_last_sixth_counts_beside_the_one_before():
    losses = [2.0] * 16 + [1.5] * 4 + [1.0] * 4  # a fall of .5 in 4 steps, and of 1 in 22 on the mean
    assert pace_of(losses).share(2.0) == pytest.approx((0.5 / 4) / (1.0 / 22))


@pytest.mark.parametrize(
    "losses",
    [
        line(2.0, 1.0, 11),  # three windows of four are needed
        line(2.0, 3.0),  # none below the level
        [*line(2.0, 1.0, 23), math.nan],
        [*line(2.0, 1.0, 23), math.inf],
        [*line(2.0, 1.0, 17), math.inf, *line(1.2, 1.0, 6)],
        [],
    ],
)
def test_where_nothing_can_be_said(losses):
    pace = pace_of(losses)
    assert pace.share(2.0) == 0.0
    assert not pace.holds(2.0, 0.0, rising=False)


@pytest.mark.parametrize("level", [math.nan, 0.5])
def test_without_a_level_above(level):
    assert not pace_of(line(2.0, 1.0)).holds(level, 0.0, rising=True)


def test_losses_of_long_ago_do_not_count():
    assert pace_of([math.inf, *line(2.0, 1.0, 24)]).holds(2.0, 0.0, rising=False)


@pytest.mark.parametrize(("warmup", "holds"), [(8, False), (9, True), (240, True)])
def test_one_loss_does_not_tell(warmup, holds):
    assert pace_of(line(2.0, 1.0, 240), warmup).holds(2.0, 0.0, rising=False) is holds


@pytest.mark.parametrize(("warmup", "few"), [(9, True), (20, True), (22, False), (240, False)])
def test_fewer_than_four_losses_are_few(warmup, few):
    assert Pace(warmup).few is few


@pytest.mark.parametrize(
    ("last", "begin", "go_on"), [(0.6, True, True), (0.4, False, True), (0.2, False, False)]
)
def test_less_is_asked_to_go_on_than_to_begin(last, begin, go_on):
    # From 2 in 20 steps, then `last` of the mean pace.
    before = 1.0
    slope = last / (22 - 4 * last)  # so that the fall in four steps is that share of the mean
    losses = [2.0] * 16 + [before] * 4 + [before - 4 * slope] * 4
    pace = pace_of(losses)
    assert pace.share(2.0) == pytest.approx(last)
    assert pace.holds(2.0, 0.0, rising=False) is begin
    assert pace.holds(2.0, 0.0, rising=True) is go_on


def test_less_than_ten_of_the_first_steps_is_no_fall():
    pace = pace_of(line(2.0, 1.0))
    fallen = 2.0 - line(2.0, 1.0)[-4:].mean()
    assert pace.holds(2.0, 0.0999 * fallen, rising=False)
    assert not pace.holds(2.0, 0.1001 * fallen, rising=True)


@given(
    st.lists(st.floats(0.0, 5.0), min_size=12, max_size=60),
    st.sampled_from([(64.0, 0.0), (1.0, -8.0), (0.5, 4.0)]),
)
def test_property_scale_and_shift_change_nothing(losses, change):
    scale, shift = change
    one, other = pace_of(losses), pace_of(scale * np.array(losses) + shift)
    assert one.share(4.0) == pytest.approx(other.share(scale * 4.0 + shift), rel=1e-6, abs=1e-6)


def test_its_state():
    pace = pace_of(line(2.0, 1.2, 20))
    again = Pace(24)
    again.load_state_dict(saved_and_loaded(pace.state_dict()))
    for one in (pace, again):
        one.observe(line(1.2, 1.0, 7))
    assert_same(pace.state_dict(), again.state_dict())
    assert pace.share(2.0) == again.share(2.0) > 0.0


# --- the leg -------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [1, 5, 24, 201])
@pytest.mark.parametrize("rises", [0, 1, 3])
@pytest.mark.parametrize(("rise", "part"), [(0.5, 4), (0.25, 8)])
def test_a_rise_adds_its_share_in_half_that_share_of_the_warmup(warmup, rises, rise, part):
    leg = Leg(10, warmup, 0.2, rises=rises, rise=rise)
    steps = max(2, round(warmup / part))
    assert leg.turn == 10 + warmup + rises * steps
    assert leg.peak_lr == pytest.approx(0.2 * (1 + rise) ** rises)
    for k in range(rises + 1):
        assert leg.lr(10 + warmup + k * steps) == pytest.approx(0.2 * (1 + rise) ** k)
    rates = np.array([leg.lr(step) for step in range(10, leg.turn + 1)])
    assert (np.diff(rates) > 0).all()
    for k in range(rises):  # straight lines
        line = rates[warmup + k * steps : warmup + (k + 1) * steps + 1]
        np.testing.assert_allclose(np.diff(line), line[0] * rise / steps, rtol=1e-9)


def test_a_rise_more_leaves_what_was_before():
    leg = Leg(10, 24, 0.2, skipped=3)
    assert [leg.lr(step) for step in range(10, leg.turn)] == [
        leg.risen().lr(step) for step in range(10, leg.turn)
    ]
    assert leg.risen().risen() == Leg(10, 24, 0.2, skipped=3, rises=2)


@pytest.mark.parametrize("known", range(3, 7))
def test_a_leg_comes_back_from_its_values_the_last_of_which_may_be_missing(known):
    leg = Leg(10, 24, 0.2, skipped=3, rises=2, rise=0.25)
    values = dataclasses.astuple(leg)
    fields = [field.name for field in dataclasses.fields(Leg)]
    again = Leg.of(torch.tensor(value) for value in values[:known])
    assert [type(value) for value in dataclasses.astuple(again)] == [type(value) for value in values]
    assert dataclasses.asdict(again) == pytest.approx(
        dataclasses.asdict(Leg(**dict(zip(fields[:known], values, strict=False))))
    )


# --- AutoWarmup ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("pace_alone")
def test_the_learning_rate_goes_on_rising_as_long_as_the_loss_falls():
    run = Run(total=200, straight=58).end()
    start = run.swept.step
    leg = run.schedule._legs[0]
    warmup = int(0.2 * (200 - start))
    quarter = round(warmup / 4)
    on = run.steps_of(Verdict.RISES_ON)
    assert on == [start + warmup + k * quarter for k in range(len(on))]
    assert len(on) == 3  # the line ends with the second
    first = 1.5 * run.swept.argmin_lr
    assert run.schedule.peak_lr == leg.peak_lr == pytest.approx(first * 1.5 ** len(on))
    assert run.schedule.switch_step == on[-1] + quarter
    assert run.steps_of(Verdict.REACHED) == [run.schedule.switch_step]
    turn = run.schedule.switch_step
    np.testing.assert_allclose(
        run.rates[turn:], run.schedule.peak_lr * (200 - np.arange(turn, 200)) / (200 - turn)
    )
    assert [run.schedule.lr_at(t) for t in range(200)] == run.rates
    assert run.schedule.get_last_lr() == [0.0]
    assert all(not r.verdict.ends_warmup for r in run.schedule.receipts if r.step < turn)


def test_while_it_rises_it_is_a_warmup():
    run = Run(total=200, straight=66)
    while not run.steps_of(Verdict.RISES_ON):
        run.step()
    assert run.schedule.phase == "warmup"
    assert run.schedule.peak_lr is None
    assert run.schedule.decision is None
    assert run.schedule.reason == Verdict.RISES_ON.value


@pytest.mark.parametrize(("name", "explodes"), [("adamw", 4.0), ("lamb", math.inf)])
def test_it_turns_while_losses_are_watched(name, explodes, monkeypatch):
    monkeypatch.setattr("autolr_ray.schedule.swept_warmup.LAYERWISE_HIGHEST", math.inf)
    monkeypatch.setattr(Swing, "is_much", lambda *_: False)
    run = Run(total=200, name=name, explodes=explodes, straight=150).end()
    assert len(run.steps_of(Verdict.RISES_ON)) > 2
    assert run.schedule.switch_step < 100
    assert run.schedule.switch_step in run.steps_of(Verdict.REACHED)


@pytest.mark.usefixtures("pace_alone")
def test_a_fall_that_lies_behind_it_turns_at_the_peak():
    assert not Run(total=200).end().steps_of(Verdict.RISES_ON)


@pytest.mark.parametrize(
    ("total", "settings", "rises"),
    [
        (100, {}, 1),  # three losses tell, and may be wrong
        (100, {"name": "sgd_momentum"}, 0),  # momentum has hardly built up in three steps
        (100, {"name": "sgd"}, 1),
        (100, {"name": "lamb", "explodes": math.inf}, 0),
        (200, {"name": "sgd_momentum"}, 4),
    ],
)
def test_few_losses_are_trusted_once_or_not_at_all(total, settings, rises):
    run = Run(total=total, straight=1.5 * total, **settings).end()
    assert len(run.steps_of(Verdict.RISES_ON)) == rises


def test_no_rise_above_max_lr():
    run = Run(total=200, straight=150, max_lr=0.05).end()
    assert run.steps_of(Verdict.RISES_ON)
    assert 0.05 / 1.5 < run.schedule.peak_lr <= 0.05


@pytest.mark.parametrize(("name", "explodes"), [("adamw", 4.0), ("lamb", math.inf)])
@pytest.mark.parametrize(("blown", "first_share"), [(2.2, 1.0), (30.0, 0.5)], ids=["some", "all"])
def test_where_all_that_was_gained_is_lost_it_goes_back_at_half_else_at_the_whole_learning_rate_once(
    name, explodes, blown, first_share
):
    run = Run(total=200, name=name, explodes=explodes, straight=150, blows=range(60, 200), blown=blown).end()
    first, *later = [r for r in run.schedule.receipts if r.verdict is Verdict.PASSED]
    assert run.steps_of(Verdict.RISES_ON)[0] < 60 < first.step
    assert run.swept.step < first.rolled_back_to <= 60
    assert run.schedule._legs[1].peak_lr == pytest.approx(first_share * first.argmin_lr)
    assert first.argmin_lr == pytest.approx(run.rates[round(first.argmin_step)])
    for leg, receipt in zip(run.schedule._legs[2:], later, strict=True):
        assert leg.peak_lr == pytest.approx(0.5 * receipt.argmin_lr)


def test_a_straight_fall_within_the_noise_asks_for_nothing():
    run = Run(total=200, straight=20_000).end()
    assert not run.steps_of(Verdict.RISES_ON)


@pytest.mark.parametrize("blows", [(), range(70, 200)], ids=["reached", "passed"])
def test_split_training_is_the_whole_training(blows):
    at = {*range(0, 160, 7), *range(38, 48)}
    whole = whole_run_that_resumes(lambda: Run(total=160, straight=60, blows=blows), at)
    assert whole.steps_of(Verdict.RISES_ON)


@pytest.mark.usefixtures("pace_alone")
def test_a_state_from_before_there_were_rises_goes_on():
    def older(state):
        state.pop("pace")
        state.pop("swing")
        state["legs"] = [leg[:3] for leg in state["legs"]]

    run, other = runs_of_older_state(older, lambda: Run(total=200), 30)
    assert other.end().rates == run.end().rates
