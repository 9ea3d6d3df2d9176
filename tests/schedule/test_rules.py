"""From losses to evidence to a verdict; the paper's rule against the original, dense and recorded."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_helpers import (
    ALL_TRACES,
    FOUR_TRACES,
    DenseGaussianProcess,
    assert_same,
    load_replay,
    saved_and_loaded,
    valley,
)
from scipy.stats import norm

from autolr_ray.schedule import RULES, Hyperparameters, LossSmoother, PaperRule, RobustRule, Verdict
from autolr_ray.schedule.rules import get_rule
from autolr_ray.schedule.switch import GRID, RECEIPT_POINTS, SWEEPS, Evidence, decide, judge

replay = load_replay()
RULE_NAMES = sorted(RULES)


# --- decide --------------------------------------------------------------------------------------

R, P = Verdict.RISING, Verdict.PASSED
KEPT, NONE, DIVERGED = Verdict.HIGHEST_KEPT, Verdict.NO_EVIDENCE, Verdict.DIVERGED
TURNED, FALLING = Verdict.EXHAUSTED, Verdict.STILL_FALLING
BELOW = math.nextafter(0.98, 0.0)

# positives, exhausted, argmin, fallback, any_finite -> verdict, at patience 3, the loss having fallen.
TABLE = [
    # Before the end of the longest warmup only the tests in a row count.
    *[
        ((positives, False, argmin, fallback, finite), P if positives >= 3 else R)
        for positives, argmin, fallback, finite in itertools.product(
            (0, 1, 2, 3, 4), (0.0, BELOW, 0.98, 1.0), ("argmin", "keep"), (True, False)
        )
    ],
    # At its end enough positive tests come first, whatever the fallback.
    *[
        ((positives, True, argmin, fallback, finite), P)
        for positives, argmin, fallback, finite in itertools.product(
            (3, 4), (0.0, 1.0), ("argmin", "keep"), (True, False)
        )
    ],
    # Asked to keep: kept, with or without evidence.
    *[
        ((positives, True, argmin, "keep", finite), KEPT)
        for positives, argmin, finite in itertools.product((0, 2), (0.0, 0.5, 1.0), (True, False))
    ],
    # No finite loss: the lowest learning rate, wherever the argmin is said to be.
    *[
        ((positives, True, argmin, "argmin", False), NONE)
        for positives, argmin in itertools.product((0, 2), (0.0, 0.5, 1.0))
    ],
    # Else the minimum, unless it lies in the last fiftieth.
    *[
        ((positives, True, argmin, "argmin", True), TURNED)
        for positives, argmin in itertools.product((0, 2), (0.0, 0.5, BELOW))
    ],
    *[
        ((positives, True, argmin, "argmin", True), FALLING)
        for positives, argmin in itertools.product((0, 2), (0.98, 0.99, 1.0))
    ],
]


@pytest.mark.parametrize("improved", [True, False])
@pytest.mark.parametrize(("case", "expected"), TABLE)
def test_decide_truth_table(case, expected, improved):
    """A rise of a loss that never fell is divergence; without a rise it makes no difference."""
    positives, exhausted, argmin, fallback, any_finite = case
    if expected is P and not improved:
        expected = DIVERGED
    verdict = decide(
        positives=positives,
        patience=3,
        exhausted=exhausted,
        improved=improved,
        argmin=argmin,
        fallback=fallback,
        any_finite=any_finite,
    )
    assert verdict is expected


@pytest.mark.parametrize("patience", [1, 2, 3, 7])
def test_decide_passes_at_patience_exactly(patience):
    verdicts = [
        decide(
            positives=k,
            patience=patience,
            exhausted=False,
            improved=True,
            argmin=0.5,
            fallback="argmin",
            any_finite=True,
        )
        for k in range(patience + 2)
    ]
    assert verdicts == [R] * patience + [P] * 2


def test_every_verdict_is_in_the_table_or_of_a_linear_warmup():
    linear = {*SWEEPS, Verdict.WATCHED, Verdict.RISES_ON, Verdict.REACHED}
    assert {verdict for _, verdict in TABLE} | {DIVERGED} | linear == set(Verdict)
    going_on = {v for v in Verdict if not v.ends_warmup}
    assert going_on == {Verdict.RISING, *SWEEPS, Verdict.WATCHED, Verdict.RISES_ON}
    assert len({v.value for v in Verdict}) == len(Verdict)


# --- judge ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_judge_is_the_largest_marginal_probability(jitter, margin):
    y = np.array(valley(80, noise=0.05))
    smoother = LossSmoother(0.2)
    smoother.update(y)
    hyper = Hyperparameters(outputscale=0.5, noise=0.3, mean=1.2)
    evidence = judge(smoother.posterior(hyper), confidence=0.9, jitter=jitter, margin=margin)
    dense = DenseGaussianProcess(y, 0.2, 0.5, 0.3, 1.2)
    mean = dense.mean(GRID)
    sd = np.sqrt(dense.difference_variance(GRID, 1.0) + jitter)[:-1]
    expected = norm.cdf((mean[-1] - margin - mean[:-1]) / sd).max()
    assert evidence.probability == pytest.approx(expected, abs=1e-6)
    assert evidence.argmin == GRID[np.argmin(mean)]
    assert evidence.hyper == hyper
    points = np.linspace(0.0, 1.0, RECEIPT_POINTS)
    np.testing.assert_allclose(evidence.mean, dense.mean(points), atol=1e-4)
    np.testing.assert_allclose(evidence.sd, np.sqrt(np.diag(dense.covariance(points))), atol=1e-3)


def test_judge_is_positive_strictly_above_the_confidence():
    smoother = LossSmoother(0.2)
    smoother.update(np.array(valley(80)))
    posterior = smoother.posterior(Hyperparameters(outputscale=0.5, noise=1.0, mean=1.2))
    p = judge(posterior, confidence=0.5).probability
    assert 0.5 < p < 1.0
    assert judge(posterior, confidence=math.nextafter(p, 0.0)).positive
    assert not judge(posterior, confidence=p).positive
    assert type(judge(posterior, confidence=0.5).positive) is bool
    # A margin asks for more of a rise; jitter takes certainty away.
    assert judge(posterior, confidence=0.5, margin=0.2).probability < p
    assert judge(posterior, confidence=0.5, jitter=1.0).probability < p


def test_evidence_none():
    none = Evidence.none()
    assert not none.positive
    assert none.argmin == 0.0
    assert math.isnan(none.probability)
    assert none.mean.shape == none.sd.shape == (RECEIPT_POINTS,)


# --- the paper's rule, dense ---------------------------------------------------------------------


class DensePaperRule:
    """The original's test without subsampling: autograd through a dense Cholesky, torch's own Adam."""

    def __init__(self):
        self.losses = []
        noise = math.log(math.expm1(1e-3 - 1e-4))
        self.raw = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.0, noise, 0.0)]
        self.adam = torch.optim.Adam(self.raw, lr=0.01)

    def test(self, losses):
        self.losses += list(losses)
        y = torch.tensor(self.losses, dtype=torch.float64)
        keep = torch.isfinite(y)
        x = (torch.arange(len(y), dtype=torch.float64) / len(y))[keep]
        y = y[keep]
        unit = torch.exp(-0.5 * ((x[:, None] - x) / 0.2) ** 2)
        with torch.no_grad():
            self.raw[2].fill_(y.mean())
        for _ in range(100):
            self.adam.zero_grad()
            scale, noise = (
                torch.nn.functional.softplus(self.raw[0]),
                torch.nn.functional.softplus(self.raw[1]) + 1e-4,
            )
            density = torch.distributions.MultivariateNormal(
                self.raw[2].expand(len(y)), scale * unit + noise * torch.eye(len(y), dtype=torch.float64)
            )
            (-density.log_prob(y) / len(y)).backward()
            self.adam.step()
        with torch.no_grad():
            scale = float(torch.nn.functional.softplus(self.raw[0]))
            noise = float(torch.nn.functional.softplus(self.raw[1])) + 1e-4
        mean = float(self.raw[2].detach())
        dense = DenseGaussianProcess(self.losses, 0.2, scale, noise, mean)
        curve = dense.mean(GRID)
        sd = np.sqrt(dense.difference_variance(GRID, 1.0) + 1e-4)[:-1]
        return (scale, noise, mean), float(norm.cdf((curve[-1] - curve[:-1]) / sd).max()), curve


# Not symmetric about their centre: there the gradient by the mean is zero but for rounding, of which
# Adam makes whole steps.
CURVES = {
    "valley": (valley(96, noise=0.05), 12),
    "steep_valley": (valley(60, lowest=0.4), 6),
    "noise": (np.random.default_rng(0).normal(2.0, 0.5, 50).tolist(), 10),
    "falling": (np.geomspace(2.3, 0.2, 80).tolist(), 20),
    "holes": ([math.nan if t % 7 == 3 else v for t, v in enumerate(valley(90, noise=0.1))], 9),
    "blow_up": ([*valley(70, lowest=0.7), *[math.inf, math.nan] * 5], 10),
    "far_offset": ([1000.0 + v for v in valley(60, noise=0.2)], 15),
    "short_epochs": (valley(30, lowest=0.3, noise=0.1), 3),
}


@pytest.mark.parametrize("name", CURVES)
def test_paper_rule_is_the_originals_test(name):
    losses, every = CURVES[name]
    rule, dense = PaperRule(), DensePaperRule()
    for first in range(0, len(losses), every):
        block = losses[first : first + every]
        rule.observe(np.array(block), len(losses))
        evidence = rule.test()
        (scale, noise, mean), probability, curve = dense.test(block)
        assert evidence.hyper.outputscale == pytest.approx(scale, rel=1e-6)
        assert evidence.hyper.noise == pytest.approx(noise, rel=1e-6)
        assert evidence.hyper.mean == pytest.approx(mean, rel=1e-6, abs=1e-6)
        assert evidence.probability == pytest.approx(probability, abs=1e-6)
        assert evidence.positive == (probability > 0.95)
        assert curve[np.searchsorted(GRID, evidence.argmin)] <= curve.min() + 1e-6
        assert evidence.argmin == pytest.approx(GRID[np.argmin(curve)], abs=1.01 * GRID[1])
        assert rule.minimum() == (evidence.argmin, evidence.earliest)


def test_paper_rule_starts_from_the_originals_hyperparameters():
    rule = PaperRule()
    rule.observe(np.array([1.0, 3.0]), 10)
    hyper = rule.hyperparameters(rule.smoother.spectrum())
    assert hyper.outputscale == pytest.approx(math.log(2.0))
    assert hyper.noise == pytest.approx(1e-3)
    assert hyper.mean == pytest.approx(2.0)
    assert (rule.confidence, rule.patience, rule.smoother.lengthscale) == (0.95, 3, 0.2)


@pytest.mark.parametrize("n", [500, 501, 1000, 4000])
def test_paper_rule_conditions_on_the_worth_of_five_hundred_losses(n):
    y = np.array(valley(n, noise=0.2))
    rule = PaperRule()
    rule.observe(y, n)
    evidence = rule.test()
    noise = evidence.hyper.noise * max(1.0, n / 500)
    smoother = LossSmoother(0.2)
    smoother.update(y)
    hyper = Hyperparameters(outputscale=evidence.hyper.outputscale, noise=noise, mean=evidence.hyper.mean)
    expected = judge(smoother.posterior(hyper), confidence=0.95, jitter=1e-4)
    assert evidence.probability == pytest.approx(expected.probability, abs=1e-9)
    np.testing.assert_allclose(evidence.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(evidence.sd, expected.sd, rtol=1e-9)


@pytest.mark.parametrize("n", [100, 200, 1000])
def test_paper_rule_fits_on_the_worth_of_a_hundred_losses(n):
    """Every loss twice is the same evidence beyond 100 losses, not below it."""
    fitted = []
    for copies in (1, 2):
        y = np.repeat(np.array(valley(n, noise=0.2)), copies)
        rule = PaperRule()
        rule.observe(y, len(y))
        fitted.append(rule.test().hyper)
    assert fitted[0].noise == pytest.approx(fitted[1].noise, rel=0.02)
    assert fitted[0].outputscale == pytest.approx(fitted[1].outputscale, rel=0.02)


# --- the paper's rule, recorded ------------------------------------------------------------------


def assert_all_inside(path, least):
    rows, summary = replay.run(replay.read_curves(path), "paper")
    outside = [row["name"] for row in rows if row["inside"] is False]
    assert not outside
    assert summary["inside"]["judged"] == summary["inside"]["inside"] >= least
    assert summary["inside"]["share"] == 1.0


def test_paper_rule_decides_as_the_original_on_four_recorded_curves():
    assert_all_inside(FOUR_TRACES, least=4)


@pytest.mark.skipif(not ALL_TRACES.exists(), reason=f"needs {ALL_TRACES}, which is not in the repository")
def test_paper_rule_decides_as_the_original_on_all_recorded_curves():
    assert_all_inside(ALL_TRACES, least=36)


# --- every rule, through the public interface ----------------------------------------------------


def evidence_of(rule, losses, every, warmup_steps=None):
    """Evidence after each block."""
    found = []
    for first in range(0, len(losses), every):
        rule.observe(np.array(losses[first : first + every]), warmup_steps or len(losses))
        if rule.smoother.count:
            found.append(rule.test())
    return found


def as_plain(evidence):
    return [
        [e.positive, e.probability, e.argmin, e.hyper.outputscale, e.hyper.noise, e.hyper.mean,
         e.mean.tolist(), e.sd.tolist()]
        for e in evidence
    ]  # fmt: skip


@pytest.mark.parametrize("name", RULE_NAMES)
def test_rules_are_deterministic_and_do_not_touch_random_state(name):
    losses = valley(128, noise=0.1)
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - what a rule must not touch
    first = as_plain(evidence_of(get_rule(name), losses, 16))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert_same(first, as_plain(evidence_of(get_rule(name), losses, 16)))


@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize("cut", [0, 1, 5, 24, 63])
def test_rules_continue_from_a_saved_state_bit_for_bit(name, cut):
    losses = valley(128, noise=0.1)
    losses[40] = math.nan
    first = get_rule(name)
    for value in losses[:cut]:
        first.observe(np.array([value]), 128)
        if first.smoother.count:
            first.test()
    state = saved_and_loaded(first.state_dict())
    second = get_rule(name)
    second.load_state_dict(state)
    assert second.minimum() == first.minimum()
    assert_same(
        as_plain(evidence_of(first, losses[cut:], 3, 128)),
        as_plain(evidence_of(second, losses[cut:], 3, 128)),
    )
    assert_same(saved_and_loaded(first.state_dict()), saved_and_loaded(second.state_dict()))


@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf], [math.nan, math.inf, -math.inf]])
def test_rules_survive_non_finite_losses_anywhere(name, bad):
    losses = valley(120)
    for place in range(0, 120, 5):
        losses[place] = bad[place % len(bad)]
    losses = [math.nan] * 10 + losses + bad * 10
    for evidence in evidence_of(get_rule(name), losses, 10):
        assert 0.0 <= evidence.probability <= 1.0
        assert 0.0 <= evidence.argmin <= 1.0
        assert np.isfinite(evidence.mean).all()
        assert (evidence.sd >= 0).all()


@pytest.mark.parametrize("name", RULE_NAMES)
def test_rules_without_a_finite_loss_have_no_argmin(name):
    rule = get_rule(name)
    assert rule.minimum() == (1.0, 1.0)
    rule.observe(np.full(3, math.nan), 100)
    assert rule.minimum() == (1.0, 1.0)


@pytest.mark.parametrize("name", RULE_NAMES)
@settings(max_examples=25, deadline=None)
@given(
    losses=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=60),
    every=st.integers(1, 20),
)
def test_property_rules_never_fail_on_any_float32(name, losses, every):
    with np.errstate(all="ignore"):
        for evidence in evidence_of(get_rule(name), losses, every, warmup_steps=64):
            assert 0.0 <= evidence.argmin <= 1.0
            assert isinstance(evidence.positive, bool)


@pytest.mark.parametrize("name", RULE_NAMES)
def test_rules_see_a_clear_valley_and_nothing_in_a_falling_curve(name):
    steps = 640
    risen = evidence_of(get_rule(name), valley(steps, lowest=0.5), 10)
    falling = evidence_of(get_rule(name), [2.0 - t / steps for t in range(steps)], 10)
    assert risen[-1].positive
    assert risen[-1].argmin == pytest.approx(0.5, abs=0.06)
    assert not any(e.positive for e in risen[: len(risen) // 3])
    assert not any(e.positive for e in falling)
    assert falling[-1].argmin > 0.98


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_robust_rule_is_scale_free(factor):
    losses = valley(320, lowest=0.5, noise=0.05)
    plain = evidence_of(RobustRule(), losses, 5)
    scaled = evidence_of(RobustRule(), [factor * value for value in losses], 5)
    assert [e.positive for e in plain] == [e.positive for e in scaled]
    assert [e.argmin for e in plain] == pytest.approx([e.argmin for e in scaled], abs=1.01 * GRID[1])


@pytest.mark.parametrize(
    ("height", "stays", "expected"),
    [(0.3, True, True), (0.3, False, False), (0.05, False, False), (3.0, True, True)],
)
def test_robust_rule_ends_at_rises_that_stay_not_at_bumps_that_heal(height, stays, expected):
    """A bump's sums may pass a threshold when it has healed: then the loss is no longer rising."""
    falling = [2.0 - t / 400 for t in range(400)]
    bump = [1.0 + height * math.sin(math.pi * t / 16) ** 2 for t in range(16)]
    rise = [1.0 + height * min(1.0, t / 16) for t in range(100)]
    noise = np.random.default_rng(0).normal(0.0, 0.01, 640)
    losses = falling + (rise if stays else bump + [1.0] * 84)
    losses = [loss + e for loss, e in zip(losses, noise.tolist(), strict=False)]
    assert any(e.positive for e in evidence_of(RobustRule(), losses, 10, 640)) is expected


