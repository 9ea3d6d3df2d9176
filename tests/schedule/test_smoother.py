"""The streaming posterior against dense float64 algebra and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_helpers import DenseGaussianProcess, assert_same, kernel, saved_and_loaded
from scipy.optimize import minimize_scalar
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from autolr_ray.schedule.smoother import (
    Hyperparameters,
    LossPosterior,
    LossSmoother,
    _profile,
    chebyshev,
    fit_marginal_likelihood,
    kernel_factor,
    rescaling,
)

LENGTHSCALES = [0.05, 0.1, 0.2, 0.5, 1.0]
GRID = np.linspace(0.0, 1.0, 101)


def curve(n, *, seed=0, noise=0.1, nan_share=0.0, scale=1.0, offset=0.0):
    """A smooth curve of range about 2 plus noise, times ``scale`` plus ``offset``."""
    rng = np.random.default_rng(seed)
    x = np.arange(n) / n
    y = np.cos(4.0 * x) + x**3 + noise * rng.standard_normal(n)
    y = offset + scale * y
    holes = rng.random(n) < nan_share
    y[holes] = rng.choice([math.nan, math.inf, -math.inf], holes.sum())
    return y


def fed(y, lengthscale=0.2, block=None):
    """A smoother that has seen ``y``, in blocks."""
    smoother = LossSmoother(lengthscale)
    block = block or len(y)
    for first in range(0, len(y), block):
        smoother.update(y[first : first + block])
    return smoother


def direct_sums(smoother, y):
    """The statistics by their definition, in the smoother's own offset."""
    y = np.asarray(y, dtype=np.float64)
    keep = np.isfinite(y)
    x = (np.arange(len(y)) / len(y))[keep]
    values = y[keep] - smoother.offset
    size = len(smoother._products)
    basis = np.polynomial.chebyshev.chebvander(2.0 * x - 1.0, 2 * size - 1)
    return basis.sum(axis=0), values @ basis[:, :size], values.sum(), values @ values


@pytest.mark.parametrize("lengthscale", [*LENGTHSCALES, 0.0731])
def test_low_rank_kernel_is_the_kernel(lengthscale):
    factor = kernel_factor(lengthscale)
    features = chebyshev(2.0 * GRID - 1.0, len(factor)) @ factor
    np.testing.assert_allclose(features @ features.T, kernel(GRID, GRID, lengthscale), rtol=0, atol=1e-12)
    assert factor.shape[1] <= factor.shape[0]


@pytest.mark.parametrize("shrink", [1.0, 0.999, 0.5, 0.01])
def test_rescaling_expands_chebyshev_polynomials_of_shrunk_positions(shrink):
    t = np.linspace(-1.0, 1.0, 41)
    expected = chebyshev(shrink * (t + 1.0) - 1.0, 24)
    np.testing.assert_allclose(chebyshev(t, 24) @ rescaling(shrink, 24).T, expected, rtol=0, atol=1e-12)


def test_chebyshev_is_numpys_and_clips_rounding_beyond_the_ends():
    t = np.linspace(-1.0, 1.0, 31)
    np.testing.assert_allclose(chebyshev(t, 9), np.polynomial.chebyshev.chebvander(t, 8), atol=1e-13)
    beyond = chebyshev(np.array([-1.0 - 1e-15, 1.0 + 1e-15]), 4)
    np.testing.assert_array_equal(beyond, chebyshev(np.array([-1.0, 1.0]), 4))


