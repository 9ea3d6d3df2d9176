"""AutoWarmup: the learning rates it sets, what it decides, how it stops, resumes and rolls back."""

import copy
import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_helpers import (
    OPTIMIZERS,
    assert_same,
    backward_on_batch,
    dummy_optimizer,
    everything,
    saved_and_loaded,
    small_net,
    valley,
)

from autolr_ray.schedule import (
    DECAYS,
    RULES,
    AutoWarmup,
    DivergenceError,
    DivergenceWarning,
    LinearWarmup,
    PaperRule,
    Receipt,
    RobustRule,
    Verdict,
    constant_then_cosine,
)
from autolr_ray.schedule.receipt import VECTOR_LENGTH, receipts_of, receipts_state
from autolr_ray.schedule.switch import RECEIPT_POINTS

NEVER = 10**6  # an epoch so long that the paper's rule never tests before the end
RULE_NAMES = sorted(RULES)
NAN = math.nan

# Constant and broken losses are fed to many tests that are about something else.
pytestmark = pytest.mark.filterwarnings("ignore::autolr_ray.schedule.DivergenceWarning")


def make(total_steps=60, *, groups=(1.0,), **settings_):
    """A scheduler of a dummy optimizer; by default it never tests before the longest warmup is over."""
    settings_.setdefault("rule", "paper")
    settings_.setdefault("steps_per_epoch", NEVER)
    return AutoWarmup(dummy_optimizer(*groups), total_steps, **settings_)


def run(scheduler, losses, steps=None):
    """The learning rate before each of the steps, and the one after the last."""
    rates = [scheduler.get_last_lr()[0]]
    for loss in itertools.islice(losses, steps):
        scheduler.step(loss)
        rates.append(scheduler.get_last_lr()[0])
    return rates


def turning(total_steps=60):
    """Losses of a whole run whose warmup (half of it) has a clear valley that the paper's rule finds."""
    half = total_steps // 2
    return valley(half, lowest=0.5) + [1.0] * (total_steps - half)


# --- warmup --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "fraction", "warmup"),
    [(60, 0.5, 30), (61, 0.5, 30), (1, 0.5, 1), (1, 1.0, 1), (10, 0.05, 1), (10, 1.0, 10), (7, 0.3, 2)],
)
@pytest.mark.parametrize(("low", "high"), [(1e-5, 1.0), (1e-3, 0.5), (0.1, 100.0)])
def test_warmup_is_the_exponential_of_the_paper_and_rises(total, fraction, warmup, low, high):
    scheduler = make(total, max_warmup_fraction=fraction, min_lr=low, max_lr=high)
    assert scheduler.warmup_steps == warmup
    rates = run(scheduler, [1.0] * total, warmup - 1)
    assert rates[0] == low
    assert rates == pytest.approx([low * (high / low) ** (t / warmup) for t in range(warmup)], rel=1e-12)
    assert all(a < b for a, b in itertools.pairwise(rates))
    assert scheduler.phase == "warmup"
    assert scheduler.peak_lr is scheduler.switch_step is scheduler.rolled_back_to is None


def test_defaults_are_the_papers():
    scheduler = AutoWarmup(dummy_optimizer(), 100, steps_per_epoch=10)
    assert (scheduler.min_lr, scheduler.max_lr, scheduler.warmup_steps) == (1e-5, 1.0, 50)
    assert (scheduler.fallback, scheduler.final_lr, scheduler.decay_name) == ("argmin", 0.0, "cosine")
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)


@settings(max_examples=50, deadline=None)
@given(
    total=st.integers(1, 70),
    fraction=st.floats(0.01, 1.0),
    fallback=st.sampled_from(["argmin", "keep"]),
    decay=st.sampled_from(sorted(DECAYS)),
    rule=st.sampled_from(RULE_NAMES),
    steps_per_epoch=st.integers(1, 30),
    final=st.sampled_from([0.0, 1e-6]),
    draw=st.lists(st.floats(width=32), min_size=70, max_size=70),
)
def test_property_any_losses_give_bounded_rates_that_end_exactly(
    total, fraction, fallback, decay, rule, steps_per_epoch, final, draw
):
    scheduler = make(
        total, max_warmup_fraction=fraction, fallback=fallback, decay=decay, rule=rule, final_lr=final,
        steps_per_epoch=steps_per_epoch, min_lr=1e-4, max_lr=0.3,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        rates = run(scheduler, draw, total)
    assert rates[-1] == final
    assert all(0.0 <= rate <= 0.3 for rate in rates)
    assert all(rate >= 1e-4 for rate in rates[: min(scheduler.switch_step, total - 1)])
    assert scheduler.switch_step <= scheduler.warmup_steps
    assert 1e-4 <= scheduler.peak_lr <= 0.3
    falling = rates[scheduler.switch_step :]
    assert all(a >= b - 1e-18 for a, b in itertools.pairwise(falling))
    verdicts = [receipt.verdict for receipt in scheduler.receipts]
    assert all(v is Verdict.RISING for v in verdicts[:-1])
    assert verdicts[-1].ends_warmup


def test_no_rate_is_above_max_lr_even_at_the_end():
    """A final_lr above max_lr can only be a mistake."""
    with pytest.raises(ValueError, match="final_lr"):
        make(10, max_lr=0.5, final_lr=2.0)


# --- groups and kinds of learning rate -----------------------------------------------------------


@pytest.mark.parametrize("groups", [(1.0, 0.1), (0.02, 0.01, 0.005), (0.0, 1.0)])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_groups_keep_their_ratios_at_every_step(groups, rule):
    scheduler = make(60, groups=groups, rule=rule, steps_per_epoch=3)
    alone = make(60, rule=rule, steps_per_epoch=3)
    for loss in turning():
        rates = [group["lr"] for group in scheduler.optimizer.param_groups]
        assert rates == scheduler.get_last_lr() == scheduler.get_lr()
        assert rates == pytest.approx([alone.get_last_lr()[0] * g / max(groups) for g in groups], rel=1e-12)
        scheduler.step(loss)
        alone.step(loss)
    assert scheduler.switch_step == alone.switch_step
    assert scheduler.get_last_lr() == [0.0] * len(groups)


def test_groups_of_zero_are_equal():
    scheduler = make(10, groups=(0.0, 0.0))
    assert scheduler.get_last_lr() == [1e-5, 1e-5]


def test_tensor_rates_are_changed_in_place():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    lr = torch.tensor(0.5, dtype=torch.float64)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.25})
    scheduler = AutoWarmup(optimizer, 60, steps_per_epoch=3, rule="paper")
    for loss in turning():
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr.item() == scheduler.get_last_lr()[0]
        assert optimizer.param_groups[1]["lr"] == pytest.approx(lr.item() / 2)
        scheduler.step(loss)
    assert lr.item() == 0.0


