"""LinearWarmup: the baseline's schedule."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_helpers import assert_same, dummy_optimizer, saved_and_loaded

from autolr_ray.schedule import LinearWarmup, Schedule


def rates_of(schedule, losses=()):
    """The learning rate of every step, and the one after the last."""
    rates = [schedule.get_last_lr()[0]]
    losses = iter(losses)
    while schedule.last_epoch < schedule.total_steps:
        schedule.step(next(losses, None))
        rates.append(schedule.get_last_lr()[0])
    return rates


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 60),
    fraction=st.floats(0.0, 1.0),
    peak=st.floats(1e-6, 10.0),
    final=st.floats(0.0, 1e-6),
)
def test_property_closed_form(total, fraction, peak, final):
    schedule = LinearWarmup(dummy_optimizer(), total, peak_lr=peak, warmup_fraction=fraction, final_lr=final)
    rates = rates_of(schedule)
    warmup = round(total * fraction)
    for t in range(total):
        if t < warmup:
            expected = peak * (t + 1) / warmup
        else:
            along = (t - warmup) / (total - warmup)
            expected = final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * along))
        assert rates[t] == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert rates[-1] == final
    assert max(rates) <= peak * (1 + 1e-15)


def test_reaches_the_peak_exactly_and_stays_there_until_the_decay():
    rates = rates_of(
        LinearWarmup(dummy_optimizer(), 10, peak_lr=0.3, warmup_fraction=0.4, decay="constant-then-cosine")
    )
    assert rates[:4] == pytest.approx([0.075, 0.15, 0.225, 0.3])
    assert rates[3:9] == [0.3] * 6
    assert rates[9] == pytest.approx(0.15)
    assert rates[10] == 0.0


def test_default_warmup_is_a_twentieth():
    schedule = LinearWarmup(dummy_optimizer(), 100, peak_lr=1.0)
    assert schedule.warmup_steps == 5
    assert isinstance(schedule, Schedule)
    assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)


def test_decay_is_torchs_cosine_annealing():
    schedule = LinearWarmup(dummy_optimizer(), 50, peak_lr=0.7, warmup_fraction=0.0, final_lr=0.01)
    optimizer = dummy_optimizer(0.7)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.01)
    for _ in range(50):
        assert schedule.get_last_lr()[0] == pytest.approx(peer.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        peer.step()
        schedule.step()
    assert schedule.get_last_lr() == [0.01]


def test_a_decay_of_ones_own():
    schedule = LinearWarmup(
        dummy_optimizer(), 4, peak_lr=1.0, warmup_fraction=0.25, decay=lambda progress, start: 1.0 - progress
    )
    assert rates_of(schedule) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_the_loss_is_not_used():
    plain = rates_of(LinearWarmup(dummy_optimizer(), 6, peak_lr=1.0))
    assert rates_of(LinearWarmup(dummy_optimizer(), 6, peak_lr=1.0), [math.nan, 1.0, torch.ones(2)]) == plain


@pytest.mark.parametrize("groups", [(1.0, 0.1), (0.5, 2.0, 1.0), (0.0, 3.0)])
def test_groups_keep_their_ratios(groups):
    optimizer = dummy_optimizer(*groups)
    schedule = LinearWarmup(optimizer, 8, peak_lr=0.4, warmup_fraction=0.5)
    for step in range(9):
        top = max(group["lr"] for group in optimizer.param_groups)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(
            [top * r / max(groups) for r in groups]
        )
        assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        if step < 8:
            schedule.step()
    assert top == 0.0


@pytest.mark.parametrize("cut", range(13))
def test_split_run_is_the_whole_run(cut):
    def make():
        return LinearWarmup(dummy_optimizer(1.0, 0.3), 12, peak_lr=0.4, warmup_fraction=0.5, final_lr=0.01)

    whole, first, second = make(), make(), make()
    for _ in range(cut):
        whole.step()
        first.step()
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    for _ in range(cut, 12):
        assert second.get_last_lr() == whole.get_last_lr()
        whole.step()
        second.step()
    assert [g["lr"] for g in second.optimizer.param_groups] == whole.get_last_lr()
    assert_same(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"total_steps": 13}, "total_steps=12"),
        ({"peak_lr": 0.5}, "peak_lr=0.4"),
        ({"warmup_fraction": 0.1}, "warmup_steps=6"),
        ({"final_lr": 0.1}, "final_lr=0.0"),
        ({"decay": "constant-then-cosine"}, "decay='cosine'"),
    ],
)
def test_state_of_other_settings_is_refused_and_nothing_changed(other, message):
    made = {"total_steps": 12, "peak_lr": 0.4, "warmup_fraction": 0.5}
    state = LinearWarmup(dummy_optimizer(), **made).state_dict()
    schedule = LinearWarmup(dummy_optimizer(), **(made | other))
    schedule.step()
    before = copy.deepcopy(schedule.state_dict())
    with pytest.raises(ValueError, match=message):
        schedule.load_state_dict(state)
    assert_same(schedule.state_dict(), before)


def test_state_of_other_versions_kinds_and_group_counts_is_refused():
    schedule = LinearWarmup(dummy_optimizer(), 12, peak_lr=0.4)
    state = schedule.state_dict()
    with pytest.raises(ValueError, match="version 2 is not allowed; 1 is needed"):
        schedule.load_state_dict(state | {"version": 2})
    with pytest.raises(ValueError, match="version None"):
        schedule.load_state_dict({})
    with pytest.raises(ValueError, match="kind 'AutoWarmup' is not allowed; 'LinearWarmup' is needed"):
        schedule.load_state_dict(state | {"kind": "AutoWarmup"})
    with pytest.raises(ValueError, match="1 parameter groups, the optimizer has 2"):
        LinearWarmup(dummy_optimizer(1.0, 1.0), 12, peak_lr=0.4).load_state_dict(state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_steps", 0),
        ("total_steps", -3),
        ("total_steps", 2.0),
        ("total_steps", True),
        ("total_steps", None),
        ("peak_lr", 0.0),
        ("peak_lr", -1.0),
        ("peak_lr", math.nan),
        ("peak_lr", math.inf),
        ("peak_lr", "0.1"),
        ("peak_lr", True),
        ("warmup_fraction", -0.01),
        ("warmup_fraction", 1.01),
        ("warmup_fraction", math.nan),
        ("final_lr", -0.01),
        ("final_lr", math.inf),
        ("decay", "nope"),
    ],
)
def test_bad_arguments_are_refused_by_name(field, value):
    arguments = {"total_steps": 10, "peak_lr": 1.0} | {field: value}
    optimizer = dummy_optimizer(0.25)
    with pytest.raises(ValueError, match=rf"^{field}: "):
        LinearWarmup(optimizer, **arguments)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_bad_optimizers_are_refused():
    with pytest.raises(TypeError, match=r"optimizer: Linear is not a torch.optim.Optimizer"):
        LinearWarmup(torch.nn.Linear(1, 1), 10, peak_lr=1.0)
    for lr in (math.nan, math.inf):
        optimizer = dummy_optimizer()
        optimizer.param_groups[0]["lr"] = lr
        with pytest.raises(ValueError, match="lr: the optimizer's groups have"):
            LinearWarmup(optimizer, 10, peak_lr=1.0)


def test_a_step_past_the_end_is_refused():
    schedule = LinearWarmup(dummy_optimizer(), 2, peak_lr=1.0)
    schedule.step()
    schedule.step()
    with pytest.raises(RuntimeError, match=r"2 steps \(total_steps\)"):
        schedule.step()
    assert schedule.last_epoch == 2


def test_a_group_added_later_is_refused():
    optimizer = dummy_optimizer()
    schedule = LinearWarmup(optimizer, 5, peak_lr=1.0)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(
        RuntimeError, match="param_groups: the optimizer has 2 groups, the schedule was made for 1"
    ):
        schedule.step()


def test_copies_go_on_by_themselves():
    schedule = LinearWarmup(dummy_optimizer(), 8, peak_lr=1.0, warmup_fraction=0.5)
    schedule.step()
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert rates_of(twin) == rates_of(copy.deepcopy(schedule))
        assert twin.optimizer is not schedule.optimizer
    assert schedule.last_epoch == 1
