"""AutoWarmup's linear warmup: a short sweep, back to where it began, and a warmup that the rule watches."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_helpers import (
    OPTIMIZERS,
    Run,
    assert_same,
    dummy_optimizer,
    everything,
    runs_of_older_state,
    small_net,
    whole_run_that_resumes,
)

from autolr_ray.schedule import AutoWarmup, DivergenceError, DivergenceWarning, RobustRule, Verdict
from autolr_ray.schedule.sweep import Sweep, momentum_share, sweep_steps

NAN, INF = math.nan, math.inf
RATES = np.geomspace(1e-5, 1.0, 8)


def swept(losses, steps=8):
    sweep = Sweep(steps)
    sweep.observe(np.array(losses))
    return sweep


# --- the sweep -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "steps"), [(1, 8), (60, 8), (299, 8), (400, 12), (2000, 60), (2200, 64), (10**6, 64)]
)
def test_its_length(total, steps):
    assert sweep_steps(total) == steps


def test_it_is_over_at_its_length_or_when_the_loss_explodes():
    assert not swept([2.3, 2.31, 2.3, 2.29, 2.2, 2.0, 1.6]).over
    assert swept([2.3, 2.31, 2.3, 2.29, 2.2, 2.0, 1.6, 1.5]).over
    blown = swept([2.3, 2.31, 2.3, 2.29, 1.5, 4.0])
    assert blown.over
    assert blown.exploded
    assert swept([2.3, 2.31, 2.3, 2.29, NAN]).exploded


def test_a_rise_no_higher_than_noise_or_than_the_fall_is_no_explosion():
    assert not swept([2.3, 2.5, 2.2, 2.4, 3.7]).exploded
    assert not swept([2.3, 2.31, 2.3, 2.29, 1.5, 3.0]).exploded


@pytest.mark.parametrize(
    ("steps", "fallen", "height"),
    [(8, 2.285, 0.20), (9, 2.285, 0.20), (10, 2.285, 0.05), (8, 2.275, 0.05), (9, 2.275, 0.05)],
)
def test_a_rise_before_any_fall_must_be_higher_where_few_losses_tell_the_noise(steps, fallen, height):
    seen = [2.30, 2.31, 2.30, 2.29, 2.30]  # a noise of .01
    assert not swept([*seen, fallen, 2.3 + 0.99 * height], steps).exploded
    assert swept([*seen, fallen, 2.3 + 1.01 * height], steps).exploded


def test_nothing_explodes_in_the_first_half():
    """Learning rates are too low there: what looks like it is noise, or a loss that is not finite yet."""
    for losses in ([2.3, 9.0], [NAN], [INF, INF, INF, INF], [2.3, 2.3, 2.3, NAN]):
        assert not swept(losses).over


def test_the_rate_is_between_those_that_brought_the_loss_down():
    sweep = swept([2.3, 2.3, 2.3, 2.3, 2.3, 1.3, 9.0])
    assert sweep.lowest == 5
    assert sweep.lr(RATES[:7]) == pytest.approx(RATES[4])  # the step before the lowest loss made it so
    half = swept([2.3, 2.3, 2.3, 2.3, 1.3, 1.3, 9.0])
    assert half.lr(RATES[:7]) == pytest.approx(math.sqrt(RATES[3] * RATES[4]))
    slow = swept([2.3, 2.3, 2.3, 2.3, 1.8, 1.3, 9.0])  # half of the fall counts a quarter
    assert slow.lr(RATES[:7]) == pytest.approx(
        math.exp((0.25 * math.log(RATES[3]) + math.log(RATES[4])) / 1.25)
    )


@pytest.mark.parametrize(
    ("losses", "share"),
    [
        ([2.0] * 8, 2 / 3),
        ([2.0, 2.0, 2.01, 2.0, 2.01, 9.0], 1 / 30),
        ([2.0, 2.02, 2.0, 2.01, 1.99, 2.03, 2.02, 2.0], 2 / 3),  # noise is no fall
        ([2.0, NAN, NAN, NAN, NAN], 1 / 30),
    ],
)
def test_without_a_fall_by_the_highest_rate_whose_loss_was_seen(losses, share):
    sweep = swept(losses)
    assert not sweep.improved
    seen = RATES[len(losses) - 2]  # what the last one does is not seen
    assert sweep.lr(RATES[: len(losses)]) == pytest.approx(share * seen)


@pytest.mark.parametrize(("steps", "share"), [(8, 0.1), (12, 0.06), (64, 0.01)])
def test_noise_is_seldom_taken_for_a_fall(steps, share):
    draws = np.random.default_rng(0).normal(size=(4000, steps))
    assert np.mean([swept(losses, steps).improved for losses in draws]) < share


@pytest.mark.parametrize("losses", [[NAN] * 8, [2.0]])
def test_without_a_loss_to_go_by_the_lowest_rate(losses):
    assert swept(losses).lr(RATES[: len(losses)]) == RATES[0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_momentum_builds_up_as_sgd_builds_it(momentum, dampening, nesterov):
    """Equal gradients: torch's own steps, beside what they come to in the end."""
    nesterov = nesterov and momentum > 0.0 and not dampening  # torch has no other
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum, dampening=dampening, nesterov=nesterov)
    lengths = []
    for _ in range(4000):
        before = weight.item()
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        lengths.append(before - weight.item())
    for steps in (1, 2, 7, 30):
        share = momentum_share(optimizer.param_groups[0], steps)
        assert share == pytest.approx(min(1.0, lengths[steps - 1] / lengths[-1]), rel=1e-6)