@pytest.mark.parametrize("warmup_steps", [200, 2500, 10_000])
def test_robust_rule_is_positive_strictly_above_its_threshold(warmup_steps):
    rule = RobustRule(quiet=0.0)
    evidence_of(rule, [2.0 - t / 400 for t in range(200)], 10, warmup_steps)
    threshold = rule.rise * max(1.0, warmup_steps / rule.long_steps)
    for risen, expected in ((threshold, False), (math.nextafter(threshold, math.inf) * (1 + 1e-12), True)):
        rule._risen, rule._drifted, rule._stayed = risen, 0.0, 0.0
        evidence = rule.test()
        assert evidence.positive is expected
        assert evidence.strength == pytest.approx(1.0)
    threshold = rule.stay * max(1.0, warmup_steps / rule.long_steps)
    for stayed, expected in ((threshold, False), (threshold * (1 + 1e-12), True)):
        rule._risen, rule._stayed = 0.0, stayed
        assert rule.test().positive is expected
    rule._stayed = 0.0
    # The loss falls: a drift, however large, counts for nothing.
    rule._risen, rule._drifted = 0.0, 1e6
    assert rule.test().strength == 0.0


def test_robust_rule_sums_in_drops():
    """Squares of at most three, and at most a fifth of each loss; below the minimum both lose the height."""
    rule = RobustRule()
    evidence_of(rule, [2.0] * 40, 10, 400)
    rule._level, rule._minimum, rule._ceiling, rule._noise = 2.0, 1.0, 1.0, 1e-6
    rule._risen = rule._drifted = rule._stayed = 0.0

    def add(*losses):
        rule._add_rise(np.array(losses))
        return rule._risen, rule._drifted

    assert add(1.5, 1.5, 1.5, 1.5) == pytest.approx((4 * 0.25, 4 * 0.2))
    assert rule._stayed == pytest.approx(4 * 0.5, abs=1e-5)
    assert add(1.1) == pytest.approx((1.01, 0.9))
    assert add(0.5) == pytest.approx((0.51, 0.4))
    assert add(math.inf, 100.0) == pytest.approx((6.51, 0.8))
    # One loss takes at most a threshold away.
    assert add(-1e9) == pytest.approx((1.51, 0.0))
    assert add(-1e9) == (0.0, 0.0)
    # A drop of less than ten noise sd's counts as ten.
    rule._level, rule._noise = 1.001, 0.1
    assert add(1.5) == pytest.approx((0.25, 0.2))
    # Correlated noise counts as wider.
    rule._widening, rule._risen, rule._drifted = 2.0, 0.0, 0.0
    assert add(1.5) == pytest.approx((0.0625, 0.2))