def test_an_optimizer_with_a_tensor_rate_trains():
    model = small_net(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1.0), foreach=False)
    scheduler = AutoWarmup(optimizer, 20, steps_per_epoch=2, model=model)
    for step in range(20):
        loss = backward_on_batch(model, step)
        optimizer.step()
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"].item() == 0.0


def test_a_group_added_later_is_refused():
    scheduler = make()
    scheduler.optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(
        RuntimeError, match="param_groups: the optimizer has 2 groups, the schedule was made for 1"
    ):
        scheduler.step(1.0)


# --- decay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [0.0, 1e-4])
@pytest.mark.parametrize("total", [60, 83])
def test_cosine_from_the_switch_is_the_closed_form_and_torchs(total, final):
    scheduler = make(total, steps_per_epoch=3, final_lr=final)
    rates = run(scheduler, turning(total))
    peak, start = scheduler.peak_lr, scheduler.switch_step
    assert scheduler.receipts[-1].verdict is Verdict.PASSED
    assert start < scheduler.warmup_steps
    assert rates[start] == pytest.approx(peak, rel=1e-15)
    optimizer = dummy_optimizer(peak)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - start, eta_min=final)
    for t in range(start, total + 1):
        along = (t - start) / (total - start)
        expected = final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * along))
        assert rates[t] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert rates[t] == pytest.approx(peer.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        peer.step()
    assert rates[-1] == final


@pytest.mark.parametrize("final", [0.0, 1e-4])
def test_constant_then_cosine_is_the_closed_form(final):
    total = 100
    scheduler = make(total, steps_per_epoch=3, decay="constant-then-cosine", final_lr=final)
    rates = run(scheduler, turning(total))
    peak = scheduler.peak_lr
    assert scheduler.switch_step < 50
    assert rates[scheduler.switch_step : 81] == pytest.approx(
        [peak] * (81 - scheduler.switch_step), rel=1e-15
    )
    tail = [final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * (t - 80) / 20)) for t in range(80, 101)]
    assert rates[80:] == pytest.approx(tail, rel=1e-9, abs=1e-12)
    assert rates[-1] == final


def test_a_decay_of_ones_own():
    scheduler = make(60, steps_per_epoch=3, decay=lambda progress, start: (1.0 - progress) / (1.0 - start))
    rates = run(scheduler, turning())
    start = scheduler.switch_step
    assert rates[start:] == pytest.approx(
        [scheduler.peak_lr * (60 - t) / (60 - start) for t in range(start, 61)]
    )


# --- the end of the longest warmup ---------------------------------------------------------------


def test_fallback_to_the_argmin():
    scheduler = make()
    run(scheduler, turning())
    (receipt,) = scheduler.receipts
    assert receipt.verdict is Verdict.EXHAUSTED
    assert (receipt.step, scheduler.switch_step, receipt.positives) == (30, 30, 0)
    assert receipt.argmin_step == pytest.approx(15, abs=3)
    assert (
        scheduler.peak_lr
        == receipt.argmin_lr
        == pytest.approx(1e-5 ** (1 - receipt.argmin_step / 30), rel=1e-9)
    )


def test_fallback_keeps_the_highest_rate_when_asked():
    scheduler = make(fallback="keep")
    rates = run(scheduler, turning())
    assert scheduler.receipts[-1].verdict is Verdict.HIGHEST_KEPT
    assert scheduler.peak_lr == rates[29] == max(rates)
    assert rates[30] == scheduler.peak_lr


def test_a_loss_that_still_falls_keeps_the_highest_rate():
    scheduler = make()
    rates = run(scheduler, [3.0 - t / 30 for t in range(60)])
    assert scheduler.receipts[-1].verdict is Verdict.STILL_FALLING
    assert scheduler.peak_lr == rates[29] == max(rates)