@pytest.mark.parametrize("lengthscale", LENGTHSCALES)
@pytest.mark.parametrize(("scale", "noise"), [(1.0, 0.01), (0.3, 1.0), (100.0, 1e-3)])
@pytest.mark.parametrize("nan_share", [0.0, 0.3])
def test_posterior_is_the_dense_one(lengthscale, scale, noise, nan_share):
    y = curve(150, nan_share=nan_share)
    dense = DenseGaussianProcess(y, lengthscale, scale, noise, mean=0.4)
    posterior = fed(y, lengthscale, block=7).posterior(
        Hyperparameters(outputscale=scale, noise=noise, mean=0.4)
    )
    variance = dense.covariance(GRID)
    mean, sd, difference = posterior.on_grid(len(GRID))
    np.testing.assert_allclose(mean, dense.mean(GRID), atol=2e-7)
    np.testing.assert_allclose(sd, np.sqrt(np.diag(variance)), atol=1e-7 * scale)
    np.testing.assert_allclose(difference, dense.difference_variance(GRID, 1.0), atol=1e-9 * scale, rtol=1e-6)
    assert (difference >= 0).all()
    assert difference[-1] == 0.0
    # The single-purpose forms are the same numbers, at other references too.
    np.testing.assert_allclose(posterior.mean(GRID), mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(posterior.sd(GRID), sd, rtol=1e-12)
    np.testing.assert_allclose(posterior.difference_variance(GRID, 1.0), difference, rtol=1e-9, atol=1e-14)
    at = posterior.difference_variance(GRID, 0.25)
    np.testing.assert_allclose(at, dense.difference_variance(GRID, 0.25), atol=1e-9 * scale, rtol=1e-6)


@pytest.mark.parametrize("lengthscale", [0.1, 0.2])
@pytest.mark.parametrize("noise", [1e-3, 0.05])
def test_posterior_is_scikit_learns(lengthscale, noise):
    y = curve(120, seed=3)
    x = np.arange(120) / 120
    peer = GaussianProcessRegressor(
        ConstantKernel(1.7) * RBF(lengthscale), alpha=noise, optimizer=None
    ).fit(x[:, None], y - 0.2)  # fmt: skip
    expected_mean, expected_sd = peer.predict(GRID[:, None], return_std=True)
    smoother = fed(y, lengthscale, block=11)
    posterior = smoother.posterior(Hyperparameters(outputscale=1.7, noise=noise, mean=0.2))
    np.testing.assert_allclose(posterior.mean(GRID), expected_mean + 0.2, atol=1e-7)
    np.testing.assert_allclose(posterior.sd(GRID), expected_sd, atol=1e-7)
    # And the dense reference of these tests has scikit-learn's marginal likelihood.
    dense = DenseGaussianProcess(y, lengthscale, 1.7, noise, 0.2)
    assert dense.negative_log_likelihood() == pytest.approx(-peer.log_marginal_likelihood_value_, rel=1e-9)


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.01])
def test_weight_divides_the_noise(weight):
    y = curve(90)
    dense = DenseGaussianProcess(y, 0.2, 1.3, 0.02 / weight, 0.1)
    posterior = fed(y).posterior(Hyperparameters(outputscale=1.3, noise=0.02, mean=0.1), weight=weight)
    np.testing.assert_allclose(posterior.mean(GRID), dense.mean(GRID), atol=1e-8)
    np.testing.assert_allclose(posterior.sd(GRID), np.sqrt(np.diag(dense.covariance(GRID))), atol=1e-8)


@pytest.mark.parametrize("lengthscale", [0.1, 0.2])
@pytest.mark.parametrize("ratio", [1e-6, 1e-2, 1.0, 1e3])
def test_profile_likelihood_is_the_dense_likelihood_at_its_optimal_mean_and_noise(lengthscale, ratio):
    y = curve(130, offset=5.0, nan_share=0.1)
    spectrum = fed(y, lengthscale, block=13).spectrum()
    nlml, mean, noise = (float(v[0]) for v in _profile(spectrum, np.array([ratio])))

    def dense(noise, mean):
        return DenseGaussianProcess(y, lengthscale, ratio * noise, noise, mean).negative_log_likelihood()

    centre = dense(noise, mean + spectrum.offset)
    assert nlml == pytest.approx(centre, rel=1e-8, abs=1e-6)
    for other_noise, other_mean in ((1.02, 0.0), (0.98, 0.0), (1.0, 0.01), (1.0, -0.01)):
        assert dense(noise * other_noise, mean + spectrum.offset + other_mean) > centre