@pytest.mark.parametrize("group", [{}, {"betas": (0.9, 0.999)}, {"momentum": 0.9, "dampening": 1.0}])
def test_where_nothing_builds_up_a_sweep_is_taken_as_it_is(group):
    assert momentum_share(group, 3) == 1.0


def test_a_start_that_is_not_finite_is_passed_over():
    sweep = swept([NAN, INF, 2.3, 2.3, 2.3, 2.2, 1.3, 1.4])
    assert sweep.level == 2.3
    assert sweep.improved
    assert RATES[3] < sweep.lr(RATES) < RATES[6]


loss = st.floats(0.1, 5.0)


@given(st.lists(loss, min_size=2, max_size=8), st.sampled_from([1e-6, 0.5, 64.0, 1e6]))
def test_property_scale_changes_nothing(losses, scale):
    one, other = swept(losses), swept([scale * value for value in losses])
    if math.log2(scale) % 1 == 0:  # else rounding may decide a tie
        assert (one.over, one.exploded, one.improved, one.lowest) == (
            other.over, other.exploded, other.improved, other.lowest,
        )  # fmt: skip
    rates = RATES[: len(losses)]
    assert one.lr(rates) == pytest.approx(other.lr(rates), rel=1e-6)


@given(st.lists(st.one_of(loss, st.just(NAN), st.just(INF)), min_size=1, max_size=8))
def test_property_the_rate_is_one_that_was_tried_or_between(losses):
    sweep = swept(losses)
    assert RATES[0] <= sweep.lr(RATES[: len(losses)]) <= RATES[-1]


# --- the schedule --------------------------------------------------------------------------------