@pytest.mark.parametrize("loss", [NAN, math.inf, -math.inf])
def test_no_finite_loss_at_all(loss):
    scheduler = make()
    rates = run(scheduler, [loss] * 60)
    receipt = scheduler.receipts[-1]
    assert receipt.verdict is Verdict.NO_EVIDENCE
    assert math.isnan(receipt.probability)
    assert scheduler.peak_lr == scheduler.min_lr
    assert rates[-1] == 0.0
    kept = make(fallback="keep")
    run(kept, [loss] * 60)
    assert kept.receipts[-1].verdict is Verdict.HIGHEST_KEPT


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_the_shortest_runs(total, fraction, rule):
    model = small_net(True)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = AutoWarmup(
        optimizer, total, steps_per_epoch=1, model=model, rule=rule, max_warmup_fraction=fraction
    )  # fmt: skip
    rates = run(scheduler, [1.0] * total)
    assert rates[0] == 1e-5
    assert rates[-1] == 0.0
    assert len(scheduler.receipts) >= 1


def test_a_whole_run_of_warmup_may_roll_back_at_its_end():
    model = small_net(True)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = AutoWarmup(
        optimizer, 40, steps_per_epoch=NEVER, model=model, rule="paper", max_warmup_fraction=1.0
    )  # fmt: skip
    for step, loss in enumerate(valley(40)):
        backward_on_batch(model, step)
        optimizer.step()
        scheduler.step(loss)
    assert scheduler.switch_step == 40
    # A snapshot is kept every step here; which ones are left follows earlier estimates of the argmin.
    assert scheduler.rolled_back_to == pytest.approx(scheduler.receipts[-1].argmin_step, abs=4)
    assert scheduler.get_last_lr() == [0.0]


# --- divergence ----------------------------------------------------------------------------------

EXPLODES = [2.3 + 0.01 * (-1) ** t + (0.0 if t < 12 else 2.0 ** (t - 12)) for t in range(60)]
DIVERGING = {
    "rises": (EXPLODES, "robust"),
    "rises, paper": ([1.0 + 0.05 * t for t in range(60)], "paper"),
    "never finite": ([NAN] * 60, "robust"),
    "not finite soon": ([2.3, 2.31, 2.29, 2.3, 2.31, 2.3, 2.29, 2.31] + [NAN] * 52, "robust"),
}


@pytest.mark.parametrize("case", DIVERGING)
def test_divergence_before_any_improvement_is_raised_with_all_decided(case):
    losses, rule = DIVERGING[case]
    scheduler = make(120, rule=rule, steps_per_epoch=2, on_divergence="raise")
    with pytest.raises(
        DivergenceError, match=r"loss: the loss rose, or was not finite, before it .* min_lr=1e-05"
    ):
        run(scheduler, losses)
    receipt = scheduler.receipts[-1]
    assert receipt.verdict is Verdict.DIVERGED
    assert scheduler.switch_step == scheduler.last_epoch == receipt.step < 60
    assert scheduler.get_last_lr() == [scheduler.peak_lr] == [receipt.argmin_lr]
    # Whoever catches the error can go on, or save.
    other = make(120, rule=rule, steps_per_epoch=2, on_divergence="raise")
    other.load_state_dict(saved_and_loaded(scheduler.state_dict()))
    scheduler.step(NAN)
    other.step(NAN)
    assert other.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize("case", DIVERGING)
def test_divergence_is_warned_of_once_and_the_run_goes_on(case):
    losses, rule = DIVERGING[case]
    scheduler = make(120, rule=rule, steps_per_epoch=2)
    with pytest.warns(DivergenceWarning, match="loss: the loss rose, or was not finite") as told:
        rates = run(scheduler, losses * 2)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert max(rates[scheduler.switch_step :]) == scheduler.peak_lr < 1e-3
    assert rates[-1] == 0.0


@pytest.mark.filterwarnings("error::autolr_ray.schedule.DivergenceWarning")
@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.2])
def test_a_loss_that_fell_before_it_rose_is_no_divergence(rule, noise):
    scheduler = make(200, steps_per_epoch=4, rule=rule, on_divergence="raise")
    run(scheduler, valley(100, noise=noise) * 2)
    assert scheduler.receipts[-1].verdict is Verdict.PASSED


def test_the_paper_rule_waits_for_a_finite_loss_to_the_end_as_the_original_does():
    scheduler = make(on_divergence="raise")
    with pytest.raises(DivergenceError, match="no loss was finite"):
        run(scheduler, [NAN] * 60)
    assert scheduler.switch_step == scheduler.warmup_steps == 30


def test_a_start_that_is_not_finite_is_waited_for():
    """Mixed precision begins with steps that overflow: the loss may be infinite for a while."""
    scheduler = make(400, rule="robust", on_divergence="raise")
    run(scheduler, [math.inf] * 15 + valley(185) * 2 + [1.0] * 15)
    assert scheduler.receipts[-1].verdict is Verdict.PASSED


# --- receipts ------------------------------------------------------------------------------------