@pytest.mark.parametrize("noise", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_fit_finds_the_global_optimum_of_the_dense_likelihood(noise, scale):
    y = curve(100, noise=noise, scale=scale, seed=5)
    hyper = fit_marginal_likelihood(fed(y, 0.2).spectrum())

    def dense(scale, noise, mean):
        return DenseGaussianProcess(y, 0.2, scale, noise, mean).negative_log_likelihood()

    best = dense(hyper.outputscale, hyper.noise, hyper.mean)
    tries = np.random.default_rng(0)
    for _ in range(100):
        factors = np.exp(tries.normal(scale=[1.0, 0.3]))
        shift = tries.normal() * scale * 0.3
        assert (
            dense(hyper.outputscale * factors[0], hyper.noise * factors[1], hyper.mean + shift) > best - 1e-4
        )
    assert 0.5 * noise < math.sqrt(hyper.noise) / scale < 2.0 * noise
    # And nothing better nearby along the one direction that is searched.
    ratio = math.log(hyper.outputscale / hyper.noise)

    def profile(log_ratio):
        return _profile(fed(y, 0.2).spectrum(), np.exp([log_ratio]))[0][0]

    optimum = minimize_scalar(profile, bounds=(ratio - 1.0, ratio + 1.0), options={"xatol": 1e-6})
    assert ratio == pytest.approx(optimum.x, abs=0.01)
    assert profile(ratio) <= optimum.fun + 1e-4


def test_fit_bounds_the_ratio_and_survives_a_constant_curve():
    step = np.where(np.arange(200) < 100, 0.0, 1.0)
    hyper = fit_marginal_likelihood(fed(np.linspace(0.0, 1.0, 200)).spectrum(), max_ratio=1e3)
    assert hyper.outputscale / hyper.noise == pytest.approx(1e3, rel=1e-6)
    assert fit_marginal_likelihood(fed(step).spectrum()).outputscale > 0
    flat = fit_marginal_likelihood(fed(np.full(50, 3.25)).spectrum())
    assert flat.mean == pytest.approx(3.25, abs=1e-12)
    assert flat.noise > 0
    posterior = fed(np.full(50, 3.25)).posterior(flat)
    np.testing.assert_allclose(posterior.mean(GRID), 3.25, atol=1e-9)
    assert np.isfinite(posterior.sd(GRID)).all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 250),
    log_scale=st.floats(-6, 6),
    offset=st.floats(-1e3, 1e3),
    nan_share=st.sampled_from([0.0, 0.1, 0.9]),
    block=st.integers(1, 60),
    lengthscale=st.sampled_from([0.1, 0.2, 0.4]),
    seed=st.integers(0, 1000),
)
def test_property_dense_agreement_in_units_of_the_curve(
    n, log_scale, offset, nan_share, block, lengthscale, seed
):
    scale = 10.0**log_scale
    y = curve(n, seed=seed, nan_share=nan_share, scale=scale, offset=offset * scale)
    finite = y[np.isfinite(y)]
    smoother = fed(y, lengthscale, block)
    assert (smoother.steps, smoother.count) == (n, len(finite))
    if not len(finite):
        assert math.isnan(smoother.mean)
        return
    assert smoother.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-12 * scale)
    prior = float(finite.mean())
    hyper = Hyperparameters(outputscale=scale**2, noise=0.01 * scale**2, mean=prior)
    dense = DenseGaussianProcess(y, lengthscale, scale**2, 0.01 * scale**2, prior)
    mean, sd, difference = smoother.posterior(hyper).on_grid(len(GRID))
    # Losses of a thousand times their range keep three digits fewer.
    assert np.abs(mean - dense.mean(GRID)).max() < 1e-6 * scale
    assert np.abs(sd - np.sqrt(np.diag(dense.covariance(GRID)))).max() < 1e-6 * scale
    assert np.abs(difference - dense.difference_variance(GRID, 1.0)).max() < 1e-8 * scale**2


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    nan_share=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 1000),
)
def test_property_blocks_do_not_matter(n, cuts, nan_share, seed):
    y = curve(n, seed=seed, nan_share=nan_share)
    whole, split = fed(y), LossSmoother(0.2)
    for block in np.split(y, sorted(min(cut, n) for cut in cuts)):
        split.update(block)
    assert (split.steps, split.count) == (whole.steps, whole.count)
    if not whole.count:
        return
    assert split.offset == whole.offset
    for name in ("_positions", "_products", "_total", "_square"):
        np.testing.assert_allclose(
            getattr(split, name), getattr(whole, name), rtol=0, atol=1e-11 * max(n, 10)
        )