def test_a_whole_run():
    run = Run().end()
    schedule, start = run.schedule, run.swept.step
    assert schedule.warmup == "linear"
    assert 4 < start <= 8
    sweep = np.array(run.rates[:start])
    np.testing.assert_allclose(np.diff(np.log(sweep)), math.log(1e5) / 7, rtol=1e-9)
    assert run.best / 5 < run.swept.argmin_lr < run.best * 5

    peak, turn = schedule.peak_lr, schedule.switch_step
    assert peak == pytest.approx(1.5 * run.swept.argmin_lr)
    assert turn == start + int(0.2 * (100 - start))
    warmup = run.rates[start : turn + 1]
    np.testing.assert_allclose(warmup, peak * np.arange(1, len(warmup) + 1) / len(warmup))
    decay = run.rates[turn:]
    np.testing.assert_allclose(decay, peak * (100 - np.arange(turn, 100)) / (100 - turn))
    assert schedule.get_last_lr() == [0.0]
    assert [schedule.lr_at(t) for t in range(100)] == run.rates
    assert schedule.decision.verdict is Verdict.REACHED
    assert schedule.decision.step == turn
    assert schedule.reason == Verdict.REACHED.value
    assert all(r.verdict is Verdict.WATCHED for r in schedule.receipts if r.step > turn)
    assert max(r.step for r in schedule.receipts) == 50  # half of the run is watched


def test_a_sweep_that_was_cheap_is_thrown_away():
    run = Run(total=400)
    while not run.schedule._legs:
        run.step()
    assert run.schedule.rolled_back_to == 1
    assert_same(part(run, "model."), {k: v for k, v in run.past[1].items() if k.startswith("model.")})
    assert not part(run, "state")  # the optimizer begins anew


def test_a_sweep_that_was_dear_goes_on_from_its_lowest_loss():
    run = Run(total=100)
    while not run.schedule._legs:
        run.step()
    back = run.swept.argmin_step
    assert run.schedule.rolled_back_to == back > 1
    assert_same(part(run, "model."), {k: v for k, v in run.past[int(back)].items() if k.startswith("model.")})
    assert not part(run, "state")


@pytest.mark.parametrize("total", [100, 400])
def test_tensors_that_a_graph_may_hold_are_kept(total):
    run = Run(total=total, name="sgd_momentum")
    run.optimizer.param_groups[0]["capturable"] = True
    run.step()
    held = [state["momentum_buffer"] for state in run.optimizer.state.values()]
    while not run.schedule._legs:
        run.step()
    assert all(
        state["momentum_buffer"] is buffer
        for state, buffer in zip(run.optimizer.state.values(), held, strict=True)
    )
    first = {key: value for key, value in run.past[1].items() if key.startswith("state")}
    assert_same(part(run, "state"), first)


def part(run, start):
    return {k: v for k, v in everything(run.model, run.optimizer).items() if k.startswith(start)}


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"lamb"}))  # LAMB's: test_layerwise.py
def test_when_the_loss_passes_its_minimum_it_goes_on_from_there(name):
    run = Run(name=name, blows=range(20, 100))
    while not any(r.verdict is Verdict.PASSED for r in run.schedule.receipts):
        run.step()
    receipt = run.schedule.receipts[-1]
    assert 20 < receipt.step < 40
    back = run.schedule.rolled_back_to
    assert back == receipt.rolled_back_to
    assert run.swept.step <= back <= 21
    assert_same(everything(run.model, run.optimizer), run.past[back])
    assert receipt.argmin_lr == pytest.approx(run.rates[round(receipt.argmin_step)])
    assert run.schedule.peak_lr == pytest.approx(0.5 * receipt.argmin_lr)  # the losses lie above the first
    assert run.schedule.get_last_lr()[0] == pytest.approx(run.schedule.peak_lr)
    assert run.schedule.switch_step == receipt.step
    assert run.schedule.decision is receipt


@pytest.mark.parametrize(("blown", "burst"), [((30, 31, 32), True), ((30, 31, 33, 34), False)])
def test_three_losses_in_a_row_far_above_the_minimum_are_enough(blown, burst):
    run = Run(blows=blown, blown=2.0).until(36)
    passed = [r for r in run.schedule.receipts if r.verdict is Verdict.PASSED]
    assert [r.step for r in passed] == ([33] if burst else [])
    if burst:
        assert passed[0].strength >= 1.0
        assert run.schedule.rolled_back_to <= 30
        assert run.schedule.peak_lr == pytest.approx(passed[0].argmin_lr)