def test_robust_rule_widens_noise_that_is_correlated_between_steps():
    noise = np.random.default_rng(0).normal(0.0, 0.3, 2000)
    plain, correlated = RobustRule(), RobustRule()
    evidence_of(plain, (2.0 + noise).tolist(), 100)
    smoothed = np.convolve(noise, 0.7 ** np.arange(30), mode="full")[:2000]
    evidence_of(correlated, (2.0 + smoothed).tolist(), 100)
    assert plain._widening == pytest.approx(1.0, abs=0.1)
    assert 1.5 < correlated._widening < 2.6  # (1 + .7) / (1 - .7) is 2.4 squared


def test_paper_rule_ignores_non_finite_losses_but_robust_takes_them_as_evidence():
    losses = [2.0 - t / 100 for t in range(100)] + [math.nan] * 40
    assert not any(e.positive for e in evidence_of(PaperRule(), losses, 4))
    robust = evidence_of(RobustRule(), losses, 4)
    assert all(e.positive for e in robust[-3:])


@pytest.mark.parametrize("name", RULE_NAMES)
def test_rule_settings_and_state_are_plain(name):
    rule = get_rule(name)
    assert rule.name == rule.settings()["name"] == name
    assert all(isinstance(value, (int, float, str)) for value in rule.settings().values())
    assert rule.test_interval(1000, 10) >= 1
    assert rule.test_interval(1, 10) >= 1


