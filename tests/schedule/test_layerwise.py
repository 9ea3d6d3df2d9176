"""Which optimizers change each layer by a fixed share of its norm, and what AutoWarmup does with them."""

import copy
import math

import numpy as np
import pytest
import torch
from schedule_helpers import (
    OPTIMIZERS,
    Run,
    assert_same,
    backward_on_batch,
    runs_of_older_state,
    small_net,
    whole_run_that_resumes,
)
from timm.optim import Lamb
from torch import nn

from autolr_ray import AutoWarmup
from autolr_ray.schedule.layerwise import is_layerwise, layerwise_peak
from autolr_ray.schedule.switch import Verdict


def lamb(parameters, **settings):
    return Lamb(parameters, **{"lr": 1.0, "weight_decay": 0.01} | settings)


def seen(make, *, steps=2, rate=5e-5, scale=1.0, **settings):
    """What the last of some optimizer steps says."""
    torch.manual_seed(0)
    model = small_net(batch_norm=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    optimizer = make(model.parameters(), **settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for t in range(steps):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        backward_on_batch(model, t)
        optimizer.step()
    return is_layerwise(before, dict(model.named_parameters()), optimizer)


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_lamb_is(rate, steps):
    assert seen(lamb, steps=steps, rate=rate) is True


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_others_are_not(name, steps):
    assert seen(OPTIMIZERS[name], steps=steps) is ("lamb" in name)


@pytest.mark.parametrize("trust_clip", [False, True])
def test_lamb_whose_shares_are_clipped_is_not(trust_clip):
    # The update of large weights is longer than Adam's, unless that is forbidden.
    assert seen(lamb, trust_clip=trust_clip, scale=100.0) is not trust_clip


def test_a_layer_that_stays_behind_is_seen():
    weights = {name: torch.full((2, 2), 1.0, requires_grad=True) for name in "ab"}
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)
    for b, expected in ((1.1, True), (0.9, True), (1.101, True), (1.11, False), (1.0, False)):
        with torch.no_grad():
            weights["a"].fill_(1.1)
            weights["b"].fill_(b)
        assert is_layerwise({name: torch.ones(2, 2) for name in "ab"}, weights, optimizer) is expected


def test_a_step_that_was_left_out_says_nothing():
    weight = torch.ones(2, 2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    assert is_layerwise({"w": torch.ones(2, 2)}, {"w": weight}, optimizer) is None


def test_nothing_to_look_at_is_no():
    bias, frozen = torch.ones(3, requires_grad=True), torch.ones(2, 2)
    optimizer = torch.optim.SGD([bias], lr=0.1)
    assert is_layerwise({"b": bias, "f": frozen}, {"b": bias, "f": frozen}, optimizer) is False


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_no(bad):
    weight = torch.full((2, 2), bad, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    assert is_layerwise({"w": torch.ones(2, 2)}, {"w": weight}, optimizer) is False
    assert (
        is_layerwise({"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2, requires_grad=True)}, optimizer)
        is False
    )


@pytest.mark.parametrize("steps", [60, 400, 2000])
def test_the_peak_is_that_of_a_walk_of_a_quarter(steps):
    """Steps in directions at random, at linearly rising and falling rates, on weights of norm 1."""
    rng = np.random.default_rng(steps)
    turn = steps // 5
    rates = layerwise_peak(steps) * np.concatenate(
        [np.arange(1, turn + 1) / turn, np.arange(steps - turn, 0, -1) / (steps - turn)]
    )
    directions = rng.normal(size=(steps, 2000))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.linalg.norm(rates @ directions) == pytest.approx(0.25, rel=0.1)


# --- AutoWarmup ----------------------------------------------------------------------------------


def by_layers(**settings):
    """A run with LAMB whose sweep goes to its end."""
    return Run(name="lamb", explodes=math.inf, **settings)


def test_the_peak_comes_from_the_steps_left():
    run = by_layers().until(100)
    sweep = run.swept
    assert sweep.verdict is Verdict.LAYERWISE
    assert sweep.argmin_lr == run.schedule.peak_lr == max(run.rates[sweep.step :])
    assert run.schedule.peak_lr == pytest.approx(0.25 * math.sqrt(3 / (100 - sweep.step)))
    assert run.schedule.rolled_back_to == sweep.argmin_step > 1  # what a dear sweep has learned is kept
    assert run.schedule.get_last_lr() == [0.0]


@pytest.mark.usefixtures("pace_alone")
@pytest.mark.parametrize("total", [160, 600])  # swinging is not looked at in the first
def test_it_rises_by_quarters_up_to_a_twentieth_of_the_norm(total):
    run = by_layers(total=total, straight=total).until(total)
    left = total - run.swept.step
    first, warmup = 0.25 * math.sqrt(3 / left), int(0.2 * left)
    on = run.steps_of(Verdict.RISES_ON)
    assert on == [run.swept.step + warmup + k * round(warmup / 8) for k in range(len(on))]
    assert run.schedule.peak_lr == pytest.approx(first * 1.25 ** len(on))
    assert 0.05 / 1.25 < run.schedule.peak_lr <= 0.05


def test_a_run_with_rises_that_is_resumed_is_the_whole_run():
    at = {*range(0, 300, 23), *range(120, 140)}
    whole = whole_run_that_resumes(lambda: by_layers(total=600, straight=250), at)
    assert whole.steps_of(Verdict.RISES_ON)


def passed(run):
    return [r for r in run.schedule.receipts if r.verdict is Verdict.PASSED]


@pytest.mark.parametrize("blows", [range(15, 20), range(20, 38)])
def test_a_rise_near_the_peak_is_left_to_heal(blows):
    # The warmup takes 18 steps, from 8 to 26.
    assert not passed(by_layers(blows=blows).until(100))
    assert passed(Run(explodes=math.inf, blows=blows).until(100))


@pytest.mark.parametrize(("blown", "share"), [(2.0, 1.0), (30.0, 0.5)])
def test_a_loss_that_stays_up_goes_back_at_the_whole_learning_rate_then_at_half(blown, share):
    """At half at once where it stays above where it began."""
    run = by_layers(blows=range(24, 100), blown=blown).until(100)
    first, *later = passed(run)
    assert 44 < first.step <= 50
    assert first.rolled_back_to < 26
    assert run.schedule._legs[1].peak_lr == pytest.approx(share * first.argmin_lr)
    for leg, receipt in zip(run.schedule._legs[2:], later, strict=True):
        assert leg.peak_lr == pytest.approx(0.5 * receipt.argmin_lr)


def test_others_go_by_the_sweep():
    run = Run(explodes=math.inf).until(30)
    assert run.swept.verdict is Verdict.SWEPT
    assert run.schedule.peak_lr == pytest.approx(1.5 * run.swept.argmin_lr)


def test_steps_that_a_scaler_leaves_out_are_waited_for():
    run = by_layers(skipped=(1, 2, 3))
    for t, known in ((1, None), (2, None), (4, None), (5, True)):
        assert run.until(t).schedule._course.layerwise is known
    assert run.until(30).swept.verdict is Verdict.LAYERWISE


def test_no_peak_above_max_lr():
    assert max(by_layers(max_lr=0.02).until(100).rates) <= 0.02


def test_what_was_seen_is_in_the_state():
    whole = by_layers().until(40)
    run = by_layers().until(4)
    state, model = copy.deepcopy(run.schedule.state_dict()), copy.deepcopy(run.model.state_dict())
    optimizer = copy.deepcopy(run.optimizer.state_dict())
    again = by_layers()
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    again.schedule.load_state_dict(state)
    again.t, again.rates = 4, run.rates[:]
    again.until(40)
    assert again.rates == whole.rates
    assert_same(again.schedule.state_dict(), whole.schedule.state_dict())


def test_a_state_from_before_it_was_looked_at_goes_on():
    _, other = runs_of_older_state(lambda state: state.pop("layerwise"), by_layers, 4)
    assert other.schedule._course.layerwise is None
    assert other.until(100).schedule.get_last_lr() == [0.0]


def test_wrapped_networks_have_the_same_names():
    run = by_layers()
    wrapped = nn.DataParallel(run.model)
    schedule = AutoWarmup(run.optimizer, 100, model=wrapped)
    for t in range(2):
        backward_on_batch(run.model, t)
        run.optimizer.step()
        schedule.step(2.3)
    assert schedule._course.layerwise is True