@pytest.mark.parametrize(
    ("blown", "share"),
    [((2.0, 2.0, 2.0), 1.0), ((9.0, 2.0, 2.0), 1.0), ((9.0, 9.0, 9.0), 0.5), ((INF, NAN, INF), 0.5)],
)
def test_losses_above_the_start_are_no_false_alarm(blown, share):
    """Two in a row: training has lost all that it had gained."""
    run = Run(blows=range(30, 33))
    usual = run.loss
    run.loss = lambda: blown[run.t - 30] if run.t in run.blows else usual()
    run.until(36)
    (receipt,) = (r for r in run.schedule.receipts if r.verdict is Verdict.PASSED)
    assert 31 < receipt.step <= 33
    assert run.schedule.peak_lr == pytest.approx(share * receipt.argmin_lr)


@pytest.mark.parametrize("name", ["adamw", "sgd_momentum"])
def test_a_sweep_with_momentum_that_builds_up_counts_for_less(name):
    run = Run(name=name)
    while not run.schedule._legs:
        run.step()
    rates = np.array(run.rates)
    rate = run.schedule._course.sweep.lr(rates)
    seen = 1.0 + math.log(rate / rates[0]) / math.log(rates[1] / rates[0])
    share = momentum_share(run.optimizer.param_groups[0], seen)
    assert (share < 0.7) == (name == "sgd_momentum")
    assert run.swept.argmin_lr == pytest.approx(share * rate)


def test_the_second_half_is_not_watched_and_keeps_no_snapshots():
    run = Run(blows=range(51, 100)).end()
    assert run.schedule.decision.verdict is Verdict.REACHED
    assert run.schedule._snapshots.nbytes == 0


@pytest.mark.parametrize("blows", [(), range(20, 100)], ids=["reached", "passed"])
@pytest.mark.parametrize("name", ["adamw", "sgd_momentum"])
def test_split_training_is_the_whole_training_at_every_step(name, blows):
    whole_run_that_resumes(lambda: Run(total=60, name=name, blows=blows), range(60))


def test_no_finite_loss_at_all():
    run = Run()
    run.loss = lambda: NAN
    with pytest.warns(DivergenceWarning, match="no loss was finite"):
        run.end()
    assert run.schedule.decision.verdict is Verdict.NO_EVIDENCE
    assert run.schedule.peak_lr == run.schedule.min_lr


@pytest.mark.parametrize("on_divergence", ["warn", "raise"])
def test_a_loss_that_only_rises(on_divergence):
    """The sweep may have been too short to see a fall: the warmup after it says that there is none."""
    run = Run(on_divergence=on_divergence)
    run.loss = lambda: 2.0 + 0.01 * math.sin(12.9898 * run.t) if run.t < 4 else 2.0 + run.t
    expected = pytest.warns(DivergenceWarning) if on_divergence == "warn" else pytest.raises(DivergenceError)
    with expected:
        run.until(20)
    sweep, *_, last = run.schedule.receipts
    assert sweep.verdict is Verdict.NOT_SEEN
    assert last.verdict is Verdict.DIVERGED
    assert run.schedule._legs[0].peak_lr < 1e-3
    assert run.schedule.get_last_lr()[0] < 1e-4


def test_a_fall_that_the_sweep_was_too_short_to_see():
    run = Run()
    run.loss = lambda: 2.3 + 0.01 * math.sin(12.9898 * run.t) if run.t < 12 else 2.3 * 0.97 ** (run.t - 12)
    run.end()
    sweep = run.schedule.receipts[0]
    assert sweep.verdict is Verdict.NOT_SEEN
    assert not sweep.verdict.ends_warmup
    assert sweep.argmin_lr == pytest.approx(run.rates[6] / 1.5)  # it has done no harm
    assert 1 < sweep.rolled_back_to < sweep.step
    assert run.schedule.decision.verdict is Verdict.REACHED
    assert run.schedule._legs[0].first_peak == pytest.approx(1.5 * sweep.argmin_lr)