def test_test_intervals():
    assert PaperRule().test_interval(1000, 17) == 17
    with pytest.raises(ValueError, match=r"steps_per_epoch: None is not allowed with rule='paper'"):
        PaperRule().test_interval(1000, None)
    assert RobustRule().test_interval(6400, None) >= 1
    settings_ = PaperRule(confidence=0.9, patience=2, lengthscale=0.3).settings()
    assert settings_ == {"name": "paper", "confidence": 0.9, "patience": 2, "lengthscale": 0.3}


@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patience", 0),
        ("patience", -1),
        ("confidence", 0.0),
        ("confidence", 1.0),
        ("confidence", math.nan),
        ("lengthscale", 0.01),
    ],
)
def test_rules_refuse_settings_that_make_no_sense(name, field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        RULES[name](**{field: value})


def test_get_rule():
    own = PaperRule(patience=1)
    assert get_rule(own) is own
    assert get_rule("paper") is not get_rule("paper")
    with pytest.raises(ValueError, match=r"rule: unknown 'nope'; allowed: robust, paper"):
        get_rule("nope")


# --- the replay script ---------------------------------------------------------------------------


def test_replay_scores_by_the_written_definition():
    losses = np.array([3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.2, 0.5, 9.0, math.nan, 8.0])
    # window 3, clip 2.5: the mean of .5, .2, .5 at 7 is the lowest.
    assert replay.lowest_step(losses) == 7
    at = replay.MIN_LR * (replay.MAX_LR / replay.MIN_LR) ** (7 / 12)
    found = replay.score(losses, replay.Replay(switch_step=10, lr_after=10 * at, reason=""))
    assert (found.missed, found.premature) == (False, False)
    assert found.overshoot == pytest.approx(3 / 12)
    assert found.lr_error == pytest.approx(1.0)
    assert replay.score(losses, replay.Replay(switch_step=6, lr_after=at, reason="")).premature
    missed = replay.score(losses, replay.Replay(switch_step=-1, lr_after=None, reason=""))
    assert missed == replay.Score(missed=True, premature=False, overshoot=None, lr_error=None)
    assert replay.lowest_step(np.full(20, math.nan)) is None
    assert replay.summarize([found, missed])["missed_share"] == 0.5
    # Clipped at 1.25 x 2.0: a spike weighs no more than that, an infinite one neither.
    spiky = np.array([2.0] * 50 + [1.0] * 20 + [math.inf] + [1.0] * 20 + [2.0] * 50)
    assert 50 <= replay.lowest_step(spiky) < 91


@pytest.mark.parametrize(
    ("step", "lr", "expected"),
    [(90, 0.02, True), (110, 0.02, True), (89, 0.02, False), (111, 0.02, False),
     (100, 0.02 * math.exp(0.26), False), (100, 0.02 * math.exp(-0.24), True), (-1, None, False)],
)  # fmt: skip
def test_replay_inside(step, lr, expected):
    original = replay.Decisions(
        switch_step=np.array([90.0, 110.0, 95.0]), lr_after=np.array([0.02, 0.03, 0.01]), any_error=False
    )
    result = replay.Replay(switch_step=step, lr_after=lr, reason="")
    assert replay.inside(result, original) is expected
    assert replay.inside(result, None) is None
    failed = replay.Decisions(switch_step=original.switch_step, lr_after=original.lr_after, any_error=True)
    assert replay.inside(result, failed) is None


def test_replay_inside_where_the_original_may_never_switch():
    original = replay.Decisions(
        switch_step=np.array([math.inf, 90.0]), lr_after=np.array([math.nan, 0.02]), any_error=False
    )
    assert replay.inside(replay.Replay(switch_step=-1, lr_after=None, reason=""), original)
    assert replay.inside(replay.Replay(switch_step=400, lr_after=0.02, reason=""), original)
    assert not replay.inside(replay.Replay(switch_step=80, lr_after=0.02, reason=""), original)


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_replay_command_line(rule, capsys):
    assert replay.main(["--traces", str(FOUR_TRACES), "--rule", rule, "--json"]) == 0
    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4
    assert all(row.keys() >= {"name", "switch_step", "lr_after", "reason"} for row in rows)
    assert all(("inside" in row) == (rule == "paper") for row in rows)
    assert all((row["switch_step"] == -1) == (row["lr_after"] is None) for row in rows)
    assert last["summary"]["all"]["curves"] == 4
    assert last["summary"]["real"]["curves"] == 3
    assert replay.main(["--traces", str(FOUR_TRACES), "--rule", rule]) == 0
    text = capsys.readouterr().out
    assert "real-cnn-lamb-bs4096-E40-s0" in text
    assert ("inside the original's range: 4 of 4" in text) == (rule == "paper")


def write_npz(path, **arrays):
    np.savez(path, **{key.replace("__", "/"): value for key, value in arrays.items()})
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "no array is called NAME/losses"),
        ({"a__losses": np.zeros(3)}, "a/warmup_steps: missing"),
        ({"a__losses": np.zeros((3, 1)), "a__warmup_steps": np.array(3)}, "a/losses: .* one dimension"),
        ({"a__losses": np.zeros(3), "a__warmup_steps": np.array(4)}, "a/warmup_steps: 4 is not allowed"),
        ({"a__losses": np.zeros(3), "a__warmup_steps": np.array(3)}, "a/steps_per_epoch: missing"),
        (
            {"a__losses": np.zeros(3), "a__warmup_steps": np.array(3), "a__steps_per_epoch": np.array(0)},
            "a/steps_per_epoch: .* integer >= 1",
        ),
        (
            {"a__losses": np.zeros(3), "a__warmup_steps": np.array(3), "a__steps_per_epoch": np.array(1),
             "a__replica_switch_step": np.array([3])},
            "a/replica_lr_after: missing",
        ),
        ({"a__losses": np.array(["x"])}, "a/losses: <U1"),
        ({"a__losses": np.array([None], dtype=object)}, "not a readable"),
    ],
)  # fmt: skip
def test_replay_refuses_malformed_files(arrays, message, tmp_path, capsys):
    path = write_npz(tmp_path / "curves.npz", **arrays)
    with pytest.raises(replay.TraceError, match=message):
        replay.read_curves(path)
    assert replay.main(["--traces", str(path), "--rule", "paper"]) == 2
    assert str(path) in capsys.readouterr().err