def test_receipts_say_what_was_known_and_decided():
    scheduler = make(120, steps_per_epoch=4, min_lr=1e-4, max_lr=2.0)
    losses = turning(120)
    rates = run(scheduler, losses)
    receipts = scheduler.receipts
    assert [receipt.step for receipt in receipts] == list(range(4, scheduler.switch_step + 1, 4))
    rule, positives = PaperRule(), 0
    for receipt in receipts:
        rule.observe(np.array(losses[receipt.step - 4 : receipt.step]), 60)
        evidence = rule.test()
        positives = positives + 1 if evidence.positive else 0
        assert receipt.probability == evidence.probability
        assert receipt.positives == positives
        assert receipt.lr == rates[receipt.step - 1]
        # The paper reads a position as a share of the growth so far: (last lr / min_lr) ** x.
        assert receipt.argmin_step == evidence.argmin * (receipt.step - 1)
        assert receipt.argmin_lr == pytest.approx(1e-4 * (2e4) ** (receipt.argmin_step / 60), rel=1e-12)
        assert (receipt.outputscale, receipt.noise) == (evidence.hyper.outputscale, evidence.hyper.noise)
        assert receipt.prior_mean == evidence.hyper.mean
        assert_same(receipt.mean.tolist(), evidence.mean.tolist())
        assert_same(receipt.sd.tolist(), evidence.sd.tolist())
        assert receipt.reason == receipt.verdict.value
        assert receipt.rolled_back_to == -1
        assert receipt.verdict is (Verdict.PASSED if positives == 3 else Verdict.RISING)
    assert positives == 3
    assert scheduler.switch_step == receipts[-1].step < 60
    assert scheduler.peak_lr == receipts[-1].argmin_lr
    assert scheduler.phase == "decay"


def test_patience_counts_positive_tests_in_a_row():
    switched = []
    for patience in (1, 2, 4):
        scheduler = make(120, steps_per_epoch=2, rule=PaperRule(patience=patience))
        run(scheduler, turning(120))
        assert [receipt.positives for receipt in scheduler.receipts[-patience:]] == list(
            range(1, patience + 1)
        )
        switched.append(scheduler.switch_step)
    assert switched == sorted(switched)
    assert switched[0] < switched[-1]


def test_a_negative_test_starts_the_count_again():
    # A brief rise, then much lower losses: positive tests end before there are many.
    losses = [2.0] * 10 + [1.0] * 10 + [2.5] * 6 + [0.1] * 60
    scheduler = make(160, steps_per_epoch=2, rule=PaperRule(patience=30))
    run(scheduler, losses)
    counts = [receipt.positives for receipt in scheduler.receipts]
    fell = [after for before, after in itertools.pairwise(counts) if before > 0 and after <= before]
    assert fell
    assert set(fell) == {0}


def test_the_end_of_the_warmup_is_no_test_of_the_rules():
    """The paper's rule cannot pass for the first time at the end, even where an epoch ends there."""
    rule = PaperRule(patience=1, confidence=0.999999)
    scheduler = make(60, steps_per_epoch=30, rule=rule)
    run(scheduler, valley(30, lowest=0.3) + [1.0] * 30)
    assert [receipt.step for receipt in scheduler.receipts] == [30]
    assert scheduler.receipts[0].positives == 0
    assert scheduler.receipts[0].verdict is Verdict.EXHAUSTED


@pytest.mark.parametrize("verdict", list(Verdict))
def test_receipts_survive_vectors_and_dictionaries(verdict):
    receipt = Receipt(
        step=7, lr=0.1, verdict=verdict, probability=NAN, positives=2, argmin_step=3.25, argmin_lr=0.01,
        rolled_back_to=4, earliest_step=1.5, outputscale=1.5, noise=0.25, prior_mean=-2.0,
        mean=np.arange(RECEIPT_POINTS) / 3.0, sd=np.arange(RECEIPT_POINTS) / 7.0,
    )  # fmt: skip
    assert receipt.to_vector().shape == (VECTOR_LENGTH,)
    kept = saved_and_loaded(receipts_state([receipt, receipt]))
    for twin in (Receipt.from_vector(receipt.to_vector()), *receipts_of(kept)):
        assert_same(twin.to_vector(), receipt.to_vector())
        for field in (
            "step", "lr", "verdict", "positives", "argmin_step", "argmin_lr", "rolled_back_to",
            "earliest_step",
        ):  # fmt: skip
            assert getattr(twin, field) == getattr(receipt, field)
            assert type(getattr(twin, field)) is type(getattr(receipt, field))
        assert (twin.outputscale, twin.noise, twin.prior_mean) == (1.5, 0.25, -2.0)
        assert (twin.mean == receipt.mean).all()
        assert (twin.sd == receipt.sd).all()


def test_a_receipts_verdict_is_found_by_its_name():
    scheduler = make(2)
    scheduler.step(1.0)
    state = receipts_state(scheduler.receipts)
    state["vectors"][:, 2] = 99.0  # where it stood in another version
    assert [r.verdict for r in receipts_of(state)] == [scheduler.receipts[0].verdict]


def test_a_state_without_receipts_has_none():
    assert receipts_of(saved_and_loaded(receipts_state([]))) == []