def test_twenty_thousand_single_steps_keep_the_sums():
    y = curve(20_000, noise=0.3, nan_share=0.01)
    smoother = fed(y, 0.2, block=1)
    positions, products, total, square = direct_sums(smoother, y)
    np.testing.assert_allclose(smoother._positions, positions, rtol=0, atol=1e-10 * len(y))
    np.testing.assert_allclose(smoother._products, products, rtol=0, atol=1e-10 * len(y))
    assert smoother._total == pytest.approx(total, rel=1e-11)
    assert smoother._square == pytest.approx(square, rel=1e-11)


def test_a_block_longer_than_a_chunk():
    y = curve(20_011, nan_share=0.01)
    smoother = fed(y)
    positions, products, *_ = direct_sums(smoother, y)
    np.testing.assert_allclose(smoother._positions, positions, rtol=0, atol=1e-10 * len(y))
    np.testing.assert_allclose(smoother._products, products, rtol=0, atol=1e-10 * len(y))


def test_non_finite_losses_take_a_step_and_nothing_else():
    y = np.array([math.nan, math.inf, 2.0, -math.inf, 3.0, 5.0, math.nan])
    smoother = fed(y, block=1)
    assert (smoother.steps, smoother.count, smoother.offset) == (7, 3, 2.0)
    assert smoother.mean == pytest.approx(10.0 / 3.0)
    positions, products, *_ = direct_sums(smoother, y)
    np.testing.assert_allclose(smoother._positions, positions, atol=1e-12)
    np.testing.assert_allclose(smoother._products, products, atol=1e-12)


def test_a_large_offset_costs_no_accuracy():
    y = curve(200, offset=0.0)
    near = fed(y).posterior(Hyperparameters(outputscale=1.0, noise=0.01, mean=0.0))
    far = fed(y + 2.0**30).posterior(Hyperparameters(outputscale=1.0, noise=0.01, mean=2.0**30))
    np.testing.assert_allclose(far.mean(GRID) - 2.0**30, near.mean(GRID), atol=1e-5)
    np.testing.assert_allclose(far.sd(GRID), near.sd(GRID), rtol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 50])
def test_state_round_trip_continues_bit_for_bit(steps):
    y = curve(120, nan_share=0.1)
    first = LossSmoother(0.2)
    for value in y[:steps]:
        first.update(value[None])
    state = first.state_dict()
    frozen = saved_and_loaded(state)
    second = LossSmoother(0.2)
    second.load_state_dict(saved_and_loaded(state))
    for value in y[steps:]:
        first.update(value[None])
        second.update(value[None])
    assert_same(first.state_dict(), second.state_dict())
    assert_same(state, frozen)  # the state taken is a copy


def test_errors():
    for lengthscale in (0.049, 1.01, 0.0, -0.2, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"lengthscale: .* must lie in \[0.05, 1\]"):
            LossSmoother(lengthscale)
    LossSmoother(0.05)
    LossSmoother(1.0)
    smoother = LossSmoother()
    assert smoother.lengthscale == 0.2
    for losses in (np.zeros((2, 2)), np.array(1.0)):
        with pytest.raises(ValueError, match=r"losses: shape .* one dimension"):
            smoother.update(losses)
    smoother.update(np.array([]))
    smoother.update(np.array([math.nan]))
    assert (smoother.steps, smoother.count) == (1, 0)
    with pytest.raises(ValueError, match="none is finite yet"):
        smoother.spectrum()
    with pytest.raises(ValueError, match="products"):
        LossSmoother(0.05).load_state_dict(smoother.state_dict())


def test_posterior_before_evidence_is_the_prior():
    """With a noise that drowns the losses the posterior is the prior: mean, outputscale."""
    posterior = LossPosterior(
        fed(curve(10)).spectrum(), Hyperparameters(outputscale=4.0, noise=1e9, mean=7.0)
    )
    np.testing.assert_allclose(posterior.mean(GRID), 7.0, atol=1e-5)
    np.testing.assert_allclose(posterior.sd(GRID), 2.0, atol=1e-5)