def test_replay_refuses_what_is_no_npz_and_unknown_rules(tmp_path, capsys):
    assert replay.main(["--traces", str(tmp_path / "none.npz"), "--rule", "paper"]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "text.npz").write_text("hello")
    assert replay.main(["--traces", str(tmp_path / "text.npz"), "--rule", "paper"]) == 2
    assert "not a .npz file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        replay.main(["--traces", str(FOUR_TRACES), "--rule", "nope"])


def test_replay_of_a_file_without_the_originals_decisions(tmp_path):
    losses = np.array([*valley(39), math.nan], dtype=np.float32)
    path = write_npz(
        tmp_path / "own.npz",
        own__losses=losses,
        own__warmup_steps=np.array(40),
        own__steps_per_epoch=np.array(2),
    )
    (row,), summary = replay.run(replay.read_curves(path), "paper")
    assert "inside" not in row
    assert summary["inside"] == {"judged": 0, "inside": 0, "share": None}
    assert summary["real"]["curves"] == 0
    assert summary["real"]["missed_share"] is None


@pytest.mark.parametrize("steps", [2, 30, 1000])
def test_positions_are_steps_that_have_run(steps):
    """The robust rule places a loss where it was seen, the paper's where the authors' formula does."""
    robust, paper = RobustRule(), PaperRule()
    assert robust.step_of(0.5, steps) == 0.5 * steps
    assert paper.step_of(0.5, steps) == 0.5 * (steps - 1)
    assert robust.step_of(1.0, steps) == paper.step_of(1.0, steps) == steps - 1
    assert robust.step_of(0.0, steps) == paper.step_of(0.0, steps) == 0.0