def test_a_state_of_receipts_with_a_tensor_each_is_taken_up():
    """As they were saved before they shared one."""
    whole, losses = make(60, steps_per_epoch=3), turning()
    run(whole, losses[:40])
    now = whole.state_dict()
    assert now["receipts"]["verdicts"]
    each = [
        {"verdict": name, "vector": vector.clone()}
        for name, vector in zip(now["receipts"]["verdicts"], now["receipts"]["vectors"], strict=True)
    ]
    resumed = make(60, steps_per_epoch=3)
    resumed.load_state_dict(saved_and_loaded(now | {"receipts": each}))
    assert_same(resumed.state_dict(), now)
    assert run(resumed, losses[40:]) == run(whole, losses[40:])


# --- losses --------------------------------------------------------------------------------------


def test_losses_of_every_kind_are_the_same_loss():
    losses = [float(np.float32(value)) for value in turning()]
    kinds = (
        lambda v: v,
        torch.tensor,
        lambda v: torch.tensor([v]),
        np.float32,
        lambda v: torch.tensor(v, requires_grad=True) * 1.0,
    )
    runs = []
    for kind in kinds:
        scheduler = make(60, steps_per_epoch=3)
        runs.append(run(scheduler, [kind(value) for value in losses]))
    assert all(rates == runs[0] for rates in runs)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.ones(2), ValueError, r"loss: a tensor of shape \(2,\) is not allowed"),
        (torch.ones(0), ValueError, r"loss: a tensor of shape \(0,\)"),
        (None, TypeError, "loss: None is not allowed"),
        ("1.0", TypeError, "loss: '1.0' is not allowed"),
        (True, TypeError, "loss: True is not allowed"),
    ],
)
def test_bad_losses_are_refused_and_nothing_changed(loss, error, message):
    scheduler = make(60, steps_per_epoch=3)
    run(scheduler, turning(), 10)
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(error, match=message):
        scheduler.step(loss)
    assert_same(scheduler.state_dict(), before)
    assert scheduler.last_epoch == 10


def test_the_loss_is_needed():
    with pytest.raises(TypeError):
        make().step()


def test_after_the_warmup_the_loss_is_not_used():
    losses = turning()
    scheduler, other = make(60, steps_per_epoch=3), make(60, steps_per_epoch=3)
    expected = run(scheduler, losses)
    wild = [loss if t < scheduler.switch_step else NAN for t, loss in enumerate(losses)]
    assert run(other, wild) == expected
    assert len(other._pending) == 0


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_scattered_non_finite_losses_are_survived(rule):
    losses = turning(200)
    for place in range(2, 200, 9):
        losses[place] = (NAN, math.inf, -math.inf)[place % 3]
    scheduler = make(200, steps_per_epoch=5, rule=rule)
    rates = run(scheduler, losses)
    assert all(math.isfinite(rate) for rate in rates)
    assert scheduler.peak_lr == pytest.approx(1e-5**0.5, rel=3.0)


@pytest.mark.parametrize("finite", [1, 5, 10, 40])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_a_blow_up_after_a_few_losses_is_not_called_no_finite_loss(rule, finite):
    scheduler = make(400, steps_per_epoch=20, rule=rule)
    run(scheduler, [2.0] * finite + [NAN] * (400 - finite))
    assert scheduler.receipts[-1].verdict is not Verdict.NO_EVIDENCE


# --- counting ------------------------------------------------------------------------------------


def test_last_epoch_and_last_lr():
    scheduler = make(60, groups=(1.0, 0.5))
    assert scheduler.last_epoch == 0
    assert scheduler.base_lrs == [1.0, 0.5]
    for t, loss in enumerate(turning()):
        assert scheduler.last_epoch == t
        rates = scheduler.get_last_lr()
        assert rates == [group["lr"] for group in scheduler.optimizer.param_groups]
        rates[0] = NAN  # a copy
        assert scheduler.get_last_lr()[0] == scheduler.optimizer.param_groups[0]["lr"]
        scheduler.step(loss)
    assert scheduler.last_epoch == 60


def test_a_step_past_the_end_is_refused():
    scheduler = make(4, max_warmup_fraction=1.0)
    run(scheduler, [1.0] * 4)
    before = copy.deepcopy(scheduler.state_dict())
    for loss in (1.0, NAN, torch.ones(3)):
        with pytest.raises(
            RuntimeError, match=r"step: the schedule has 4 steps \(total_steps\) and all are done"
        ):
            scheduler.step(loss)
    assert_same(scheduler.state_dict(), before)
    assert scheduler.get_last_lr() == [0.0]


# --- settings ------------------------------------------------------------------------------------