@pytest.mark.filterwarnings("ignore::autolr_ray.schedule.DivergenceWarning")
@pytest.mark.parametrize("total", [32, 33, 40, 64, 100, 257])
@pytest.mark.parametrize("fraction", [0.5, 0.8, 1.0])
def test_any_losses_give_bounded_rates_that_end_exactly(total, fraction):
    for seed in range(4):
        generator = np.random.default_rng(seed)
        run = Run(total=total, max_warmup_fraction=fraction, final_lr=1e-4)
        run.loss = lambda g=generator: float(g.choice([g.normal(), NAN, INF, 1e9], p=[0.8, 0.05, 0.05, 0.1]))
        run.end()
        assert all(0.0 < rate <= 1.0 for rate in run.rates)
        assert run.schedule.get_last_lr() == [1e-4]
        assert run.schedule.peak_lr is not None
        assert run.schedule.decision is not None


def test_no_rate_above_max_lr():
    run = Run(best=0.05, max_lr=0.1).end()
    assert max(run.rates) <= 0.1


def test_groups_keep_their_ratio():
    model = small_net(batch_norm=False)
    groups = [
        {"params": [p], "lr": lr} for p, lr in zip(model.parameters(), (1.0, 0.5, 0.1, 0.1), strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = AutoWarmup(optimizer, 60, model=model)
    for t in range(60):
        high, *low = schedule.get_last_lr()
        assert low == pytest.approx([0.5 * high, 0.1 * high, 0.1 * high])
        schedule.step(2.0 - t / 60)


# --- which warmup --------------------------------------------------------------------------------


def test_linear_where_it_can_be():
    model = small_net(batch_norm=False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())

    def warmup(total=100, **settings):
        return AutoWarmup(optimizer, total, steps_per_epoch=2, **settings).warmup

    assert warmup(model=model) == "linear"
    assert warmup(model=model, rule=RobustRule()) == "linear"
    assert warmup(32, model=model) == "linear"
    assert warmup() == "exponential"
    assert warmup(model=model, rollback=False) == "exponential"
    assert warmup(model=model, rule="paper") == "exponential"
    assert warmup(31, model=model) == "exponential"
    assert warmup(model=model, max_warmup_fraction=0.15) == "exponential"
    assert warmup(model=model, warmup="exponential") == "exponential"


def test_the_decay_goes_with_it():
    model = small_net(batch_norm=False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    assert AutoWarmup(optimizer, 100, model=model).decay_name == "linear"
    assert AutoWarmup(optimizer, 100, model=model, decay="cosine").decay_name == "cosine"
    assert AutoWarmup(optimizer, 100).decay_name == "cosine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "it needs model and rollback"),
        ({"rollback": False}, "it needs model and rollback"),
        ({"rule": "paper"}, "another rule than 'paper'"),
        ({"total_steps": 31}, r"max_warmup_fraction \* total_steps >= 16"),
    ],
)
def test_linear_where_it_cannot_be_is_refused(settings, message):
    model = small_net(batch_norm=False)
    arguments = {"total_steps": 100, "model": model, "steps_per_epoch": 5} | settings
    with pytest.raises(ValueError, match=f"warmup: 'linear' is not allowed; .*{message}"):
        AutoWarmup(OPTIMIZERS["adamw"](model.parameters()), warmup="linear", **arguments)


def test_a_state_of_the_other_warmup_is_refused_and_nothing_changed():
    linear, other = Run().until(20), Run(warmup="exponential", decay="linear").until(20)
    for target, source in ((linear, other), (other, linear)):
        before = copy.deepcopy(target.schedule.state_dict())
        with pytest.raises(ValueError, match="warmup"):
            target.schedule.load_state_dict(source.schedule.state_dict())
        assert_same(target.schedule.state_dict(), before)


def test_the_loss_on_its_own_is_watched_without_a_model():
    schedule = AutoWarmup(dummy_optimizer(), 60)
    for t in range(60):
        schedule.step(abs(t - 15.0))
    assert schedule.decision.verdict is Verdict.PASSED


def test_a_state_from_before_bursts_were_counted_goes_on():
    run, other = runs_of_older_state(lambda state: state.pop("burst"))
    assert other.schedule.get_last_lr() == run.schedule.get_last_lr()
    assert other.end().schedule.get_last_lr() == [0.0]


# --- a sweep that saw no fall -------------------------------------------------------------------


def unseen(total):
    """Up to where the sweep ended: noise, then an explosion."""
    run = Run(total=total)
    run.loss = lambda: 2.3 + 0.01 * math.sin(12.9898 * run.t) if run.t < 7 else 50.0
    while not run.schedule._legs:
        run.step()
    assert run.schedule.receipts[0].verdict is Verdict.NOT_SEEN
    assert run.schedule.receipts[0].argmin_lr == pytest.approx(run.rates[run.t - 2] / 30)
    return run


@pytest.mark.parametrize(
    ("last", "share"), [(2.30, 2 / 3), (2.32, 2 / 3), (2.38, 1 / 30), (INF, 1 / 30), (NAN, 1 / 30)]
)
def test_the_rate_that_did_no_harm_is_taken(last, share):
    losses = [2.30, 2.31, 2.30, 2.29, 2.30, 2.31, 2.30, last]
    assert swept(losses).lr(RATES[:8]) == pytest.approx(share * RATES[6])


@pytest.mark.parametrize(("last", "at_least"), [(2.24, True), (2.25, True), (2.27, True), (2.29, False)])
def test_a_low_loss_before_rates_that_did_no_harm_may_be_chance(last, at_least):
    losses = [2.30, 2.31, 2.30, 2.29, 2.25, 2.30, 2.30, last]
    assert swept(losses).improved
    rate = swept(losses).lr(RATES)
    assert (rate >= 0.999 * 2 / 3 * RATES[6]) == at_least
    # A clear fall to the end is past that by itself.
    assert swept([2.3, 2.31, 2.3, 2.3, 2.3, 2.3, 2.3, 1.5]).lr(RATES) == pytest.approx(RATES[6])


def test_a_dear_sweep_that_saw_no_fall_is_the_beginning_of_the_warmup():
    run = unseen(100)
    (leg,) = run.schedule._legs
    back = run.schedule.rolled_back_to
    assert 1 < back < leg.start
    assert run.rates[back - 1] <= leg.peak_lr
    assert_same(everything(run.model, run.optimizer), run.past[back])  # the optimizer's state as well
    whole = int(0.2 * (100 - leg.start))
    assert leg.skipped + leg.warmup == whole
    assert leg.skipped > 0
    unit = leg.peak_lr / (whole + 1)
    assert unit * leg.skipped * (leg.skipped + 1) / 2 <= sum(run.rates[:back])
    assert unit * (leg.skipped + 1) * (leg.skipped + 2) / 2 > sum(run.rates[:back])
    run.loss = lambda: 2.0
    run.end()
    expected = unit * np.arange(leg.skipped + 1, whole + 2)
    np.testing.assert_allclose(run.rates[leg.start : leg.turn + 1], expected)


def test_a_cheap_sweep_that_saw_no_fall_is_thrown_away():
    run = unseen(400)
    assert run.schedule.rolled_back_to == 1
    assert run.schedule._legs[0].skipped == 0
    assert not part(run, "state")


def test_a_state_with_legs_from_before_steps_were_skipped_goes_on():
    run, other = runs_of_older_state(lambda state: state.update(legs=[leg[:3] for leg in state["legs"]]))
    assert other.end().rates == run.end().rates