NOT_NUMBERS = (NAN, math.inf, "1", None, True)
BAD = [
    *[("total_steps", value) for value in (0, -1, 1.0, True, None, "10")],
    *[("min_lr", value) for value in (0.0, -1e-5, 1.0, 2.0, *NOT_NUMBERS)],
    *[("max_lr", value) for value in (0.0, -1.0, *NOT_NUMBERS)],
    *[("max_warmup_fraction", value) for value in (0.0, -0.5, 1.0001, *NOT_NUMBERS)],
    *[("final_lr", value) for value in (-1e-9, *NOT_NUMBERS)],
    *[("steps_per_epoch", value) for value in (0, -1, 2.5, "3", True, None)],
    *[("fallback", value) for value in ("nope", "", None)],
    *[("on_divergence", value) for value in ("nope", "", None, True)],
    *[("decay", value) for value in ("nope", "", 1.0)],
    *[("warmup", value) for value in ("nope", "", 1.0, True)],
    *[("rule", value) for value in ("nope", None, 3)],
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_arguments_are_refused_by_name_and_value(field, value):
    optimizer = dummy_optimizer(0.25)
    arguments = {"total_steps": 100, "steps_per_epoch": 10, "rule": "paper"} | {field: value}
    with pytest.raises(ValueError, match=f"{field}: ") as caught:
        AutoWarmup(optimizer, **arguments)
    shown = {repr(value), f"{value:g}" if isinstance(value, float) else ""} - {""}
    assert any(text in str(caught.value) for text in shown)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("max_lr", [0.1, 0.01])
def test_bounds_that_leave_no_room_are_refused(max_lr):
    message = rf"min_lr: 0.1 is not allowed; it must be below max_lr \({max_lr}\)"
    with pytest.raises(ValueError, match=message):
        make(min_lr=0.1, max_lr=max_lr)


def test_bad_optimizers_are_refused():
    with pytest.raises(TypeError, match=r"optimizer: Linear is not a torch.optim.Optimizer"):
        AutoWarmup(torch.nn.Linear(1, 1), 10, steps_per_epoch=1)
    for lr in (NAN, math.inf, -1.0):
        optimizer = dummy_optimizer()
        optimizer.param_groups[0]["lr"] = lr
        with pytest.raises(ValueError, match=r"lr: the optimizer's groups have \["):
            AutoWarmup(optimizer, 10, steps_per_epoch=1)


def test_rollback_needs_a_model():
    with pytest.raises(ValueError, match="rollback: True is not allowed without model"):
        make(rollback=True)
    model = small_net(False)
    for rollback, kept in ((None, True), (True, True), (False, False)):
        scheduler = AutoWarmup(
            OPTIMIZERS["sgd"](model.parameters()), 20, steps_per_epoch=2, model=model, rollback=rollback
        )  # fmt: skip
        assert (scheduler.state_dict()["snapshots"] is not None) is kept


def test_distributed_needs_processes():
    with pytest.raises(RuntimeError, match="distributed: True is not allowed before"):
        make(2, distributed=True)


def test_the_paper_rule_needs_the_length_of_an_epoch_and_robust_does_not():
    with pytest.raises(ValueError, match="steps_per_epoch: None is not allowed with rule='paper'"):
        AutoWarmup(dummy_optimizer(), 10, rule="paper")
    AutoWarmup(dummy_optimizer(), 10, rule="robust")


# --- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", ["turning", "falling", "all_nan", "holes"])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_split_run_is_the_whole_run_at_every_step(rule, losses):
    total = 48
    curve = {
        "turning": turning(total),
        "falling": [3.0 - t / total for t in range(total)],
        "all_nan": [NAN] * total,
        "holes": [NAN if t % 5 == 2 else value for t, value in enumerate(turning(total))],
    }[losses]

    def fresh():
        return make(total, groups=(1.0, 0.3), rule=rule, steps_per_epoch=3, final_lr=1e-7)

    whole = fresh()
    states, rates = [], []
    for loss in curve:
        states.append(saved_and_loaded(whole.state_dict()))
        rates.append(whole.get_last_lr())
        whole.step(loss)
    end = saved_and_loaded(whole.state_dict())
    for cut, state in enumerate(states):
        scheduler = fresh()
        scheduler.load_state_dict(state)
        assert_same(saved_and_loaded(scheduler.state_dict()), state)
        for t in range(cut, total):
            assert scheduler.get_last_lr() == rates[t] == [g["lr"] for g in scheduler.optimizer.param_groups]
            scheduler.step(curve[t])
        assert_same(saved_and_loaded(scheduler.state_dict()), end)
        assert (scheduler.peak_lr, scheduler.switch_step) == (whole.peak_lr, whole.switch_step)
        assert len(scheduler.receipts) == len(whole.receipts)


def training(name, batch_norm, total, **settings_):
    model = small_net(batch_norm)
    optimizer = OPTIMIZERS[name](model.parameters())
    arguments = {"steps_per_epoch": 2, "model": model, "rule": "paper", "max_lr": 0.1} | settings_
    return model, optimizer, AutoWarmup(optimizer, total, **arguments)


def train_step(model, optimizer, scheduler, t, losses):
    backward_on_batch(model, t)
    optimizer.step()
    scheduler.step(losses[t])


@pytest.mark.parametrize("scheduler_first", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_split_training_with_rollback_is_the_whole_training_at_every_step(name, scheduler_first):
    """Snapshots travel in the state: weights, buffers and optimizer state end the same, bit for bit."""
    total = 36
    losses = turning(total)
    model, optimizer, scheduler = training(name, True, total)
    states = []
    for t in range(total):
        states.append(saved_and_loaded([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()]))
        train_step(model, optimizer, scheduler, t, losses)
    assert scheduler.rolled_back_to is not None
    end = everything(model, optimizer)
    held = [len(state[2]["snapshots"]["snapshots"]) for state in states]
    assert max(held) >= 2
    assert held[scheduler.switch_step :] == [0] * (total - scheduler.switch_step)
    cuts = range(total) if scheduler_first else range(0, total, 7)
    for cut in cuts:
        of_model, of_optimizer, of_scheduler = copy.deepcopy(states[cut])
        if scheduler_first:
            model, optimizer, resumed = training(name, True, total)
            model.load_state_dict(of_model)
            optimizer.load_state_dict(of_optimizer)
        else:
            model = small_net(True)
            model.load_state_dict(of_model)
            optimizer = OPTIMIZERS[name](model.parameters())
            optimizer.load_state_dict(of_optimizer)
            resumed = AutoWarmup(optimizer, total, steps_per_epoch=2, model=model, rule="paper", max_lr=0.1)
        resumed.load_state_dict(of_scheduler)
        for t in range(cut, total):
            train_step(model, optimizer, resumed, t, losses)
        assert_same(everything(model, optimizer), end)
        assert resumed.rolled_back_to == scheduler.rolled_back_to
        assert_same(saved_and_loaded(resumed.state_dict()), saved_and_loaded(scheduler.state_dict()))


def test_a_state_taken_does_not_change_afterwards():
    model, optimizer, scheduler = training("adamw", True, 40)
    losses = turning(40)
    for t in range(11):
        train_step(model, optimizer, scheduler, t, losses)
    state = scheduler.state_dict()
    frozen = saved_and_loaded(state)
    for t in range(11, 40):
        train_step(model, optimizer, scheduler, t, losses)
    assert_same(state, frozen)


STATE_OF = {"total_steps": 60, "steps_per_epoch": 3, "rule": "paper"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"total_steps": 61}, "total_steps=60, this schedule has 61"),
        ({"steps_per_epoch": 4}, "test_every=3, this schedule has 4"),
        ({"min_lr": 1e-4}, "min_lr=1e-05, this schedule has 0.0001"),
        ({"max_lr": 2.0}, "max_lr=1.0, this schedule has 2.0"),
        ({"max_warmup_fraction": 0.4}, "warmup_steps=30, this schedule has 24"),
        ({"final_lr": 1e-5}, "final_lr=0.0"),
        ({"decay": "constant-then-cosine"}, "decay='cosine'"),
        ({"decay": constant_then_cosine}, "decay='cosine'"),
        ({"fallback": "keep"}, "fallback='argmin'"),
        ({"rule": PaperRule(confidence=0.9)}, "rule.confidence=0.95"),
        ({"rule": PaperRule(patience=4)}, "rule.patience=3"),
        ({"rule": PaperRule(lengthscale=0.1)}, "rule.lengthscale=0.2"),
        ({"rule": "robust"}, "made with"),
        ({"model": "yes"}, "rollback=False, this schedule has True"),
    ],
)
def test_state_of_other_settings_is_refused_and_nothing_changed(other, message):
    source = make(**STATE_OF)
    run(source, turning(), 12)
    state = source.state_dict()
    optimizer = dummy_optimizer()
    if "model" in other:
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        other = {"model": model}
    scheduler = AutoWarmup(optimizer, **(STATE_OF | other))
    scheduler.step(2.0)
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(state)
    assert_same(scheduler.state_dict(), before)
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]


def test_state_of_other_versions_kinds_and_group_counts_is_refused():
    scheduler = make()
    state = scheduler.state_dict()
    assert state["version"] == 1
    for version in (0, 2, "1", None):
        with pytest.raises(ValueError, match=f"state_dict: version {version!r} is not allowed; 1 is needed"):
            scheduler.load_state_dict(state | {"version": version})
    other = LinearWarmup(dummy_optimizer(), 60, peak_lr=1.0)
    with pytest.raises(ValueError, match="kind 'LinearWarmup' is not allowed; 'AutoWarmup' is needed"):
        scheduler.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="1 parameter groups, the optimizer has 2"):
        make(groups=(1.0, 1.0)).load_state_dict(state)


def test_the_state_brings_the_groups_ratios():
    state = make(60, groups=(1.0, 0.1)).state_dict()
    scheduler = make(60, groups=(1.0, 0.7))
    scheduler.load_state_dict(state)
    assert scheduler.get_last_lr() == pytest.approx([1e-5, 1e-6])
    assert scheduler.base_lrs == [1.0, 0.1]


@pytest.mark.parametrize("cut", [0, 7, 20, 45])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_copies_go_on_by_themselves(cut, rule):
    losses = turning()
    scheduler = make(60, steps_per_epoch=3, rule=rule)
    run(scheduler, losses, cut)
    twins = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    runs = [run(twin, losses[cut:]) for twin in twins]
    assert scheduler.last_epoch == cut
    assert runs[0] == runs[1] == run(scheduler, losses[cut:])
    assert all(twin.optimizer is not scheduler.optimizer for twin in twins)


def test_copies_of_a_whole_training_roll_back_their_own_weights():
    losses = turning(40)
    whole = training("adamw", True, 40)
    for t in range(12):
        train_step(*whole, t, losses)
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert twin[2].optimizer is twin[1]
        for t in range(12, 40):
            train_step(*twin, t, losses)
        assert twin[2].rolled_back_to is not None
        ends = everything(*twin[:2])
    before = everything(*whole[:2])
    assert any(not torch.equal(before[key], ends[key]) for key in before if key.startswith("model."))
    for t in range(12, 40):
        train_step(*whole, t, losses)
    assert_same(everything(*whole[:2]), ends)


# --- rollback ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch_norm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "ending", [{"rule": "paper"}, {"warmup": "exponential"}, {"rule": "paper", "steps_per_epoch": NEVER}],
    ids=["paper", "robust", "fallback"],
)  # fmt: skip
def test_rollback_puts_back_what_was_there_bit_for_bit(name, batch_norm, ending):
    total = 140
    losses = valley(70, lowest=0.5) + [1.0] * 70
    model, optimizer, scheduler = training(name, batch_norm, total, **ending)
    past = {}
    t = 0
    while scheduler.phase == "warmup":
        backward_on_batch(model, t)
        optimizer.step()
        past[t + 1] = everything(model, optimizer)  # after t + 1 optimizer steps
        scheduler.step(losses[t])
        t += 1
    receipt = scheduler.receipts[-1]
    back = scheduler.rolled_back_to
    assert receipt.verdict in (Verdict.PASSED, Verdict.EXHAUSTED)
    assert receipt.rolled_back_to == back
    assert back < scheduler.switch_step
    # Snapshots are every other step here; the argmin moves a little from look to look.
    assert abs(back - receipt.argmin_step) <= 6
    assert_same(everything(model, optimizer), past[back])
    assert scheduler.get_last_lr()[0] == pytest.approx(scheduler.peak_lr)
    assert all(r.rolled_back_to == -1 for r in scheduler.receipts[:-1])


@pytest.mark.parametrize(
    ("losses", "settings_", "verdict"),
    [
        (turning(40), {"fallback": "keep"}, Verdict.HIGHEST_KEPT),
        ([3.0 - t / 20 for t in range(40)], {}, Verdict.STILL_FALLING),
        ([NAN] * 40, {}, Verdict.NO_EVIDENCE),
        (turning(40), {"rollback": False}, Verdict.EXHAUSTED),
    ],
)
def test_without_a_turn_nothing_is_rolled_back(losses, settings_, verdict):
    model, optimizer, scheduler = training("adamw", True, 40, steps_per_epoch=NEVER, **settings_)
    for t in range(20):
        backward_on_batch(model, t)
        optimizer.step()
        before = everything(model, optimizer)
        scheduler.step(losses[t])
    assert scheduler.receipts[-1].verdict is verdict
    assert scheduler.rolled_back_to is None
    assert scheduler.receipts[-1].rolled_back_to == -1
    assert_same(everything(model, optimizer), before)


def test_rollback_changes_no_decision():
    """The same losses give the same receipts and rates with and without snapshots."""
    losses = turning(60)
    model, optimizer, with_snapshots = training("sgd", False, 60, steps_per_epoch=3, max_lr=1.0)
    rates = []
    for t in range(60):
        rates.append(with_snapshots.get_last_lr()[0])
        train_step(model, optimizer, with_snapshots, t, losses)
    without = make(60, steps_per_epoch=3)
    assert run(without, losses)[:-1] == pytest.approx(rates, rel=1e-9)
    assert [r.step for r in with_snapshots.receipts] == [r.step for r in without.receipts]


# --- every schedule through every optimizer ------------------------------------------------------

SCHEDULES = {
    **{
        f"auto-{rule}-{decay}{'-rollback' if rollback else ''}": (
            lambda optimizer, model, rule=rule, decay=decay, rollback=rollback: AutoWarmup(
                optimizer, 50, steps_per_epoch=2, rule=rule, decay=decay, model=model if rollback else None,
                rollback=rollback, max_lr=0.5,
            )
        )
        for rule in RULE_NAMES
        for decay in DECAYS
        for rollback in (False, True)
    },
    **{
        f"linear-{decay}": (
            lambda optimizer, model, decay=decay: LinearWarmup(
                optimizer, 50, peak_lr=0.01, warmup_fraction=0.2, decay=decay
            )
        )
        for decay in DECAYS
    },
}  # fmt: skip


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch_norm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_through_every_optimizer(schedule, name, batch_norm):
    model = small_net(batch_norm)
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = OPTIMIZERS[name]([{"params": weights}, {"params": others, "weight_decay": 0.0, "lr": 0.5}])
    scheduler = SCHEDULES[schedule](optimizer, model)
    start = everything(model, optimizer)
    for t in range(50):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 2, rel=1e-12)
        assert 0 < first <= 0.5
        loss = backward_on_batch(model, t)
        optimizer.step()
        scheduler.step(loss)
    assert scheduler.get_last_lr() == [0.0, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    end = everything(model, optimizer)
    assert any(not torch.equal(start[key], end[key]) for key in start if key.startswith("model."))
    saved_and_loaded(scheduler.state_dict())


def test_a_rule_of_ones_own():
    """Any SwitchRule will do; here one that passes as soon as it is asked."""

    class AtOnce(RobustRule):
        name = "at_once"
        patience = 1

        def __init__(self):
            super().__init__()
            self.patience = 1

        def test_interval(self, warmup_steps, steps_per_epoch):
            return 5

        def test(self):
            return dataclasses.replace(super().test(), positive=True)

    scheduler = AutoWarmup(dummy_optimizer(), 100, rule=AtOnce())
    rates = run(scheduler, [2.0 - t / 100 for t in range(100)])
    assert scheduler.switch_step <= 50
    assert scheduler.receipts[-1].verdict is Verdict.PASSED
    assert rates[-1] == 0.0
